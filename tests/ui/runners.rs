//! Runners for the tests beside, as another crate would write them.
#![allow(dead_code)]

macro_rules! runner {
    ($($runner:ident = $name:literal),*) => {$(
        #[derive(Debug)]
        pub(crate) struct $runner;

        impl hm_exec::runner::StepRunner for $runner {
            const NAME: &'static str = $name;

            async fn execute(
                &self,
                _: &hm_exec::runner::StepContext,
                _: hm_exec::ExecutorInput,
            ) -> Result<hm_exec::StepResult, hm_exec::runner::RunnerError> {
                Ok(hm_exec::StepResult::exited(0))
            }
        }
    )*};
}

#[allow(unused_imports)]
pub(crate) use runner;

runner!(Noop = "noop", Vm = "vm", OtherVm = "vm", Shouting = "VM");

pub(crate) fn is_set<S: hm_exec::RunnerSet>() {}
