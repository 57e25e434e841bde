//! The struct as it is written: fields, types, attributes.

use std::collections::BTreeSet;

use proc_macro2::{Ident, TokenStream, TokenTree};
use quote::ToTokens;
use syn::{Data, DeriveInput, GenericParam, Generics, Member, Type, spanned::Spanned};

use crate::attr::Attrs;

/// A struct to derive `RunnerSet` for.
pub(crate) struct Set<'a> {
    pub(crate) ident: &'a Ident,
    pub(crate) generics: &'a Generics,
    pub(crate) fields: Vec<Field<'a>>,
    /// The mistakes found so far. The fields are collected nevertheless, so that the next stage finds the
    /// rest.
    pub(crate) mistakes: Vec<syn::Error>,
}

/// A field of the set, which should be a runner, or a set of runners if it is flattened.
pub(crate) struct Field<'a> {
    pub(crate) member: Member,
    pub(crate) ty: &'a Type,
    pub(crate) attrs: Attrs,
    /// Whether the type depends on a parameter of the struct, so that its name is known only where the struct
    /// is used.
    pub(crate) is_generic: bool,
}

impl<'a> Set<'a> {
    /// Reads a struct. `mistakes` are those that were found before.
    ///
    /// # Errors
    /// Returns an error if the input is not a struct.
    pub(crate) fn read(input: &'a DeriveInput, mut mistakes: Vec<syn::Error>) -> Result<Self, Vec<syn::Error>> {
        let kind = match &input.data {
            Data::Struct(data) => return Ok(Self::read_fields(input, &data.fields, mistakes)),
            Data::Enum(data) => data.enum_token.span(),
            Data::Union(data) => data.union_token.span(),
        };
        mistakes.push(syn::Error::new(kind, "a set of runners is a struct with one field per runner"));
        Err(mistakes)
    }

    fn read_fields(input: &'a DeriveInput, fields: &'a syn::Fields, mut mistakes: Vec<syn::Error>) -> Self {
        let parameters = parameters(&input.generics);
        let fields = fields
            .iter()
            .zip(fields.members())
            .map(|(field, member)| Field {
                member,
                ty: &field.ty,
                attrs: Attrs::read(&field.attrs, &mut mistakes),
                is_generic: mentions(field.ty.to_token_stream(), &parameters),
            })
            .collect();
        Self { ident: &input.ident, generics: &input.generics, fields, mistakes }
    }
}

fn parameters(generics: &Generics) -> BTreeSet<&Ident> {
    generics
        .params
        .iter()
        .map(|parameter| match parameter {
            GenericParam::Lifetime(lifetime) => &lifetime.lifetime.ident,
            GenericParam::Type(parameter) => &parameter.ident,
            GenericParam::Const(parameter) => &parameter.ident,
        })
        .collect()
}

/// Returns whether a type's tokens contain a parameter's name. A path segment of the same name counts, too;
/// its checks are then left to the engine, which repeats them.
fn mentions(tokens: TokenStream, parameters: &BTreeSet<&Ident>) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(ident) => parameters.contains(&ident),
        TokenTree::Group(group) => mentions(group.stream(), parameters),
        TokenTree::Punct(_) | TokenTree::Literal(_) => false,
    })
}
