//! How far the freezing of a source tree is.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::model::{Activity, ActivityCount};

/// The progress of a freeze, which its threads count and others read. The numbers may be those of two
/// moments, which does no harm to what is only looked at.
#[derive(Debug, Default)]
pub(crate) struct FreezeProgress {
    read: AtomicU64,
    to_read: AtomicU64,
    copied: AtomicU64,
    to_copy: AtomicU64,
}

impl FreezeProgress {
    /// Starts to count `files` files that are read.
    pub(super) fn begin_reading(&self, files: usize) {
        self.copied.store(0, Relaxed);
        self.to_copy.store(0, Relaxed);
        self.read.store(0, Relaxed);
        self.to_read.store(files as u64, Relaxed);
    }

    pub(super) fn file_read(&self) {
        self.read.fetch_add(1, Relaxed);
    }

    /// Starts to count `files` files that are copied.
    pub(super) fn begin_copying(&self, files: usize) {
        self.copied.store(0, Relaxed);
        self.to_copy.store(files as u64, Relaxed);
    }

    pub(super) fn file_copied(&self) {
        self.copied.fetch_add(1, Relaxed);
    }

    /// Returns what the freeze is doing, or did last. Returns `None` before it knows how much there is to do.
    pub(crate) fn activity(&self) -> Option<(Activity, Option<ActivityCount>)> {
        let of = |activity, done: &AtomicU64, total: &AtomicU64| {
            let total = total.load(Relaxed);
            (total > 0).then(|| (activity, Some(ActivityCount::new(done.load(Relaxed).min(total), total))))
        };
        of(Activity::CopyingSource, &self.copied, &self.to_copy)
            .or_else(|| of(Activity::ReadingSource, &self.read, &self.to_read))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_and_then_copied() {
        let progress = FreezeProgress::default();
        assert_eq!(progress.activity(), None);
        progress.begin_reading(3);
        progress.file_read();
        assert_eq!(progress.activity(), Some((Activity::ReadingSource, Some(ActivityCount::new(1, 3)))));
        progress.begin_copying(2);
        (0..3).for_each(|_| progress.file_copied());
        assert_eq!(progress.activity(), Some((Activity::CopyingSource, Some(ActivityCount::new(2, 2)))));
        // The tree has changed.
        progress.begin_reading(4);
        assert_eq!(progress.activity(), Some((Activity::ReadingSource, Some(ActivityCount::new(0, 4)))));
    }
}
