//! One thing that a project requests.

use std::fmt::Display;

/// One thing that a project requests beyond the sandbox: a key, its value, and its effect. Consent applies to
/// the key and the value.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Permission {
    key: String,
    value: String,
    is_secret: bool,
    /// The hash of the file's current content, if the value is a file name.
    content: Option<blake3::Hash>,
    effect: &'static str,
}

impl std::fmt::Debug for Permission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Ask").field(&self.line()).finish()
    }
}

impl Permission {
    /// Creates a request that `key` is `value`, with an `effect` described for the user.
    pub(crate) fn new(key: impl Into<String>, value: impl Display, effect: &'static str) -> Self {
        Self { key: key.into(), value: value.to_string(), is_secret: false, content: None, effect }
    }

    /// Creates a request whose value is never shown.
    pub(crate) fn secret(key: impl Into<String>, value: impl Display, effect: &'static str) -> Self {
        Self { is_secret: true, ..Self::new(key, value, effect) }
    }

    /// Makes consent apply to a file's content, too.
    pub(crate) fn with_content(mut self, content: &[u8]) -> Self {
        self.content = Some(blake3::hash(content));
        self
    }

    /// Returns the key alone, or with its value if several requests have the same key.
    pub(crate) fn name(&self) -> String {
        if self.key.starts_with('[') { self.key.clone() } else { self.what() }
    }

    /// Returns the key as it is written in a configuration file, with dots.
    pub(crate) fn dotted_key(&self) -> String {
        self.key.strip_prefix('[').unwrap_or(&self.key).replacen("] ", ".", 1)
    }

    /// Returns the key, and its value unless it is secret.
    pub(crate) fn what(&self) -> String {
        if self.is_secret { self.key.clone() } else { format!("{} = \"{}\"", self.key, self.value) }
    }

    /// Returns the whole request, for the user.
    pub(crate) fn line(&self) -> String {
        format!("{}: {}", self.what(), self.effect)
    }

    /// Returns the digest under which consent is recorded. It covers the values of headers, which cannot be
    /// recovered from it.
    pub(crate) fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        // Each part is preceded by its length, so that the parts cannot be confused.
        for part in ["hm trust 1", &*self.key, &*self.value] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        if let Some(content) = &self.content {
            hasher.update(content.as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consent_is_to_one_key_and_one_value() {
        let digest = |key: &str, value: &str| Permission::new(key, value, "x").digest();
        assert_eq!(digest("a", "b"), Permission::new("a", "b", "said in other words").digest());
        assert_eq!(digest("a", "b"), Permission::secret("a", "b", "x").digest());
        let others = [digest("a", "bc"), digest("ab", "c"), digest("a", ""), digest("", "a")];
        assert!(others.iter().all(|other| *other != digest("a", "b")));
        let content = |bytes: &[u8]| Permission::new("a", "b", "x").with_content(bytes).digest();
        assert!(content(b"1") != content(b"2") && content(b"1") == content(b"1") && content(b"") != digest("a", "b"));
    }

    #[test]
    fn a_secret_is_shown_nowhere() {
        let permission = Permission::secret("[remote] headers.authorization", "s3cret", "sent");
        assert!(
            !format!("{permission:?} {} {} {}", permission.line(), permission.name(), permission.digest())
                .contains("s3cret")
        );
    }
}
