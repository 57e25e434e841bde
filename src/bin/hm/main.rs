//! The `hm` command.

fn main() {
    hm_exec::runner::sandbox::init();
}
