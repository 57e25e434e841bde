//! Files of other steps in a cache key.

use serde::{Deserialize, Serialize};

/// The files of other steps that a step gets, with their digests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct StepInputs(Vec<StepInputPart>);

/// One file or directory of another step.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct StepInputPart {
    /// The path at which the step gets it.
    pub(crate) target: String,
    /// The digest of its content.
    pub(crate) digest: [u8; 32],
    /// The other step, and the path there. They are not in the key.
    pub(crate) step: String,
    pub(crate) path: String,
}

impl StepInputs {
    pub(crate) fn new(mut parts: Vec<StepInputPart>) -> Self {
        parts.sort();
        Self(parts)
    }

    pub(crate) fn parts(&self) -> &[StepInputPart] {
        &self.0
    }

    /// Returns the part of the key.
    pub(crate) fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for StepInputPart { target, digest, .. } in &self.0 {
            hasher.update(&(target.len() as u64).to_le_bytes()).update(target.as_bytes()).update(digest);
        }
        *hasher.finalize().as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_and_contents_matter_and_names_do_not() {
        let part = |target: &str, byte: u8, step: &str| StepInputPart {
            target: target.into(),
            digest: [byte; 32],
            step: step.into(),
            path: "/out".into(),
        };
        let digest = |parts: &[StepInputPart]| StepInputs::new(parts.to_vec()).digest();
        let both = digest(&[part("/a", 1, "x"), part("/b", 2, "y")]);
        assert_eq!(both, digest(&[part("/b", 2, "x"), part("/a", 1, "z")]));
        assert_ne!(both, digest(&[part("/a", 2, "x"), part("/b", 1, "y")]));
        assert_ne!(both, digest(&[part("/a", 1, "x"), part("/c", 2, "y")]));
        assert_ne!(both, digest(&[part("/a", 1, "x")]));
    }
}
