//! The `hm` command.

fn main() {}
