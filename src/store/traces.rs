//! The records of what steps read: opaque bytes, by a key that is known before a step runs.

use std::sync::Arc;

use super::{StoreError, index, shared::Shared};

/// The most records of a key.
const MAX_TRACES: usize = 16;
/// The most bytes of a record.
pub(crate) const MAX_TRACE_BYTES: usize = 4 << 20;

/// The most looks of a key.
const MAX_LOOKS: usize = 16;
/// A use of a look is not recorded if the last recorded one is more recent than this, in milliseconds.
/// What was not used for much longer is removed.
const FRESH_MS: i64 = 24 * 60 * 60 * 1000;

/// What is kept of a look for the records of a key.
#[derive(Debug)]
pub(crate) struct KeptLook {
    pub(crate) look: Vec<u8>,
    /// The record of the key that was added last.
    pub(crate) newest: Option<[u8; 32]>,
    /// Whether its last recorded use is so recent that this one need not be.
    pub(crate) just_used: bool,
}

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

    /// Returns the record of a key with this id, which is its BLAKE3.
    pub(crate) fn find(&self, key: &[u8; 32], id: &[u8; 32]) -> Result<Option<Vec<u8>>, StoreError> {
        self.shared.index.read(|connection| Ok(index::traces::find(connection, key, id)?.map(|(record, _)| record)))
    }

    /// Returns what is kept of a look, by the name of what was looked at.
    pub(crate) fn look(&self, key: &[u8; 32], view: &[u8; 32]) -> Result<Option<KeptLook>, StoreError> {
        let kept = self.shared.index.read_at_once(|connection| {
            let Some((look, used_at)) = index::traces::find(connection, &looks_of(key), view)? else { return Ok(None) };
            Ok(Some((look, used_at, index::traces::newest(connection, key)?)))
        })?;
        Ok(kept.map(|(look, used_at, newest)| {
            let just_used = (0..FRESH_MS).contains(&(index::now_ms() - used_at));
            KeptLook { look, newest, just_used }
        }))
    }

    /// Keeps a look in place of the last one at the same. If a key has too many, the one that was not
    /// used for longest is removed.
    pub(crate) fn keep_look(&self, key: &[u8; 32], view: &[u8; 32], look: &[u8]) -> Result<(), StoreError> {
        self.shared.index.write(|transaction| index::traces::put(transaction, &looks_of(key), (view, look), MAX_LOOKS))
    }

    /// Records that a look, the record that it found, and results were used.
    pub(crate) fn touch_look(
        &self,
        key: &[u8; 32],
        (view, record): (&[u8; 32], &[u8; 32]),
        results: &[[u8; 32]],
    ) -> Result<(), StoreError> {
        self.shared.index.write(|transaction| {
            index::traces::touch(transaction, &looks_of(key), view)?;
            index::traces::touch(transaction, key, record)?;
            index::cache::touch(transaction, results)
        })
    }

    /// Returns the id of the record of a key that was added last.
    pub(crate) fn newest(&self, key: &[u8; 32]) -> Result<Option<[u8; 32]>, StoreError> {
        self.shared.index.read(|connection| index::traces::newest(connection, key))
    }

    /// Records that a record was used.
    pub(crate) fn touch(&self, key: &[u8; 32], record: &[u8]) -> Result<(), StoreError> {
        let id = blake3::hash(record);
        self.shared.index.write(|transaction| index::traces::touch(transaction, key, id.as_bytes()))
    }
}

/// Returns the key under which the looks for the records of a key are kept.
fn looks_of(key: &[u8; 32]) -> [u8; 32] {
    *blake3::Hasher::new().update(b"hm-exec looks").update(key).finalize().as_bytes()
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
    #[test]
    fn a_look_is_kept_with_the_record_that_was_added_last() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (traces, key) = (store.traces(), [1; 32]);
        let id = |record: &[u8]| Some(*blake3::hash(record).as_bytes());
        assert!(traces.look(&key, &[7; 32]).unwrap().is_none());
        traces.keep(&key, b"one").unwrap();
        traces.keep_look(&key, &[7; 32], b"look").unwrap();
        let kept = traces.look(&key, &[7; 32]).unwrap().unwrap();
        assert_eq!((&*kept.look, kept.newest, kept.just_used), (&b"look"[..], id(b"one"), true));
        traces.keep(&key, b"two").unwrap();
        traces.keep(&key, b"one").unwrap();
        assert_eq!(traces.look(&key, &[7; 32]).unwrap().unwrap().newest, id(b"two"), "used again is not added");
        traces.keep_look(&key, &[7; 32], b"again").unwrap();
        assert_eq!(traces.look(&key, &[7; 32]).unwrap().unwrap().look, b"again");
        for view in 0..=MAX_LOOKS as u8 {
            traces.keep_look(&key, &[100 + view; 32], b"other").unwrap();
        }
        let views = (0..=MAX_LOOKS as u8).map(|view| 100 + view).chain([7]);
        assert_eq!(views.filter(|view| traces.look(&key, &[*view; 32]).unwrap().is_some()).count(), MAX_LOOKS);
        assert_eq!(traces.of(&key).unwrap().len(), 2, "a look is no record");
    }

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
