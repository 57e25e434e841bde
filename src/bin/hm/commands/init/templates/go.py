"""What CI does with this Go module."""

import harmont as hm


@hm.pipeline("ci", env={"CI": "true"}, triggers=[hm.push(branch="main")])
def ci():
    project = hm.go(path=".")
    return project.build(), project.test(), project.vet(), project.fmt()
