const _: () = {
    #[allow(unused_imports)]
    use ::hm_exec::__private::Nameless as _;
    ::core::assert!(
        ! ::hm_exec::__private::is_bad(::hm_exec::__private::NameOf:: < Noop > ::NAMES),
        "the runner of field `0` has a bad name; use lowercase letters, digits, `-` and `_`"
    );
};
const _: () = {
    #[allow(unused_imports)]
    use ::hm_exec::__private::Nameless as _;
    #[automatically_derived]
    impl ::hm_exec::__private::ConstNames for Only {
        const NAMES: ::hm_exec::__private::Names = ::hm_exec::__private::Names::Many(
            &[::hm_exec::__private::NameOf::<Noop>::NAMES],
        );
    }
};
#[automatically_derived]
#[allow(trivial_bounds, clippy::manual_async_fn)]
impl ::hm_exec::__private::RunnerSet for Only
where
    Noop: ::hm_exec::__private::StepRunner,
{
    fn at(
        &self,
        __index: ::hm_exec::__private::RunnerIndex,
    ) -> ::core::option::Option<
        (&::core::primitive::str, &dyn ::hm_exec::__private::DynStepRunner),
    > {
        ::hm_exec::__private::at(
            ::hm_exec::__private::cons(
                <Noop as ::hm_exec::__private::StepRunner>::NAME,
                &self.0,
                ::hm_exec::__private::NIL,
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
        1
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
                    ::hm_exec::__private::StepRunner::execute(&self.0, __ctx, __input)
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
        let Self { 0: __runner_0 } = self;
        ::hm_exec::__private::into_registry(
            ::hm_exec::__private::cons(
                <Noop as ::hm_exec::__private::StepRunner>::NAME,
                __runner_0,
                ::hm_exec::__private::NIL,
            ),
            __default,
        )
    }
}
