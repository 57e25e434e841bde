"""What CI does with this Python project, through uv."""

import harmont as hm


@hm.pipeline("ci", env={"CI": "true"}, triggers=[hm.push(branch="main")])
def ci():
    project = hm.python(path=".")
    # The four start from the same installed environment, at the same time.
    return project.test(), project.lint(), project.fmt(), project.typecheck()
