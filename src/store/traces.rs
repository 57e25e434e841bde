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

    /// Keeps a record of at most [`MAX_TRACE_BYTES`]. If there are too many, the one that was not used for
    /// longest is removed.
    pub(crate) fn keep(&self, key: &[u8; 32], record: &[u8]) -> Result<(), StoreError> {
        let id = blake3::hash(record);
        self.shared.index.write(|transaction| index::traces::put(transaction, key, (id.as_bytes(), record), MAX_TRACES))
    }

    /// Keeps a record in place of another one of the same key.
    pub(crate) fn replace(&self, key: &[u8; 32], old: &[u8], new: &[u8]) -> Result<(), StoreError> {
        let (old, id) = (blake3::hash(old), blake3::hash(new));
        self.shared.index.write(|transaction| {
            index::traces::remove(transaction, key, old.as_bytes())?;
            index::traces::put(transaction, key, (id.as_bytes(), new), MAX_TRACES)
        })
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
    use crate::store::{Forget, GcRequest, Store, UsageKind};

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

    /// Sets when a record of one byte was last used, relative to now.
    fn used_before(store: &Store, record: u8, milliseconds: i64) {
        let at = index::now_ms() - milliseconds;
        let set = |transaction: &rusqlite::Transaction<'_>| {
            transaction.execute("UPDATE traces SET used_at = ? WHERE record = ?", rusqlite::params![at, [record]])
        };
        assert_eq!(store.index().write(set).unwrap(), 1);
    }

    #[test]
    fn a_collection_removes_records_that_are_old_or_too_many() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (traces, hour) = (store.traces(), 60 * 60 * 1000);
        let collect = |max_bytes: u64, forget: Forget| {
            let mut limits = store.default_limits().unwrap();
            (limits.max_bytes, limits.min_free_bytes) = (max_bytes, 0);
            let mut request = GcRequest::new(limits);
            request.forget = forget;
            store.gc(&request).unwrap();
            let of = |key: u8| traces.of(&[key; 32]).unwrap().into_iter().flatten();
            (0..4).flat_map(of).collect::<Vec<u8>>()
        };
        for record in 0..4 {
            traces.keep(&[record; 32], &[record]).unwrap();
            used_before(&store, record, hour * i64::from(record));
        }
        assert_eq!(store.usage().unwrap().kinds[&UsageKind::Traces], 4);
        assert_eq!(collect(1 << 40, Forget::Nothing), [0, 1, 2, 3]);
        used_before(&store, 3, 31 * 24 * hour);
        assert_eq!(collect(1 << 40, Forget::Nothing), [0, 1, 2], "by age");
        // An eighth of the limit.
        assert_eq!(collect(16, Forget::Nothing), [0, 1], "those that were not used for longest");
        assert_eq!(collect(1 << 40, Forget::Cached), [] as [u8; 0]);
        assert_eq!(store.usage().unwrap().kinds[&UsageKind::Traces], 0);
    }
}
