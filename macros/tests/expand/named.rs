const _: () = {
    #[allow(unused_imports)]
    use ::hm_exec::__private::Nameless as _;
    ::core::assert!(
        ! ::hm_exec::__private::is_bad(::hm_exec::__private::NameOf:: < SandboxRunner >
        ::NAMES),
        "the runner of field `sandbox` has a bad name; use lowercase letters, digits, `-` and `_`"
    );
};
const _: () = {
    #[allow(unused_imports)]
    use ::hm_exec::__private::Nameless as _;
    ::core::assert!(
        ! ::hm_exec::__private::collide(::hm_exec::__private::NameOf:: < SandboxRunner >
        ::NAMES, ::hm_exec::__private::Names::One("vm-big")),
        "fields `sandbox` and `big` have runners of one name; rename one with `#[runner(name = \"...\")]`"
    );
};
const _: () = {
    #[allow(unused_imports)]
    use ::hm_exec::__private::Nameless as _;
    #[automatically_derived]
    impl<R> ::hm_exec::__private::ConstNames for Runners<R>
    where
        R: Clone,
    {
        const NAMES: ::hm_exec::__private::Names = ::hm_exec::__private::Names::Many(
            &[
                ::hm_exec::__private::NameOf::<SandboxRunner>::NAMES,
                ::hm_exec::__private::Names::None,
                ::hm_exec::__private::Names::One("vm-big"),
            ],
        );
    }
};
#[automatically_derived]
#[allow(trivial_bounds, clippy::manual_async_fn)]
impl<R> ::hm_exec::__private::RunnerSet for Runners<R>
where
    R: Clone,
    SandboxRunner: ::hm_exec::__private::StepRunner,
    VmRunner<R>: ::hm_exec::__private::StepRunner,
    vm::Big: ::hm_exec::__private::StepRunner,
{
    fn at(
        &self,
        __index: ::hm_exec::__private::RunnerIndex,
    ) -> ::core::option::Option<
        (&::core::primitive::str, &dyn ::hm_exec::__private::DynStepRunner),
    > {
        ::hm_exec::__private::at(
            ::hm_exec::__private::cons(
                <SandboxRunner as ::hm_exec::__private::StepRunner>::NAME,
                &self.sandbox,
                ::hm_exec::__private::cons(
                    <VmRunner<R> as ::hm_exec::__private::StepRunner>::NAME,
                    &self.vm,
                    ::hm_exec::__private::cons(
                        "vm-big",
                        &self.big,
                        ::hm_exec::__private::NIL,
                    ),
                ),
            ),
            __index,
        )
    }
    fn default_index(
        &self,
    ) -> ::core::option::Option<::hm_exec::__private::RunnerIndex> {
        ::core::option::Option::Some(::hm_exec::__private::RunnerIndex(0))
    }
    fn runner_count(&self) -> ::core::primitive::usize {
        3
    }
    fn dispatch(
        &self,
        __index: ::hm_exec::__private::RunnerIndex,
        __ctx: &::hm_exec::__private::StepContext,
        __input: ::hm_exec::__private::ExecutorInput,
    ) -> impl ::core::future::Future<
        Output = ::core::result::Result<
            ::hm_exec::__private::StepResult,
            ::hm_exec::__private::RunnerError,
        >,
    > + ::core::marker::Send {
        async move {
            match __index.0 {
                0 => {
                    ::hm_exec::__private::StepRunner::execute(
                            &self.sandbox,
                            __ctx,
                            __input,
                        )
                        .await
                }
                1 => {
                    ::hm_exec::__private::StepRunner::execute(&self.vm, __ctx, __input)
                        .await
                }
                2 => {
                    ::hm_exec::__private::StepRunner::execute(&self.big, __ctx, __input)
                        .await
                }
                _ => {
                    ::core::result::Result::Err(
                        ::hm_exec::__private::no_such_runner(__index),
                    )
                }
            }
        }
    }
    fn into_registry(self) -> ::hm_exec::__private::RunnerRegistry {
        let __default = ::core::option::Option::Some(
            ::hm_exec::__private::RunnerIndex(0),
        );
        let Self { sandbox: __runner_0, vm: __runner_1, big: __runner_2 } = self;
        ::hm_exec::__private::into_registry(
            ::hm_exec::__private::cons(
                <SandboxRunner as ::hm_exec::__private::StepRunner>::NAME,
                __runner_0,
                ::hm_exec::__private::cons(
                    <VmRunner<R> as ::hm_exec::__private::StepRunner>::NAME,
                    __runner_1,
                    ::hm_exec::__private::cons(
                        "vm-big",
                        __runner_2,
                        ::hm_exec::__private::NIL,
                    ),
                ),
            ),
            __default,
        )
    }
}
