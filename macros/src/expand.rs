//! Generates the implementation; cannot fail. All items are named by absolute paths, and bindings begin with
//! two underscores, because a constant of the user's with the name of a binding would turn it into a pattern.

use proc_macro2::{Ident, Literal, Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::{Generics, parse_quote_spanned, spanned::Spanned};

use crate::valid::{Runner, Set};

/// Expands a valid set. `hm` is the module of the names that the expansion uses.
pub(crate) fn expand(set: &Set<'_>, hm: &TokenStream) -> TokenStream {
    let ident = set.ident;
    let generics = bounded(set, hm);
    let (impl_generics, ty_generics, where_clause) = generics.split_for_impl();

    let assertions = assert_names(&set.runners, hm);
    let names = names(set, hm);
    let count = sum_of_counts(&set.runners, hm);
    let default = default_index(set, hm);
    let dispatch = dispatch(set, hm);
    let visit = list(set, hm, |_, runner| {
        let member = &runner.member;
        quote!(&self.#member)
    });
    let bindings: Vec<Ident> = (0..set.runners.len()).map(|index| format_ident!("__runner_{index}")).collect();
    let members = set.runners.iter().map(|runner| &runner.member);
    let take = list(set, hm, |index, _| {
        let binding = &bindings[index];
        quote!(#binding)
    });

    quote! {
        #assertions
        #names

        #[automatically_derived]
        #[allow(trivial_bounds, clippy::manual_async_fn)]
        impl #impl_generics #hm::RunnerSet for #ident #ty_generics #where_clause {
            fn at(
                &self,
                __index: #hm::RunnerIndex,
            ) -> ::core::option::Option<(&::core::primitive::str, &dyn #hm::DynStepRunner)> {
                #hm::at(#visit, __index)
            }

            fn default_index(&self) -> ::core::option::Option<#hm::RunnerIndex> {
                #default
            }

            fn runner_count(&self) -> ::core::primitive::usize {
                #count
            }

            fn dispatch(
                &self,
                __index: #hm::RunnerIndex,
                __ctx: &#hm::StepContext,
                __input: #hm::ExecutorInput,
            ) -> impl ::core::future::Future<
                Output = ::core::result::Result<#hm::StepResult, #hm::RunnerError>,
            > + ::core::marker::Send {
                async move { #dispatch }
            }

            fn into_registry(self) -> #hm::RunnerRegistry {
                let __default = #default;
                let Self { #(#members: #bindings),* } = self;
                #hm::into_registry(#take, __default)
            }
        }
    }
}

/// Returns the struct's generics, with a bound that each field is a runner, or a set of runners. Because of
/// the bound, a field that is neither causes one error, at its type, and not one for each use.
fn bounded(set: &Set<'_>, hm: &TokenStream) -> Generics {
    let mut generics = set.generics.clone();
    let predicates = &mut generics.make_where_clause().predicates;
    for runner in &set.runners {
        let ty = runner.ty;
        predicates.push(match runner.is_flattened {
            true => parse_quote_spanned!(ty.span()=> #ty: #hm::RunnerSet),
            false => parse_quote_spanned!(ty.span()=> #ty: #hm::StepRunner),
        });
    }
    generics
}

/// Returns the body of `dispatch`: a flat match over the runners, and below it one over the sets.
fn dispatch(set: &Set<'_>, hm: &TokenStream) -> TokenStream {
    let (runners, sets) = set.runners.split_at(plain_count(&set.runners));
    let arms = runners.iter().enumerate().map(|(index, runner)| {
        let (index, member) = (Literal::usize_unsuffixed(index), &runner.member);
        quote!(#index => #hm::StepRunner::execute(&self.#member, __ctx, __input).await,)
    });
    let none = quote!(::core::result::Result::Err(#hm::no_such_runner(__index)));
    let rest = if sets.is_empty() {
        none
    } else {
        let counts = sets.iter().map(|nested| count(nested, hm));
        let arms = sets.iter().enumerate().map(|(index, nested)| {
            let (index, member) = (Literal::usize_unsuffixed(index), &nested.member);
            quote! {
                ::core::option::Option::Some((#index, __index)) => {
                    #hm::RunnerSet::dispatch(&self.#member, __index, __ctx, __input).await
                }
            }
        });
        let first = Literal::usize_unsuffixed(runners.len());
        quote! {
            match #hm::nested(__index, #first, [#(#counts),*]) {
                #(#arms)*
                _ => #none,
            }
        }
    };
    quote! {
        match __index.0 {
            #(#arms)*
            _ => #rest,
        }
    }
}

/// Returns the index of the default. That of a flattened set is behind those of the fields before.
fn default_index(set: &Set<'_>, hm: &TokenStream) -> TokenStream {
    let Some(default) = set.default else { return quote!(::core::option::Option::None) };
    let (before, runner) = (&set.runners[..default], &set.runners[default]);
    if runner.is_flattened {
        let (before, member) = (sum_of_counts(before, hm), &runner.member);
        return quote!(#hm::behind(#before, #hm::RunnerSet::default_index(&self.#member)));
    }
    let index = Literal::usize_unsuffixed(default);
    quote!(::core::option::Option::Some(#hm::RunnerIndex(#index)))
}

/// Returns the number of runners of all these fields.
fn sum_of_counts(runners: &[Runner<'_>], hm: &TokenStream) -> TokenStream {
    let plain = plain_count(runners);
    let counts = runners[plain..].iter().map(|nested| count(nested, hm));
    if plain == 0 && !runners.is_empty() {
        return quote!(#(#counts)+*);
    }
    let plain = Literal::usize_unsuffixed(plain);
    quote!(#plain #(+ #counts)*)
}

/// Returns the number of fields that are runners. They come first.
fn plain_count(runners: &[Runner<'_>]) -> usize {
    runners.partition_point(|runner| !runner.is_flattened)
}

/// Returns the number of runners of a flattened set.
fn count(nested: &Runner<'_>, hm: &TokenStream) -> TokenStream {
    let member = &nested.member;
    quote!(#hm::RunnerSet::runner_count(&self.#member))
}

/// Returns the HList of the set, first index first, with what `runner` returns for each field.
fn list(set: &Set<'_>, hm: &TokenStream, runner: impl Fn(usize, &Runner<'_>) -> TokenStream) -> TokenStream {
    set.runners.iter().enumerate().rev().fold(quote!(#hm::NIL), |tail, (index, field)| {
        let runner = runner(index, field);
        if field.is_flattened {
            return quote!(#hm::flatten(#runner, #tail));
        }
        let name = name(field, hm);
        quote!(#hm::cons(#name, #runner, #tail))
    })
}

fn name(runner: &Runner<'_>, hm: &TokenStream) -> TokenStream {
    let ty = runner.ty;
    match &runner.name {
        Some(name) => quote!(#name),
        None => quote!(<#ty as #hm::StepRunner>::NAME),
    }
}

/// Generates the constant names of the set, which a set around it compares with its own. They do not need the
/// bounds that the fields are runners.
fn names(set: &Set<'_>, hm: &TokenStream) -> TokenStream {
    let ident = set.ident;
    let (impl_generics, ty_generics, where_clause) = set.generics.split_for_impl();
    let names = set.runners.iter().map(|runner| match runner.is_name_generic {
        true => quote!(#hm::Names::None),
        false => const_names(runner, hm),
    });
    quote! {
        const _: () = {
            #[allow(unused_imports)]
            use #hm::Nameless as _;
            #[automatically_derived]
            impl #impl_generics #hm::ConstNames for #ident #ty_generics #where_clause {
                const NAMES: #hm::Names = #hm::Names::Many(&[#(#names),*]);
            }
        };
    }
}

/// Generates assertions that `cargo check` evaluates: all names differ, and each is well-formed. They are not
/// generic, because a generic assertion fails only where it is instantiated. Names that depend on a parameter
/// are checked by the engine.
fn assert_names(runners: &[Runner<'_>], hm: &TokenStream) -> TokenStream {
    let known: Vec<&Runner<'_>> = runners.iter().filter(|runner| !runner.is_name_generic).collect();
    let assertions = known.iter().enumerate().map(|(index, runner)| {
        let span = runner.name_span().resolved_at(Span::mixed_site());
        let names = const_names(runner, hm);
        let well_formed = (runner.name.is_none() && !runner.is_flattened).then(|| {
            let message = format!(
                "the runner of field `{}` has a bad name; use lowercase letters, digits, `-` and `_`",
                runner.field_name()
            );
            quote_spanned!(span=> ::core::assert!(!#hm::is_bad(#names), #message);)
        });
        let distinct =
            known[..index].iter().filter(|earlier| !(earlier.name.is_some() && runner.name.is_some())).map(|earlier| {
                let message = format!(
                    "fields `{}` and `{}` have runners of one name; rename one with `#[runner(name = \"...\")]`",
                    earlier.field_name(),
                    runner.field_name(),
                );
                let earlier = const_names(earlier, hm);
                quote_spanned!(span=> ::core::assert!(!#hm::collide(#earlier, #names), #message);)
            });
        quote! {
            const _: () = {
                #[allow(unused_imports)]
                use #hm::Nameless as _;
                #well_formed
                #(#distinct)*
            };
        }
    });
    quote!(#(#assertions)*)
}

fn const_names(runner: &Runner<'_>, hm: &TokenStream) -> TokenStream {
    let ty = runner.ty;
    match &runner.name {
        Some(name) => quote!(#hm::Names::One(#name)),
        None if runner.is_flattened => quote!(#hm::NamesOf::<#ty>::NAMES),
        None => quote!(#hm::NameOf::<#ty>::NAMES),
    }
}
