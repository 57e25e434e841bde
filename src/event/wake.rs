//! Notifies readers of the journal's length. If no reader waits, this costs a store and a load.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    task::Waker,
};

use crate::sync::Mutex;

/// The length of the journal that readers may read, and the readers that wait for more.
#[derive(Debug, Default)]
pub(super) struct Published {
    bytes: AtomicU64,
    is_closed: AtomicBool,
    /// The number of wakers. A reader increases it before it loads `bytes` for the last time, and the writer
    /// loads it after it has increased `bytes`. One of the two sees the other's change, because all four
    /// operations are `SeqCst`.
    waiting: AtomicUsize,
    wakers: Mutex<BTreeMap<ReaderId, Waker>>,
    next_reader: AtomicU64,
}

/// The identity of a reader's waker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ReaderId(u64);

impl Published {
    pub(super) fn new(bytes: u64) -> Self {
        Self { bytes: AtomicU64::new(bytes), ..Self::default() }
    }

    /// Allows readers to read up to `bytes`.
    pub(super) fn advance(&self, bytes: u64) {
        self.bytes.store(bytes, SeqCst);
        self.wake();
    }

    /// Marks the end: no more bytes follow.
    pub(super) fn close(&self) {
        self.is_closed.store(true, SeqCst);
        self.wake();
    }

    /// Returns the number of bytes, and whether that is all.
    pub(super) fn state(&self) -> (u64, bool) {
        let is_closed = self.is_closed.load(SeqCst);
        (self.bytes.load(SeqCst), is_closed)
    }

    pub(super) fn new_reader(&self) -> ReaderId {
        ReaderId(self.next_reader.fetch_add(1, SeqCst))
    }

    /// Registers `waker` to be woken when the state changes. The caller must check the state again
    /// afterwards.
    pub(super) fn wait(&self, reader: ReaderId, waker: &Waker) {
        let mut wakers = self.wakers.lock();
        wakers.entry(reader).and_modify(|known| known.clone_from(waker)).or_insert_with(|| waker.clone());
        self.waiting.store(wakers.len(), SeqCst);
    }

    /// Removes a reader's waker.
    pub(super) fn forget(&self, reader: ReaderId) {
        let mut wakers = self.wakers.lock();
        wakers.remove(&reader);
        self.waiting.store(wakers.len(), SeqCst);
    }

    fn wake(&self) {
        if self.waiting.load(SeqCst) == 0 {
            return;
        }
        let wakers = {
            let mut wakers = self.wakers.lock();
            self.waiting.store(0, SeqCst);
            std::mem::take(&mut *wakers)
        };
        wakers.into_values().for_each(Waker::wake);
    }
}
