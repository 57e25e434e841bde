//! One thing that a project asks for.

use std::fmt::Display;

/// One thing that a project asks for beyond the sandbox: a key, its value, and what comes of it. Consent is
/// to the key and to the value.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Ask {
    key: String,
    value: String,
    is_secret: bool,
    /// What the file says now, if the value is a file's name.
    content: Option<blake3::Hash>,
    effect: &'static str,
}

impl std::fmt::Debug for Ask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Ask").field(&self.line()).finish()
    }
}

impl Ask {
    /// Makes an ask that `key` is `value`, with an `effect` that people understand.
    pub(crate) fn new(key: impl Into<String>, value: impl Display, effect: &'static str) -> Self {
        Self { key: key.into(), value: value.to_string(), is_secret: false, content: None, effect }
    }

    /// Makes an ask whose value is never shown.
    pub(crate) fn secret(key: impl Into<String>, value: impl Display, effect: &'static str) -> Self {
        Self { is_secret: true, ..Self::new(key, value, effect) }
    }

    /// Binds consent to what a file says, too.
    pub(crate) fn with_content(mut self, content: &[u8]) -> Self {
        self.content = Some(blake3::hash(content));
        self
    }

    /// Returns the key alone, or with its value if that is what makes the difference between asks of one key.
    pub(crate) fn name(&self) -> String {
        if self.key.starts_with('[') { self.key.clone() } else { self.what() }
    }

    /// Returns the key, and its value unless it is secret.
    pub(crate) fn what(&self) -> String {
        if self.is_secret { self.key.clone() } else { format!("{} = \"{}\"", self.key, self.value) }
    }

    /// Returns the whole ask, for people.
    pub(crate) fn line(&self) -> String {
        format!("{}: {}", self.what(), self.effect)
    }

    /// Returns what consent is recorded for. The values of headers are in it, and can't be had back from it.
    pub(crate) fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        // With its length in front, each part is told from the next one.
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
        let digest = |key: &str, value: &str| Ask::new(key, value, "x").digest();
        assert_eq!(digest("a", "b"), Ask::new("a", "b", "said in other words").digest());
        assert_eq!(digest("a", "b"), Ask::secret("a", "b", "x").digest());
        let others = [digest("a", "bc"), digest("ab", "c"), digest("a", ""), digest("", "a")];
        assert!(others.iter().all(|other| *other != digest("a", "b")));
        let content = |bytes: &[u8]| Ask::new("a", "b", "x").with_content(bytes).digest();
        assert!(content(b"1") != content(b"2") && content(b"1") == content(b"1") && content(b"") != digest("a", "b"));
    }

    #[test]
    fn a_secret_is_shown_nowhere() {
        let ask = Ask::secret("[remote] headers.authorization", "s3cret", "sent");
        assert!(!format!("{ask:?} {} {} {}", ask.line(), ask.name(), ask.digest()).contains("s3cret"));
    }
}
