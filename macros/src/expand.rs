//! Generates the implementation; cannot fail. All items are named by absolute paths, and bindings begin with
//! two underscores, because a constant of the user's with the name of a binding would turn it into a pattern.

use proc_macro2::{Ident, Literal, Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::{Generics, parse_quote_spanned, spanned::Spanned};

use crate::valid::{Runner, Set};

pub(crate) fn expand(set: &Set<'_>) -> TokenStream {
    let ident = set.ident;
    let generics = bounded(set);
    let (impl_generics, ty_generics, where_clause) = generics.split_for_impl();

    let assertions = assert_names(&set.runners);
    let default = match set.default {
        Some(index) => {
            let index = Literal::usize_unsuffixed(index);
            quote!(::core::option::Option::Some(::hm_exec::__private::RunnerIndex(#index)))
        }
        None => quote!(::core::option::Option::None),
    };
    let arms = set.runners.iter().enumerate().map(|(index, runner)| {
        let index = Literal::usize_unsuffixed(index);
        let member = &runner.member;
        quote!(#index => ::hm_exec::__private::StepRunner::execute(&self.#member, __ctx, __input).await,)
    });
    let visit = list(set, |_, runner| {
        let member = &runner.member;
        quote!(&self.#member)
    });
    let bindings: Vec<Ident> = (0..set.runners.len()).map(|index| format_ident!("__runner_{index}")).collect();
    let members = set.runners.iter().map(|runner| &runner.member);
    let take = list(set, |index, _| {
        let binding = &bindings[index];
        quote!(#binding)
    });

    quote! {
        #assertions

        #[automatically_derived]
        #[allow(trivial_bounds, clippy::manual_async_fn)]
        impl #impl_generics ::hm_exec::__private::RunnerSet for #ident #ty_generics #where_clause {
            fn at(
                &self,
                __index: ::hm_exec::__private::RunnerIndex,
            ) -> ::core::option::Option<(&::core::primitive::str, &dyn ::hm_exec::__private::DynStepRunner)> {
                ::hm_exec::__private::at(#visit, __index)
            }

            fn default_index(&self) -> ::core::option::Option<::hm_exec::__private::RunnerIndex> {
                #default
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
                        #(#arms)*
                        _ => ::core::result::Result::Err(::hm_exec::__private::no_such_runner(__index)),
                    }
                }
            }

            fn into_registry(self) -> ::hm_exec::__private::RunnerRegistry {
                let Self { #(#members: #bindings),* } = self;
                ::hm_exec::__private::into_registry(#take, #default)
            }
        }
    }
}

/// Returns the struct's generics, with a bound that each field is a runner. Because of the bound, a field
/// that is not a runner causes one error, at its type, and not one for each use.
fn bounded(set: &Set<'_>) -> Generics {
    let mut generics = set.generics.clone();
    let predicates = &mut generics.make_where_clause().predicates;
    for runner in &set.runners {
        let ty = runner.ty;
        predicates.push(parse_quote_spanned!(ty.span()=> #ty: ::hm_exec::__private::StepRunner));
    }
    generics
}

/// Returns the HList of the set, first field first, with what `runner` returns for each.
fn list(set: &Set<'_>, runner: impl Fn(usize, &Runner<'_>) -> TokenStream) -> TokenStream {
    set.runners.iter().enumerate().rev().fold(quote!(::hm_exec::__private::NIL), |tail, (index, field)| {
        let (name, runner) = (name(field), runner(index, field));
        quote!(::hm_exec::__private::cons(#name, #runner, #tail))
    })
}

fn name(runner: &Runner<'_>) -> TokenStream {
    let ty = runner.ty;
    match &runner.name {
        Some(name) => quote!(#name),
        None => quote!(<#ty as ::hm_exec::__private::StepRunner>::NAME),
    }
}

/// Generates assertions that `cargo check` evaluates: all names differ, and each is well-formed. They are not
/// generic, because a generic assertion fails only where it is instantiated. Names that depend on a parameter
/// are checked by the engine.
fn assert_names(runners: &[Runner<'_>]) -> TokenStream {
    let known: Vec<&Runner<'_>> = runners.iter().filter(|runner| !runner.is_name_generic).collect();
    let assertions = known.iter().enumerate().map(|(index, runner)| {
        let span = runner.name_span().resolved_at(Span::mixed_site());
        let name = const_name(runner);
        let well_formed = runner.name.is_none().then(|| {
            let message = format!(
                "the runner of field `{}` has a bad name; use lowercase letters, digits, `-` and `_`",
                runner.field_name()
            );
            quote_spanned!(span=> ::core::assert!(!::hm_exec::__private::is_bad(#name), #message);)
        });
        let distinct =
            known[..index].iter().filter(|earlier| !(earlier.name.is_some() && runner.name.is_some())).map(|earlier| {
                let message = format!(
                    "fields `{}` and `{}` have runners of one name; rename one with `#[runner(name = \"...\")]`",
                    earlier.field_name(),
                    runner.field_name(),
                );
                let earlier = const_name(earlier);
                quote_spanned!(span=> ::core::assert!(!::hm_exec::__private::collide(#earlier, #name), #message);)
            });
        quote! {
            const _: () = {
                #[allow(unused_imports)]
                use ::hm_exec::__private::Nameless as _;
                #well_formed
                #(#distinct)*
            };
        }
    });
    quote!(#(#assertions)*)
}

fn const_name(runner: &Runner<'_>) -> TokenStream {
    let ty = runner.ty;
    match &runner.name {
        Some(name) => quote!(::core::option::Option::Some(#name)),
        None => quote!(::hm_exec::__private::NameOf::<#ty>::NAME),
    }
}
