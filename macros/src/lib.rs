//! The derive macro behind `hm_exec::RunnerSet`. Its documentation is on the re-export in `hm_exec`.
//!
//! A struct passes through `ast` (syntax) → `valid` (semantics; reports all mistakes at once, each at its
//! token) → `expand`, which cannot fail. `attr` reads `#[runner(..)]`. If there are mistakes, `fallback`
//! still implements the trait, so that its absence causes no further errors. The crate does not know what a
//! runner is; that is defined by the types that the generated code names.

mod ast;
mod attr;
mod expand;
mod fallback;
#[cfg(test)]
mod golden;
mod valid;

use proc_macro2::TokenStream;
use syn::{DeriveInput, parse_macro_input};

#[expect(missing_docs, reason = "documented where hm_exec re-exports it")]
#[proc_macro_derive(RunnerSet, attributes(runner))]
pub fn derive_runner_set(input: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    derive(&input).into()
}

fn derive(input: &DeriveInput) -> TokenStream {
    let mut mistakes = Vec::new();
    let private = attr::SetAttrs::read(&input.attrs, &mut mistakes).private();
    match ast::Set::read(input, mistakes).and_then(valid::Set::check) {
        Ok(set) => expand::expand(&set, &private),
        Err(mistakes) => fallback::expand(input, &private, &mistakes),
    }
}
