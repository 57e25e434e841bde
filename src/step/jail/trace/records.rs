//! What was recorded so far.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::format::{Kinds, MAX_BYTES, MAX_ENTRIES, MAX_PATH_BYTES, MAX_REASONS, Reason, Trace};

/// The most bytes of paths that are remembered, of operations and of directories. When there are more, all
/// are forgotten.
const MAX_REMEMBERED_BYTES: usize = 16 << 20;
/// What an entry of a set takes besides its path, roughly.
const ENTRY_BYTES: usize = 64;

/// What is known of a directory, as long as nothing changes where paths lead.
#[derive(Debug, Clone, Copy)]
pub(super) struct KnownDir {
    /// Whether everything below it is the step's own.
    pub(super) own_below: bool,
}

/// The records of a step.
#[derive(Debug, Default)]
pub(super) struct Records {
    entries: HashMap<Vec<u8>, Kinds>,
    bytes: usize,
    reasons: BTreeSet<Reason>,
    /// Directories in which nothing of the layers can be seen any more: the step made them where it had
    /// removed something, or moved them there.
    own_dirs: HashSet<Vec<u8>>,
    /// The directories that were resolved since paths last changed.
    dirs: HashMap<Vec<u8>, KnownDir>,
    /// The operations that were resolved since paths last changed.
    done: HashSet<Vec<u8>>,
    /// The bytes of `dirs` and `done`.
    remembered: usize,
}

impl Records {
    pub(super) fn add(&mut self, path: &[u8], kinds: Kinds) {
        if let Some(known) = self.entries.get_mut(path) {
            *known = known.and(kinds);
            return;
        }
        let is_full = self.entries.len() >= MAX_ENTRIES || self.bytes + path.len() > MAX_BYTES;
        if is_full || path.len() > MAX_PATH_BYTES {
            self.reason(Reason::TooMany);
            return;
        }
        self.bytes += path.len();
        self.entries.insert(path.to_vec(), kinds);
    }

    pub(super) fn get(&self, path: &[u8]) -> Kinds {
        self.entries.get(path).copied().unwrap_or_default()
    }

    pub(super) fn reason(&mut self, reason: Reason) {
        if self.reasons.len() + 1 < MAX_REASONS {
            self.reasons.insert(reason);
        } else {
            self.reasons.insert(Reason::TooMany);
        }
    }

    /// Returns whether everything below a directory of the step's is its own.
    pub(super) fn is_own_below(&self, dir: &[u8]) -> bool {
        self.get(dir).contains(Kinds::ABSENT) || self.own_dirs.contains(dir)
    }

    /// Notes that all that is in this directory from now on is the step's own.
    pub(super) fn own_dir(&mut self, dir: &[u8]) {
        if self.own_dirs.contains(dir) {
            return;
        }
        if self.bytes + dir.len() > MAX_BYTES || self.own_dirs.len() >= MAX_ENTRIES {
            self.reason(Reason::TooMany);
            return;
        }
        self.bytes += dir.len();
        self.own_dirs.insert(dir.to_vec());
    }

    pub(super) fn dir(&self, path: &[u8]) -> Option<KnownDir> {
        self.dirs.get(path).copied()
    }

    pub(super) fn know_dir(&mut self, path: &[u8], dir: KnownDir) {
        self.make_room(path.len());
        self.dirs.insert(path.to_vec(), dir);
    }

    pub(super) fn is_done(&self, operation: &[u8]) -> bool {
        self.done.contains(operation)
    }

    pub(super) fn remember(&mut self, operation: &[u8]) {
        self.make_room(operation.len());
        self.done.insert(operation.to_vec());
    }

    fn make_room(&mut self, bytes: usize) {
        self.remembered += bytes + ENTRY_BYTES;
        if self.remembered > MAX_REMEMBERED_BYTES {
            self.forget();
            self.remembered = bytes + ENTRY_BYTES;
        }
    }

    /// Forgets everything that depends on where paths lead.
    pub(super) fn forget(&mut self) {
        self.dirs.clear();
        self.done.clear();
        self.remembered = 0;
    }

    /// Returns the trace of these records.
    pub(super) fn into_trace(self) -> Trace {
        let entries: BTreeMap<_, _> = self.entries.into_iter().filter(|(_, kinds)| !kinds.is_empty()).collect();
        Trace { reasons: self.reasons, variables: BTreeSet::new(), entries }
    }
}
