//! `#[runner(..)]` on a field.

use proc_macro2::Span;
use syn::{Attribute, LitStr, Meta, meta::ParseNestedMeta, spanned::Spanned};

/// The attributes of a field.
#[derive(Default)]
pub(crate) struct Attrs {
    /// The position of `default`.
    pub(crate) default: Option<Span>,
    /// The name that replaces the type's.
    pub(crate) name: Option<LitStr>,
}

impl Attrs {
    /// Reads the attributes of a field. Mistakes are added to `mistakes`.
    pub(crate) fn read(attributes: &[Attribute], mistakes: &mut Vec<syn::Error>) -> Self {
        let mut attrs = Self::default();
        for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("runner")) {
            let read = match &attribute.meta {
                Meta::List(list) if !list.tokens.is_empty() => {
                    attribute.parse_nested_meta(|meta| attrs.read_key(&meta, mistakes))
                }
                meta => Err(syn::Error::new_spanned(meta, EXPECTED)),
            };
            mistakes.extend(read.err());
        }
        attrs
    }

    /// Returns an error only if the rest of the attribute cannot be read either.
    fn read_key(&mut self, meta: &ParseNestedMeta<'_>, mistakes: &mut Vec<syn::Error>) -> syn::Result<()> {
        if meta.path.is_ident("default") {
            if self.default.replace(meta.path.span()).is_some() {
                mistakes.push(meta.error("duplicate `default`"));
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
        } else {
            return Err(syn::Error::new(meta.path.span(), format!("unknown key; {EXPECTED}")));
        }
        Ok(())
    }
}

const EXPECTED: &str = "expected `default` or `name = \"...\"`";

/// Equivalent to `hm_exec::runner::is_runner_name`, which this crate cannot depend on.
fn is_runner_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
}
