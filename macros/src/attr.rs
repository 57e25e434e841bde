//! `#[runner(..)]` on a struct, and on a field.

use proc_macro2::{Span, TokenStream};
use quote::quote;
use syn::{Attribute, LitStr, Meta, Path, meta::ParseNestedMeta, spanned::Spanned};

/// The attributes of the struct.
#[derive(Default)]
pub(crate) struct SetAttrs {
    /// The path of the crate `hm_exec`, if it is not at the root.
    krate: Option<Path>,
}

impl SetAttrs {
    /// Reads the attributes of a struct. Mistakes are added to `mistakes`.
    pub(crate) fn read(attributes: &[Attribute], mistakes: &mut Vec<syn::Error>) -> Self {
        let mut attrs = Self::default();
        read(attributes, EXPECTED_ON_STRUCT, mistakes, |meta, mistakes| attrs.read_key(meta, mistakes));
        attrs
    }

    /// Returns the module of the names that generated code uses.
    pub(crate) fn private(&self) -> TokenStream {
        match &self.krate {
            Some(path) => quote!(#path::__private),
            None => quote!(::hm_exec::__private),
        }
    }

    fn read_key(&mut self, meta: &ParseNestedMeta<'_>, mistakes: &mut Vec<syn::Error>) -> syn::Result<()> {
        if meta.path.is_ident("crate") {
            let text: LitStr = meta.value()?.parse()?;
            let Ok(path) = text.parse_with(Path::parse_mod_style) else {
                let message = "expected the path of the crate `hm_exec`, such as `\"::facade::hm_exec\"`";
                mistakes.push(syn::Error::new(text.span(), message));
                return Ok(());
            };
            if self.krate.replace(path).is_some() {
                mistakes.push(meta.error("duplicate `crate`"));
            }
            return Ok(());
        }
        let belongs = ["default", "flatten", "name"].into_iter().find(|key| meta.path.is_ident(key));
        let message = match belongs {
            Some(key) => format!("`{key}` belongs on a field"),
            None => format!("unknown key; {EXPECTED_ON_STRUCT}"),
        };
        Err(syn::Error::new(meta.path.span(), message))
    }
}

/// The attributes of a field.
#[derive(Default)]
pub(crate) struct Attrs {
    /// The position of `default`.
    pub(crate) default: Option<Span>,
    /// The position of `flatten`.
    pub(crate) flatten: Option<Span>,
    /// The name that replaces the type's.
    pub(crate) name: Option<LitStr>,
}

impl Attrs {
    /// Reads the attributes of a field. Mistakes are added to `mistakes`.
    pub(crate) fn read(attributes: &[Attribute], mistakes: &mut Vec<syn::Error>) -> Self {
        let mut attrs = Self::default();
        read(attributes, EXPECTED, mistakes, |meta, mistakes| attrs.read_key(meta, mistakes));
        if let (Some(_), Some(name)) = (attrs.flatten, &attrs.name) {
            let message = "the runners of a flattened set keep their names; rename them where they are fields";
            mistakes.push(syn::Error::new(name.span(), message));
        }
        attrs
    }

    /// Returns an error only if the rest of the attribute cannot be read either.
    fn read_key(&mut self, meta: &ParseNestedMeta<'_>, mistakes: &mut Vec<syn::Error>) -> syn::Result<()> {
        if meta.path.is_ident("default") {
            if self.default.replace(meta.path.span()).is_some() {
                mistakes.push(meta.error("duplicate `default`"));
            }
        } else if meta.path.is_ident("flatten") {
            if self.flatten.replace(meta.path.span()).is_some() {
                mistakes.push(meta.error("duplicate `flatten`"));
            }
        } else if meta.path.is_ident("name") {
            let name: LitStr = meta.value()?.parse()?;
            if !is_runner_name(&name.value()) {
                let message =
                    format!("invalid runner name {:?}; use lowercase letters, digits, `-` and `_`", name.value());
                mistakes.push(syn::Error::new(name.span(), message));
            }
            if self.name.replace(name).is_some() {
                mistakes.push(meta.error("duplicate `name`"));
            }
        } else if meta.path.is_ident("crate") {
            return Err(syn::Error::new(meta.path.span(), "`crate` belongs on the struct"));
        } else {
            return Err(syn::Error::new(meta.path.span(), format!("unknown key; {EXPECTED}")));
        }
        Ok(())
    }
}

const EXPECTED: &str = "expected `default`, `flatten` or `name = \"...\"`";
const EXPECTED_ON_STRUCT: &str = "expected `crate = \"...\"`";

/// Reads each key of each `#[runner(..)]`.
fn read(
    attributes: &[Attribute],
    expected: &str,
    mistakes: &mut Vec<syn::Error>,
    mut read_key: impl FnMut(&ParseNestedMeta<'_>, &mut Vec<syn::Error>) -> syn::Result<()>,
) {
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("runner")) {
        let read = match &attribute.meta {
            Meta::List(list) if !list.tokens.is_empty() => {
                attribute.parse_nested_meta(|meta| read_key(&meta, mistakes))
            }
            meta => Err(syn::Error::new_spanned(meta, expected)),
        };
        mistakes.extend(read.err());
    }
}

/// Equivalent to `hm_exec::runner::is_runner_name`, which this crate cannot depend on.
fn is_runner_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
}
