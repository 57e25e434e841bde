//! A set that has passed all checks that syntax allows.

use std::collections::BTreeMap;

use proc_macro2::{Ident, Span};
use syn::{Generics, LitStr, Member, Type, spanned::Spanned};

use crate::ast;

/// A set that can be expanded: at least one runner, at most one default, and no name twice among those that
/// are written out.
pub(crate) struct Set<'a> {
    pub(crate) ident: &'a Ident,
    pub(crate) generics: &'a Generics,
    /// The fields in the order of their indices: the runners, then the flattened sets.
    pub(crate) runners: Vec<Runner<'a>>,
    /// The position of the default among `runners`.
    pub(crate) default: Option<usize>,
}

/// A field of a set: a runner, or a set of runners.
pub(crate) struct Runner<'a> {
    pub(crate) member: Member,
    pub(crate) ty: &'a Type,
    /// The name, if it replaces that of the type.
    pub(crate) name: Option<LitStr>,
    /// Whether the name, or a name in the set, is known only where the struct is used.
    pub(crate) is_name_generic: bool,
    /// Whether the field is a set, whose runners belong to this one.
    pub(crate) is_flattened: bool,
}

impl<'a> Set<'a> {
    /// Checks a set.
    ///
    /// # Errors
    /// Returns all mistakes, including those found while reading it.
    pub(crate) fn check(set: ast::Set<'a>) -> Result<Self, Vec<syn::Error>> {
        let ast::Set { ident, generics, fields, mut mistakes } = set;
        if fields.is_empty() {
            mistakes.push(syn::Error::new(ident.span(), "a set of runners needs at least one field"));
        }
        let default = check_default(&fields, &mut mistakes);
        check_names(&fields, &mut mistakes);
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let runner = |(position, ast::Field { member, ty, attrs, is_generic })| {
            let runner = Runner {
                member,
                ty,
                is_name_generic: attrs.name.is_none() && is_generic,
                is_flattened: attrs.flatten.is_some(),
                name: attrs.name,
            };
            (runner, default == Some(position))
        };
        let mut runners: Vec<_> = fields.into_iter().enumerate().map(runner).collect();
        runners.sort_by_key(|(runner, _)| runner.is_flattened);
        let default = runners.iter().position(|(_, is_default)| *is_default);
        let runners = runners.into_iter().map(|(runner, _)| runner).collect();
        Ok(Self { ident, generics, runners, default })
    }
}

/// Returns the default: the field that is marked as such, or the only field.
fn check_default(fields: &[ast::Field<'_>], mistakes: &mut Vec<syn::Error>) -> Option<usize> {
    let mut defaults =
        fields.iter().enumerate().filter_map(|(index, field)| field.attrs.default.map(|span| (index, span)));
    let first = defaults.next().map(|(index, _)| index);
    mistakes.extend(defaults.map(|(_, span)| syn::Error::new(span, "this set already has a default; keep one")));
    first.or((fields.len() == 1).then_some(0))
}

fn check_names(fields: &[ast::Field<'_>], mistakes: &mut Vec<syn::Error>) {
    let mut names: BTreeMap<String, Span> = BTreeMap::new();
    for name in fields.iter().filter_map(|field| field.attrs.name.as_ref()) {
        if names.insert(name.value(), name.span()).is_some() {
            let message = format!("another runner of this set is named `{}`", name.value());
            mistakes.push(syn::Error::new(name.span(), message));
        }
    }
}

impl Runner<'_> {
    /// Returns where to report a mistake in the runner's name: at the name if it is written out, else at the
    /// field.
    pub(crate) fn name_span(&self) -> Span {
        match (&self.name, &self.member) {
            (Some(name), _) => name.span(),
            (None, Member::Named(field)) => field.span(),
            (None, Member::Unnamed(_)) => self.ty.span(),
        }
    }

    /// Returns the name of the field, for messages.
    pub(crate) fn field_name(&self) -> String {
        match &self.member {
            Member::Named(field) => field.to_string(),
            Member::Unnamed(index) => index.index.to_string(),
        }
    }
}
