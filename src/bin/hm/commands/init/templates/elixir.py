"""What CI does with this Elixir project."""

import harmont as hm


@hm.pipeline("ci", env={"CI": "true", "MIX_ENV": "test"}, triggers=[hm.push(branch="main")])
def ci():
    project = hm.elixir(path=".")
    return project.compile(), project.test(), project.format()
