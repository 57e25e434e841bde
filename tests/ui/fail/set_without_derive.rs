#[path = "../runners.rs"]
mod runners;

#[derive(Debug)]
struct Mine {
    noop: runners::Noop,
}

fn main() {
    runners::is_set::<Mine>();
}
