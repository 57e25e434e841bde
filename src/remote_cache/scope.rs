//! Scopes: whose entries a run uses, and where it writes.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::signature::{PublicKey, SigningKey, Unsigned, verify};
use crate::store::DEFAULT_SCOPE;

/// The scope whose entries every run reads.
const TRUSTED: &str = DEFAULT_SCOPE;
/// The maximum length of a scope's name in bytes, enough for any branch.
const MAX_NAME_BYTES: usize = 250;

/// The name of those who share results with each other, such as a branch or a pull request. Everybody reads
/// the results of `trusted`, which is the default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CacheScope(String);

/// The text is not a valid name of a scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a scope is `trusted`, or a name such as `pr-12`, of at most 250 bytes without control characters")]
pub struct ScopeError;

impl CacheScope {
    /// Returns the scope that everybody reads.
    #[must_use]
    pub fn trusted() -> Self {
        Self(TRUSTED.into())
    }

    /// Returns whether everybody reads this scope.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        self.0 == TRUSTED
    }

    /// Returns the scope's name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for CacheScope {
    fn default() -> Self {
        Self::trusted()
    }
}

impl fmt::Display for CacheScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for CacheScope {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, ScopeError> {
        let is_name = !text.trim().is_empty() && text.len() <= MAX_NAME_BYTES && !text.chars().any(char::is_control);
        // Another spelling is a mistake, and would be a scope of its own.
        let is_misspelt = text != TRUSTED && text.trim().eq_ignore_ascii_case(TRUSTED);
        if is_name && !is_misspelt { Ok(Self(text.to_owned())) } else { Err(ScopeError) }
    }
}

impl TryFrom<String> for CacheScope {
    type Error = ScopeError;

    fn try_from(text: String) -> Result<Self, ScopeError> {
        text.parse()
    }
}

impl From<CacheScope> for String {
    fn from(scope: CacheScope) -> Self {
        scope.0
    }
}

/// Which entries are used, and how those of this machine are marked.
#[derive(Debug, Default)]
pub(super) struct TrustRules {
    pub(super) scope: CacheScope,
    /// If there are any, entries of `trusted` must be signed by one of them.
    pub(super) keys: Vec<PublicKey>,
    pub(super) signer: Option<SigningKey>,
}

impl TrustRules {
    /// Returns the scopes whose entries are read, in this order.
    pub(super) fn read_scopes(&self) -> Vec<CacheScope> {
        let mut scopes = vec![CacheScope::trusted()];
        if !self.scope.is_trusted() {
            scopes.push(self.scope.clone());
        }
        scopes
    }

    /// Returns the keys by which entries of `trusted` must be signed, if there are any. A run that signs
    /// what is trusted uses nothing unsigned there: it would sign what follows from it.
    fn trusted_keys(&self) -> Vec<PublicKey> {
        let own = self.signer.as_ref().filter(|_| self.scope.is_trusted()).map(SigningKey::public);
        self.keys.iter().copied().chain(own).collect()
    }

    /// Returns whether entries from before there were scopes are used.
    pub(super) fn reads_unscoped(&self) -> bool {
        !self.has_keys() && self.scope.is_trusted()
    }

    /// Returns whether signatures count.
    pub(super) fn has_keys(&self) -> bool {
        !self.trusted_keys().is_empty()
    }

    /// Returns whether an entry of this machine would be used by machines with the same rules.
    pub(super) fn can_write(&self) -> bool {
        !self.scope.is_trusted() || self.keys.is_empty() || self.signer.is_some()
    }

    /// Checks the signature of an entry that was found in a scope.
    pub(super) fn check(&self, scope: &CacheScope, entry: &[u8], signature: Option<&[u8]>) -> Result<(), Unsigned> {
        let keys = self.trusted_keys();
        if keys.is_empty() {
            return Ok(());
        }
        match verify(&keys, entry, signature) {
            // Only runs of that scope read it, and they need not have a key.
            Err(Unsigned::Unknown(_)) if !scope.is_trusted() => Ok(()),
            checked => checked,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_a_name() {
        for name in ["trusted", "pr-12", "feature/\u{fc}ber", "a b"] {
            assert_eq!(name.parse::<CacheScope>().unwrap().to_string(), name);
        }
        for name in ["", " ", "Trusted", "trusted ", "a\nb", &"x".repeat(251)] {
            assert_eq!(name.parse::<CacheScope>(), Err(ScopeError), "{name}");
        }
        assert!(serde_json::from_str::<CacheScope>("\"TRUSTED\"").is_err());
    }

    #[test]
    fn a_run_reads_what_is_trusted_and_its_own_and_needs_a_key_to_write_what_is_trusted() {
        let key: PublicKey = "RWRfC5MpuIKIIr658P0LhIa867meYNKOw0x4U2e67ywmVCub4jrssPoz".parse().unwrap();
        let rules = |scope: &str, keys: &[PublicKey]| TrustRules {
            scope: scope.parse().unwrap(),
            keys: keys.to_vec(),
            signer: None,
        };
        let names = |rules: TrustRules| rules.read_scopes().iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(names(rules("trusted", &[])), ["trusted"]);
        assert_eq!(names(rules("pr-1", &[])), ["trusted", "pr-1"]);
        let is_unscoped_read = [
            rules("trusted", &[]).reads_unscoped(),
            rules("pr-1", &[]).reads_unscoped(),
            rules("trusted", &[key]).reads_unscoped(),
        ];
        assert_eq!(is_unscoped_read, [true, false, false]);
        let writes = [
            rules("trusted", &[]).can_write(),
            rules("trusted", &[key]).can_write(),
            rules("pr-1", &[key]).can_write(),
        ];
        assert_eq!(writes, [true, false, true]);
        let (trusted, own) = (CacheScope::trusted(), "pr-1".parse().unwrap());
        assert!(rules("pr-1", &[]).check(&trusted, b"entry", None).is_ok());
        assert!(rules("pr-1", &[key]).check(&trusted, b"entry", None).is_err());
        assert!(rules("pr-1", &[key]).check(&own, b"entry", None).is_ok());
    }
}
