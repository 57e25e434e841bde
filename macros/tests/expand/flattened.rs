const _: () = {
    #[allow(unused_imports)]
    use facade::hm_exec::__private::Nameless as _;
    ::core::assert!(
        ! facade::hm_exec::__private::is_bad(facade::hm_exec::__private::NameOf:: <
        VmRunner > ::NAMES),
        "the runner of field `vm` has a bad name; use lowercase letters, digits, `-` and `_`"
    );
};
const _: () = {
    #[allow(unused_imports)]
    use facade::hm_exec::__private::Nameless as _;
    ::core::assert!(
        ! facade::hm_exec::__private::collide(facade::hm_exec::__private::NameOf:: <
        VmRunner > ::NAMES, facade::hm_exec::__private::NamesOf:: < RunnerRegistry >
        ::NAMES),
        "fields `vm` and `plugins` have runners of one name; rename one with `#[runner(name = \"...\")]`"
    );
};
const _: () = {
    #[allow(unused_imports)]
    use facade::hm_exec::__private::Nameless as _;
    #[automatically_derived]
    impl<S> facade::hm_exec::__private::ConstNames for Runners<S> {
        const NAMES: facade::hm_exec::__private::Names = facade::hm_exec::__private::Names::Many(
            &[
                facade::hm_exec::__private::NameOf::<VmRunner>::NAMES,
                facade::hm_exec::__private::Names::None,
                facade::hm_exec::__private::NamesOf::<RunnerRegistry>::NAMES,
            ],
        );
    }
};
#[automatically_derived]
#[allow(trivial_bounds, clippy::manual_async_fn)]
impl<S> facade::hm_exec::__private::RunnerSet for Runners<S>
where
    VmRunner: facade::hm_exec::__private::StepRunner,
    S: facade::hm_exec::__private::RunnerSet,
    RunnerRegistry: facade::hm_exec::__private::RunnerSet,
{
    fn at(
        &self,
        __index: facade::hm_exec::__private::RunnerIndex,
    ) -> ::core::option::Option<
        (&::core::primitive::str, &dyn facade::hm_exec::__private::DynStepRunner),
    > {
        facade::hm_exec::__private::at(
            facade::hm_exec::__private::cons(
                <VmRunner as facade::hm_exec::__private::StepRunner>::NAME,
                &self.vm,
                facade::hm_exec::__private::flatten(
                    &self.library,
                    facade::hm_exec::__private::flatten(
                        &self.plugins,
                        facade::hm_exec::__private::NIL,
                    ),
                ),
            ),
            __index,
        )
    }
    fn default_index(
        &self,
    ) -> ::core::option::Option<facade::hm_exec::__private::RunnerIndex> {
        facade::hm_exec::__private::behind(
            1,
            facade::hm_exec::__private::RunnerSet::default_index(&self.library),
        )
    }
    fn runner_count(&self) -> ::core::primitive::usize {
        1 + facade::hm_exec::__private::RunnerSet::runner_count(&self.library)
            + facade::hm_exec::__private::RunnerSet::runner_count(&self.plugins)
    }
    fn dispatch(
        &self,
        __index: facade::hm_exec::__private::RunnerIndex,
        __ctx: &facade::hm_exec::__private::StepContext,
        __input: facade::hm_exec::__private::ExecutorInput,
    ) -> impl ::core::future::Future<
        Output = ::core::result::Result<
            facade::hm_exec::__private::StepResult,
            facade::hm_exec::__private::RunnerError,
        >,
    > + ::core::marker::Send {
        async move {
            match __index.0 {
                0 => {
                    facade::hm_exec::__private::StepRunner::execute(
                            &self.vm,
                            __ctx,
                            __input,
                        )
                        .await
                }
                _ => {
                    match facade::hm_exec::__private::nested(
                        __index,
                        1,
                        [
                            facade::hm_exec::__private::RunnerSet::runner_count(
                                &self.library,
                            ),
                            facade::hm_exec::__private::RunnerSet::runner_count(
                                &self.plugins,
                            ),
                        ],
                    ) {
                        ::core::option::Option::Some((0, __index)) => {
                            facade::hm_exec::__private::RunnerSet::dispatch(
                                    &self.library,
                                    __index,
                                    __ctx,
                                    __input,
                                )
                                .await
                        }
                        ::core::option::Option::Some((1, __index)) => {
                            facade::hm_exec::__private::RunnerSet::dispatch(
                                    &self.plugins,
                                    __index,
                                    __ctx,
                                    __input,
                                )
                                .await
                        }
                        _ => {
                            ::core::result::Result::Err(
                                facade::hm_exec::__private::no_such_runner(__index),
                            )
                        }
                    }
                }
            }
        }
    }
    fn into_registry(self) -> facade::hm_exec::__private::RunnerRegistry {
        let __default = facade::hm_exec::__private::behind(
            1,
            facade::hm_exec::__private::RunnerSet::default_index(&self.library),
        );
        let Self { vm: __runner_0, library: __runner_1, plugins: __runner_2 } = self;
        facade::hm_exec::__private::into_registry(
            facade::hm_exec::__private::cons(
                <VmRunner as facade::hm_exec::__private::StepRunner>::NAME,
                __runner_0,
                facade::hm_exec::__private::flatten(
                    __runner_1,
                    facade::hm_exec::__private::flatten(
                        __runner_2,
                        facade::hm_exec::__private::NIL,
                    ),
                ),
            ),
            __default,
        )
    }
}
