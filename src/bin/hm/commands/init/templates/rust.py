"""What CI does with this Rust crate or workspace."""

import harmont as hm


@hm.pipeline("ci", env={"CI": "true"}, triggers=[hm.push(branch="main")])
def ci():
    # One step compiles the dependencies. Tests, Clippy and the format check start from its files.
    return hm.rust.project(path=".").ci()
