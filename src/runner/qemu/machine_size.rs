//! The sizes of machines. There are as few as possible, because each has a template of its own.

use std::{num::NonZeroUsize, thread};

use crate::runner::{Limits, Network};

/// The default memory of a machine, in bytes. Memory that no step touches has no cost.
pub(super) const DEFAULT_MEMORY_BYTES: u64 = 2 << 30;

/// The memory that the machine's kernel and the guest use, in bytes, with some margin.
const RESERVED_BYTES: u64 = 256 << 20;

/// The sizes of machines for steps that do not request more.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct SizeDefaults {
    pub(super) memory_bytes: Option<u64>,
    pub(super) cpus: Option<NonZeroUsize>,
}

/// A machine's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct MachineSize {
    /// The total memory in bytes.
    pub(super) memory_bytes: u64,
    /// The number of processors.
    pub(super) cpus: usize,
    /// Whether it has a network card.
    pub(super) network: bool,
}

impl MachineSize {
    /// Returns the smallest size that holds the step's limits. The limits are enforced inside the machine.
    pub(super) fn of(limits: &Limits, defaults: &SizeDefaults) -> Self {
        let usual = defaults.memory_bytes.unwrap_or(DEFAULT_MEMORY_BYTES);
        let wanted = limits.memory.map_or(0, |memory| memory.bytes.saturating_add(RESERVED_BYTES));
        let memory_bytes = if wanted <= usual { usual } else { wanted.checked_next_power_of_two().unwrap_or(wanted) };
        let usual = defaults.cpus.or_else(|| thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 4096, and above zero")]
        let wanted = limits.cpus.map_or(0, |cpus| cpus.0.ceil() as usize);
        Self { memory_bytes, cpus: usual.max(wanted), network: limits.network != Network::None }
    }

    /// Returns the memory that the step's processes may use together, in bytes.
    pub(super) fn memory_limit(&self, limits: &Limits) -> u64 {
        let all = self.memory_bytes.saturating_sub(RESERVED_BYTES).max(RESERVED_BYTES / 2);
        limits.memory.map_or(all, |memory| memory.bytes.min(all))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn limits(args: &serde_json::Value) -> Limits {
        Limits::of_args(Some(args)).unwrap()
    }

    #[test]
    fn steps_share_shapes_where_they_can() {
        let defaults = SizeDefaults { memory_bytes: Some(1 << 30), cpus: NonZeroUsize::new(2) };
        let usual = MachineSize::of(&limits(&json!({})), &defaults);
        assert_eq!(usual, MachineSize { memory_bytes: 1 << 30, cpus: 2, network: true });
        assert_eq!(MachineSize::of(&limits(&json!({ "memory": "700m", "cpus": 0.5, "pids": 9 })), &defaults), usual);
        let large = MachineSize::of(&limits(&json!({ "memory": "1g", "cpus": 2.5, "network": "none" })), &defaults);
        assert_eq!(large, MachineSize { memory_bytes: 2 << 30, cpus: 3, network: false });
        assert_eq!(usual.memory_limit(&limits(&json!({ "memory": "64m" }))), 64 << 20);
        assert_eq!(usual.memory_limit(&limits(&json!({}))), 768 << 20);
    }
}
