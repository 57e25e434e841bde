"""What CI does with this Zig project."""

import harmont as hm


@hm.pipeline("ci", env={"CI": "true"}, triggers=[hm.push(branch="main")])
def ci():
    project = hm.zig(path=".")
    return project.build(), project.test(), project.fmt()
