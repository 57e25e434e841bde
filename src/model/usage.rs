//! What a step used of the machine.

use serde::{Deserialize, Serialize};

/// What the processes of a step used of the machine that they ran on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StepUsage {
    /// The most memory at a time, in bytes: of all processes together if a control group counted it,
    /// otherwise of the largest one.
    pub peak_memory_bytes: u64,
    /// The processor time, in milliseconds.
    pub cpu_ms: u64,
}

impl StepUsage {
    /// Returns a usage with these values.
    #[must_use]
    pub const fn new(peak_memory_bytes: u64, cpu_ms: u64) -> Self {
        Self { peak_memory_bytes, cpu_ms }
    }

    /// Returns the usage of two attempts, one after the other.
    #[must_use]
    pub fn then(self, next: Self) -> Self {
        Self {
            peak_memory_bytes: self.peak_memory_bytes.max(next.peak_memory_bytes),
            cpu_ms: self.cpu_ms.saturating_add(next.cpu_ms),
        }
    }
}
