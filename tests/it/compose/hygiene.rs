//! The expansion means the same everywhere: without a prelude, and among names with other meanings.

mod elsewhere {
    #![no_implicit_prelude]
    #![deny(warnings)]

    use crate::compose::runners::{Noop, Vm};

    #[derive(::std::fmt::Debug, ::hm_exec::RunnerSet)]
    pub(super) struct Mine<S: ::hm_exec::runner::StepRunner> {
        #[runner(default)]
        pub r#type: Noop,
        #[runner(name = "self")]
        pub index: Vm,
        pub ctx: S,
    }

    #[derive(::std::fmt::Debug, ::hm_exec::RunnerSet)]
    pub(super) struct Outer<S: ::hm_exec::runner::StepRunner> {
        #[runner(flatten, default)]
        pub inner: Mine<S>,
        #[runner(flatten)]
        pub plugins: ::hm_exec::runner::RunnerRegistry,
    }

    #[allow(dead_code, non_camel_case_types)]
    mod hm_exec {
        mod __private {}
    }
    #[allow(dead_code)]
    mod core {}
    #[allow(dead_code)]
    mod std {}
    #[allow(dead_code)]
    struct Option;
    #[allow(dead_code)]
    struct Result;
    #[allow(dead_code)]
    struct Vec;
    #[allow(dead_code)]
    trait Send {}
    #[allow(dead_code)]
    trait Future {}
    #[allow(dead_code, non_camel_case_types)]
    struct str;
    #[allow(dead_code, non_camel_case_types)]
    struct u16;
    #[allow(dead_code, non_camel_case_types)]
    struct usize;
    #[allow(dead_code, non_upper_case_globals)]
    const index: () = ();
    #[allow(dead_code, non_upper_case_globals)]
    const input: () = ();
    #[allow(dead_code, non_upper_case_globals)]
    const name: () = ();
    #[allow(dead_code, non_upper_case_globals)]
    const ctx: () = ();
    #[allow(dead_code, non_upper_case_globals)]
    const snapshots: () = ();
    #[allow(dead_code, non_upper_case_globals)]
    const runner_0: () = ();
}

#[test]
fn the_expansion_does_not_see_the_names_around_it() {
    use hm_exec::{RunnerSet, runner::RunnerIndex};

    #[derive(Debug)]
    struct Plain;
    impl hm_exec::runner::StepRunner for Plain {
        const NAME: &'static str = "plain";
        async fn execute(
            &self,
            _: &hm_exec::runner::StepContext,
            _: hm_exec::ExecutorInput,
        ) -> Result<hm_exec::StepResult, hm_exec::runner::RunnerError> {
            unreachable!()
        }
    }

    let set = elsewhere::Mine { r#type: super::runners::Noop, index: super::runners::Vm, ctx: Plain };
    assert_eq!(set.index_of("self"), Some(RunnerIndex(1)));
    let outer = elsewhere::Outer { inner: set, plugins: hm_exec::runner::RunnerRegistry::new() };
    assert_eq!(outer.default_index(), Some(RunnerIndex(0)));
    assert_eq!(outer.into_registry().runner_names(), ["noop", "plain", "self"]);
}
