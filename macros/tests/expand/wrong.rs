::core::compile_error! {
    "a set of runners is a struct with one field per runner"
}
#[automatically_derived]
#[allow(trivial_bounds)]
impl<R> ::hm_exec::__private::RunnerSet for Runners<R>
where
    Self: 'static + ::core::marker::Send + ::core::marker::Sync + ::core::fmt::Debug,
{
    fn at(
        &self,
        _: ::hm_exec::__private::RunnerIndex,
    ) -> ::core::option::Option<
        (&::core::primitive::str, &dyn ::hm_exec::__private::DynStepRunner),
    > {
        ::core::option::Option::None
    }
    fn default_index(
        &self,
    ) -> ::core::option::Option<::hm_exec::__private::RunnerIndex> {
        ::core::option::Option::None
    }
    async fn dispatch(
        &self,
        __index: ::hm_exec::__private::RunnerIndex,
        _: &::hm_exec::__private::StepContext,
        _: ::hm_exec::__private::ExecutorInput,
    ) -> ::core::result::Result<
        ::hm_exec::__private::StepResult,
        ::hm_exec::__private::RunnerError,
    > {
        ::core::result::Result::Err(::hm_exec::__private::no_such_runner(__index))
    }
    fn into_registry(self) -> ::hm_exec::__private::RunnerRegistry {
        ::hm_exec::__private::RunnerRegistry::new()
    }
}
