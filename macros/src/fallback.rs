//! The expansion of an invalid struct: the mistakes, and an implementation of the trait, so that code that
//! uses the set causes no further errors.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{DeriveInput, parse_quote};

pub(crate) fn expand(input: &DeriveInput, mistakes: &[syn::Error]) -> TokenStream {
    let mistakes = mistakes.iter().map(syn::Error::to_compile_error);
    let ident = &input.ident;
    let mut generics = input.generics.clone();
    generics.make_where_clause().predicates.push(parse_quote!(
        Self: 'static + ::core::marker::Send + ::core::marker::Sync + ::core::fmt::Debug
    ));
    let (impl_generics, ty_generics, where_clause) = generics.split_for_impl();
    quote! {
        #(#mistakes)*

        #[automatically_derived]
        #[allow(trivial_bounds)]
        impl #impl_generics ::hm_exec::__private::RunnerSet for #ident #ty_generics #where_clause {
            fn descriptors(&self) -> ::std::vec::Vec<::hm_exec::__private::RunnerDescriptor> {
                ::std::vec::Vec::new()
            }

            fn index_of(&self, _: &::core::primitive::str) -> ::core::option::Option<::hm_exec::__private::RunnerIndex> {
                ::core::option::Option::None
            }

            fn default_index(&self) -> ::core::option::Option<::hm_exec::__private::RunnerIndex> {
                ::core::option::Option::None
            }

            async fn dispatch(
                &self,
                __index: ::hm_exec::__private::RunnerIndex,
                _: &::hm_exec::__private::StepContext,
                _: ::hm_exec::__private::ExecutorInput,
            ) -> ::core::result::Result<::hm_exec::__private::StepResult, ::hm_exec::__private::RunnerError> {
                ::core::result::Result::Err(::hm_exec::__private::no_such_runner(__index))
            }

            async fn probe(&self, __index: ::hm_exec::__private::RunnerIndex) -> ::hm_exec::__private::Probe {
                ::hm_exec::__private::probe(::hm_exec::__private::NIL, __index).await
            }

            async fn probe_all(&self) -> ::std::vec::Vec<::hm_exec::__private::Probe> {
                ::std::vec::Vec::new()
            }

            async fn cache_identity(
                &self,
                __index: ::hm_exec::__private::RunnerIndex,
                __image: ::core::option::Option<&::core::primitive::str>,
            ) -> ::core::result::Result<
                ::core::option::Option<::hm_exec::__private::CacheIdentity>,
                ::hm_exec::__private::RunnerError,
            > {
                ::hm_exec::__private::cache_identity(::hm_exec::__private::NIL, __index, __image).await
            }

            async fn reap(
                &self,
                _: ::hm_exec::__private::RunnerIndex,
                _: ::std::vec::Vec<::hm_exec::__private::SnapshotRef>,
            ) {}

            fn into_registry(self) -> ::hm_exec::__private::RunnerRegistry {
                ::hm_exec::__private::RunnerRegistry::new()
            }
        }
    }
}
