//! The records of what steps read: opaque bytes, by a key that is known before a step runs.

use std::sync::Arc;

use super::{StoreError, index, shared::Shared};

/// The most records of a key.
const MAX_TRACES: usize = 16;
/// The most bytes of a record.
pub(crate) const MAX_TRACE_BYTES: usize = 4 << 20;

/// The records of a store.
#[derive(Debug)]
pub(crate) struct Traces {
    shared: Arc<Shared>,
}

impl Traces {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Returns the records of a key, the last used first.
    pub(crate) fn of(&self, key: &[u8; 32]) -> Result<Vec<Vec<u8>>, StoreError> {
        self.shared.index.read(|connection| index::traces::get(connection, key, MAX_TRACES))
    }

    /// Keeps a record of at most [`MAX_TRACE_BYTES`]. Of too many, the one that was not used for longest
    /// goes.
    pub(crate) fn keep(&self, key: &[u8; 32], record: &[u8]) -> Result<(), StoreError> {
        let id = blake3::hash(record);
        self.shared.index.write(|transaction| index::traces::put(transaction, key, (id.as_bytes(), record), MAX_TRACES))
    }

    /// Records that a record was used.
    pub(crate) fn touch(&self, key: &[u8; 32], record: &[u8]) -> Result<(), StoreError> {
        let id = blake3::hash(record);
        self.shared.index.write(|transaction| index::traces::touch(transaction, key, id.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[test]
    fn a_key_keeps_the_records_that_were_used_last() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let traces = store.traces();
        let record = |number: usize| number.to_le_bytes().to_vec();
        for number in 0..MAX_TRACES {
            traces.keep(&[1; 32], &record(number)).unwrap();
        }
        traces.keep(&[2; 32], b"another key's").unwrap();
        traces.keep(&[1; 32], &record(0)).unwrap();
        assert_eq!(traces.of(&[1; 32]).unwrap().len(), MAX_TRACES, "the same record is one");
        // The clock of rows has milliseconds.
        std::thread::sleep(std::time::Duration::from_millis(2));
        traces.touch(&[1; 32], &record(3)).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(2));
        traces.keep(&[1; 32], &record(99)).unwrap();
        let kept = traces.of(&[1; 32]).unwrap();
        assert_eq!((kept.len(), &kept[..2]), (MAX_TRACES, &[record(99), record(3)][..]));
        assert_eq!(traces.of(&[2; 32]).unwrap(), [b"another key's"]);
        assert!(traces.of(&[3; 32]).unwrap().is_empty());
    }
}
