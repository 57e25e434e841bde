//! The expansion of an invalid struct: the mistakes, and an implementation of the trait, so that code that
//! uses the set causes no further errors.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{DeriveInput, parse_quote};

pub(crate) fn expand(input: &DeriveInput, hm: &TokenStream, mistakes: &[syn::Error]) -> TokenStream {
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
        impl #impl_generics #hm::RunnerSet for #ident #ty_generics #where_clause {
            fn at(
                &self,
                _: #hm::RunnerIndex,
            ) -> ::core::option::Option<(&::core::primitive::str, &dyn #hm::DynStepRunner)> {
                ::core::option::Option::None
            }

            fn default_index(&self) -> ::core::option::Option<#hm::RunnerIndex> {
                ::core::option::Option::None
            }

            async fn dispatch(
                &self,
                __index: #hm::RunnerIndex,
                _: &#hm::StepContext,
                _: #hm::ExecutorInput,
            ) -> ::core::result::Result<#hm::StepResult, #hm::RunnerError> {
                ::core::result::Result::Err(#hm::no_such_runner(__index))
            }

            fn into_registry(self) -> #hm::RunnerRegistry {
                #hm::RunnerRegistry::new()
            }
        }
    }
}
