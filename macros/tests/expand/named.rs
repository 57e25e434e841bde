const _: () = {
    #[allow(unused_imports)]
    use ::hm_exec::__private::Nameless as _;
    ::core::assert!(
        ! ::hm_exec::__private::is_bad(::hm_exec::__private::NameOf:: < SandboxRunner >
        ::NAME),
        "the runner of field `sandbox` has a bad name; use lowercase letters, digits, `-` and `_`"
    );
};
const _: () = {
    #[allow(unused_imports)]
    use ::hm_exec::__private::Nameless as _;
    ::core::assert!(
        ! ::hm_exec::__private::collide(::hm_exec::__private::NameOf:: < SandboxRunner >
        ::NAME, ::core::option::Option::Some("vm-big")),
        "fields `sandbox` and `big` have runners of one name; rename one with `#[runner(name = \"...\")]`"
    );
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
    fn descriptors(&self) -> ::std::vec::Vec<::hm_exec::__private::RunnerDescriptor> {
        ::hm_exec::__private::descriptors(
            ::hm_exec::__private::cons(
                <SandboxRunner as ::hm_exec::__private::StepRunner>::NAME,
                true,
                &self.sandbox,
                ::hm_exec::__private::cons(
                    <VmRunner<R> as ::hm_exec::__private::StepRunner>::NAME,
                    false,
                    &self.vm,
                    ::hm_exec::__private::cons(
                        "vm-big",
                        false,
                        &self.big,
                        ::hm_exec::__private::NIL,
                    ),
                ),
            ),
        )
    }
    fn index_of(
        &self,
        __name: &::core::primitive::str,
    ) -> ::core::option::Option<::hm_exec::__private::RunnerIndex> {
        ::hm_exec::__private::position(
            const {
                &[
                    <SandboxRunner as ::hm_exec::__private::StepRunner>::NAME,
                    <VmRunner<R> as ::hm_exec::__private::StepRunner>::NAME,
                    "vm-big",
                ]
            },
            __name,
        )
    }
    fn default_index(
        &self,
    ) -> ::core::option::Option<::hm_exec::__private::RunnerIndex> {
        ::core::option::Option::Some(::hm_exec::__private::RunnerIndex(0))
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
    fn probe(
        &self,
        __index: ::hm_exec::__private::RunnerIndex,
    ) -> impl ::core::future::Future<
        Output = ::hm_exec::__private::Probe,
    > + ::core::marker::Send {
        ::hm_exec::__private::probe(
            ::hm_exec::__private::cons(
                <SandboxRunner as ::hm_exec::__private::StepRunner>::NAME,
                true,
                &self.sandbox,
                ::hm_exec::__private::cons(
                    <VmRunner<R> as ::hm_exec::__private::StepRunner>::NAME,
                    false,
                    &self.vm,
                    ::hm_exec::__private::cons(
                        "vm-big",
                        false,
                        &self.big,
                        ::hm_exec::__private::NIL,
                    ),
                ),
            ),
            __index,
        )
    }
    fn probe_all(
        &self,
    ) -> impl ::core::future::Future<
        Output = ::std::vec::Vec<::hm_exec::__private::Probe>,
    > + ::core::marker::Send {
        ::hm_exec::__private::probe_all(
            ::hm_exec::__private::cons(
                <SandboxRunner as ::hm_exec::__private::StepRunner>::NAME,
                true,
                &self.sandbox,
                ::hm_exec::__private::cons(
                    <VmRunner<R> as ::hm_exec::__private::StepRunner>::NAME,
                    false,
                    &self.vm,
                    ::hm_exec::__private::cons(
                        "vm-big",
                        false,
                        &self.big,
                        ::hm_exec::__private::NIL,
                    ),
                ),
            ),
        )
    }
    fn cache_identity(
        &self,
        __index: ::hm_exec::__private::RunnerIndex,
        __image: ::core::option::Option<&::core::primitive::str>,
    ) -> impl ::core::future::Future<
        Output = ::core::result::Result<
            ::core::option::Option<::hm_exec::__private::CacheIdentity>,
            ::hm_exec::__private::RunnerError,
        >,
    > + ::core::marker::Send {
        ::hm_exec::__private::cache_identity(
            ::hm_exec::__private::cons(
                <SandboxRunner as ::hm_exec::__private::StepRunner>::NAME,
                true,
                &self.sandbox,
                ::hm_exec::__private::cons(
                    <VmRunner<R> as ::hm_exec::__private::StepRunner>::NAME,
                    false,
                    &self.vm,
                    ::hm_exec::__private::cons(
                        "vm-big",
                        false,
                        &self.big,
                        ::hm_exec::__private::NIL,
                    ),
                ),
            ),
            __index,
            __image,
        )
    }
    fn reap(
        &self,
        __index: ::hm_exec::__private::RunnerIndex,
        __snapshots: ::std::vec::Vec<::hm_exec::__private::SnapshotRef>,
    ) -> impl ::core::future::Future<Output = ()> + ::core::marker::Send {
        ::hm_exec::__private::reap(
            ::hm_exec::__private::cons(
                <SandboxRunner as ::hm_exec::__private::StepRunner>::NAME,
                true,
                &self.sandbox,
                ::hm_exec::__private::cons(
                    <VmRunner<R> as ::hm_exec::__private::StepRunner>::NAME,
                    false,
                    &self.vm,
                    ::hm_exec::__private::cons(
                        "vm-big",
                        false,
                        &self.big,
                        ::hm_exec::__private::NIL,
                    ),
                ),
            ),
            __index,
            __snapshots,
        )
    }
    fn into_registry(self) -> ::hm_exec::__private::RunnerRegistry {
        let Self { sandbox: __runner_0, vm: __runner_1, big: __runner_2 } = self;
        ::hm_exec::__private::into_registry(
            ::hm_exec::__private::cons(
                <SandboxRunner as ::hm_exec::__private::StepRunner>::NAME,
                true,
                __runner_0,
                ::hm_exec::__private::cons(
                    <VmRunner<R> as ::hm_exec::__private::StepRunner>::NAME,
                    false,
                    __runner_1,
                    ::hm_exec::__private::cons(
                        "vm-big",
                        false,
                        __runner_2,
                        ::hm_exec::__private::NIL,
                    ),
                ),
            ),
        )
    }
}
