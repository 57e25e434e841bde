const _: () = {
    #[allow(unused_imports)]
    use ::hm_exec::__private::Nameless as _;
    ::core::assert!(
        ! ::hm_exec::__private::is_bad(::hm_exec::__private::NameOf:: < Noop > ::NAME),
        "the runner of field `0` has a bad name; use lowercase letters, digits, `-` and `_`"
    );
};
#[automatically_derived]
#[allow(trivial_bounds, clippy::manual_async_fn)]
impl ::hm_exec::__private::RunnerSet for Only
where
    Noop: ::hm_exec::__private::StepRunner,
{
    fn descriptors(&self) -> ::std::vec::Vec<::hm_exec::__private::RunnerDescriptor> {
        ::hm_exec::__private::descriptors(
            ::hm_exec::__private::cons(
                <Noop as ::hm_exec::__private::StepRunner>::NAME,
                true,
                &self.0,
                ::hm_exec::__private::NIL,
            ),
        )
    }
    fn index_of(
        &self,
        __name: &::core::primitive::str,
    ) -> ::core::option::Option<::hm_exec::__private::RunnerIndex> {
        ::hm_exec::__private::position(
            const { &[<Noop as ::hm_exec::__private::StepRunner>::NAME] },
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
    fn probe(
        &self,
        __index: ::hm_exec::__private::RunnerIndex,
    ) -> impl ::core::future::Future<
        Output = ::hm_exec::__private::Probe,
    > + ::core::marker::Send {
        ::hm_exec::__private::probe(
            ::hm_exec::__private::cons(
                <Noop as ::hm_exec::__private::StepRunner>::NAME,
                true,
                &self.0,
                ::hm_exec::__private::NIL,
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
                <Noop as ::hm_exec::__private::StepRunner>::NAME,
                true,
                &self.0,
                ::hm_exec::__private::NIL,
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
                <Noop as ::hm_exec::__private::StepRunner>::NAME,
                true,
                &self.0,
                ::hm_exec::__private::NIL,
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
                <Noop as ::hm_exec::__private::StepRunner>::NAME,
                true,
                &self.0,
                ::hm_exec::__private::NIL,
            ),
            __index,
            __snapshots,
        )
    }
    fn into_registry(self) -> ::hm_exec::__private::RunnerRegistry {
        let Self { 0: __runner_0 } = self;
        ::hm_exec::__private::into_registry(
            ::hm_exec::__private::cons(
                <Noop as ::hm_exec::__private::StepRunner>::NAME,
                true,
                __runner_0,
                ::hm_exec::__private::NIL,
            ),
        )
    }
}
