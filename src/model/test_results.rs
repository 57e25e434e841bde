//! What the test results among a step's outputs say.

use serde::{Deserialize, Serialize};

/// The results of the tests that a step ran, as its outputs report them. Only the feature `junit` reads
/// them from outputs. Without it, results are those of journals that another program wrote.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TestResults {
    /// The number of tests.
    pub tests: u32,
    /// How many of them failed.
    pub failed: u32,
    /// How many of them were skipped.
    pub skipped: u32,
    /// The failed tests, or the first of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<FailedTest>,
}

/// A test that failed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "a test that failed has no more")]
pub struct FailedTest {
    /// Its class, if it has one, and its name.
    pub name: String,
    /// The first line of its message; may be empty.
    pub message: String,
}
