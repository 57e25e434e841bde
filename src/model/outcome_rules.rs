//! What a step's failure means for its build.

use std::sync::Arc;

/// What a step's failure means for its build, if it means anything else than by default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct OutcomeRules {
    /// How often the step runs again after its command failed.
    pub retries: u8,
    /// The failures that the build allows.
    pub soft_fail: SoftFail,
}

impl OutcomeRules {
    /// Returns rules with these values.
    #[must_use]
    pub const fn new(retries: u8, soft_fail: SoftFail) -> Self {
        Self { retries, soft_fail }
    }
}

/// The failures of a step that its build allows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum SoftFail {
    /// None.
    #[default]
    No,
    /// All: every exit code, the step's time limit, and a shortage of memory.
    Any,
    /// Those with these exit codes. 124 stands for the step's time limit, too, and 137 for a shortage of
    /// memory.
    Codes(Arc<[u8]>),
}

impl SoftFail {
    /// Returns whether a failure with this exit code is allowed.
    #[must_use]
    pub fn allows(&self, code: i32) -> bool {
        match self {
            Self::No => false,
            Self::Any => true,
            Self::Codes(codes) => u8::try_from(code).is_ok_and(|code| codes.contains(&code)),
        }
    }
}
