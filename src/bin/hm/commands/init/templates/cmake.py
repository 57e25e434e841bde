"""What CI does with this CMake project."""

import harmont as hm


@hm.pipeline("ci", env={"CI": "true"}, triggers=[hm.push(branch="main")])
def ci():
    project = hm.cmake(path=".")
    # The tests run in the files of the build.
    return project.test(), project.lint(), project.fmt()
