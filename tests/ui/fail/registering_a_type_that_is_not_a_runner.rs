use std::sync::Arc;

use hm_exec::runner::RunnerRegistry;

fn main() {
    RunnerRegistry::new().register(Arc::new(5), true);
}
