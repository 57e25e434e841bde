//! Tells readers how much of the journal there is. Costs a store and a load where nobody waits.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    task::Waker,
};

use super::shared::lock;

/// How much of the journal readers may read, and who waits for more.
#[derive(Debug, Default)]
pub(super) struct Published {
    bytes: AtomicU64,
    is_closed: AtomicBool,
    /// How many wakers there are. A reader raises it before it looks at `bytes` for the last time, and the writer looks
    /// at it after it has raised `bytes`: one of the two sees the other, because all four are `SeqCst`.
    waiting: AtomicUsize,
    wakers: Mutex<BTreeMap<ReaderId, Waker>>,
    next_reader: AtomicU64,
}

/// Tells one reader's waker from another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ReaderId(u64);

impl Published {
    pub(super) fn new(bytes: u64) -> Self {
        Self { bytes: AtomicU64::new(bytes), ..Self::default() }
    }

    /// Lets readers read up to `bytes`.
    pub(super) fn advance(&self, bytes: u64) {
        self.bytes.store(bytes, SeqCst);
        self.wake();
    }

    /// Nothing follows.
    pub(super) fn close(&self) {
        self.is_closed.store(true, SeqCst);
        self.wake();
    }

    /// How many bytes there are, and whether that is all.
    pub(super) fn state(&self) -> (u64, bool) {
        let is_closed = self.is_closed.load(SeqCst);
        (self.bytes.load(SeqCst), is_closed)
    }

    pub(super) fn new_reader(&self) -> ReaderId {
        ReaderId(self.next_reader.fetch_add(1, SeqCst))
    }

    /// Has `waker` woken when the state changes. The caller looks at the state once more afterwards.
    pub(super) fn wait(&self, reader: ReaderId, waker: &Waker) {
        let mut wakers = lock(&self.wakers);
        wakers.entry(reader).and_modify(|known| known.clone_from(waker)).or_insert_with(|| waker.clone());
        self.waiting.store(wakers.len(), SeqCst);
    }

    /// The reader is gone.
    pub(super) fn forget(&self, reader: ReaderId) {
        let mut wakers = lock(&self.wakers);
        wakers.remove(&reader);
        self.waiting.store(wakers.len(), SeqCst);
    }

    fn wake(&self) {
        if self.waiting.load(SeqCst) == 0 {
            return;
        }
        let wakers = {
            let mut wakers = lock(&self.wakers);
            self.waiting.store(0, SeqCst);
            std::mem::take(&mut *wakers)
        };
        wakers.into_values().for_each(Waker::wake);
    }
}
