//! The events of a build, for one reader.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::{
    Stream, StreamExt,
    stream::{BoxStream, Fuse},
};

use super::{
    BuildEvent, EventBatch, JournalError,
    live::{JournalStream, Subscriber},
    shared::Shared,
};
use crate::sync::Mutex;

/// A reader: every event of a build from the first to `build_end`, at the reader's own pace. A reader that is
/// not polled costs nothing.
///
/// If the build was interrupted, the stream ends without a `build_end`. After the end it keeps returning
/// `None`.
pub struct EventStream(Source);

/// The source of the events.
enum Source {
    Journal(Box<JournalStream>),
    /// The lock is never taken: it makes the reader `Sync`, which a stream need not be.
    Other(Mutex<Fuse<BoxStream<'static, BuildEvent>>>),
}

const _: () = {
    const fn is_sync<T: Send + Sync>() {}
    is_sync::<EventStream>();
};

impl EventStream {
    /// Creates a reader of any stream of events, such as that of a backend of your own.
    #[must_use]
    pub fn new(events: impl Stream<Item = BuildEvent> + Send + 'static) -> Self {
        Self(Source::Other(Mutex::new(events.boxed().fuse())))
    }

    pub(super) fn of_journal(shared: Arc<Shared>) -> Self {
        Self(Source::Journal(Box::new(JournalStream::new(shared))))
    }

    /// Returns what creates further readers, or `None` if there can be only one.
    pub(crate) fn subscriber(&self) -> Option<Subscriber> {
        match &self.0 {
            Source::Journal(journal) => Some(journal.subscriber()),
            Source::Other(_) => None,
        }
    }

    /// Returns the next event, or `None` after the last.
    ///
    /// # Cancel safety
    /// If this is cancelled, no event is lost.
    pub async fn next(&mut self) -> Option<BuildEvent> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// Returns the next event, or all whole lines that can be had at once. Returns `None` after the last
    /// event. For readers that show millions of lines: this makes no event and no `String` for each of them.
    ///
    /// Calls can be mixed with those of [`next`](Self::next). A stream that was made by [`new`](Self::new)
    /// returns single events only.
    ///
    /// # Cancel safety
    /// If this is cancelled, no event is lost.
    pub async fn next_batch(&mut self) -> Option<EventBatch<'_>> {
        match &mut self.0 {
            Source::Journal(journal) => journal.next_batch().await,
            Source::Other(events) => events.get_mut().next().await.map(EventBatch::Event),
        }
    }

    /// Returns the error that ended the stream early, if the journal could not be read.
    #[must_use]
    pub fn error(&self) -> Option<&JournalError> {
        match &self.0 {
            Source::Journal(journal) => journal.error(),
            Source::Other(_) => None,
        }
    }
}

#[cfg(test)]
impl EventStream {
    pub(super) fn dir(&self) -> &std::path::Path {
        match &self.0 {
            Source::Journal(journal) => journal.dir(),
            Source::Other(_) => panic!("this stream has no journal"),
        }
    }
}

impl Stream for EventStream {
    type Item = BuildEvent;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<BuildEvent>> {
        match &mut self.get_mut().0 {
            Source::Journal(journal) => journal.poll_event(cx),
            Source::Other(events) => events.get_mut().poll_next_unpin(cx),
        }
    }
}

impl fmt::Debug for EventStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Journal(journal) => f.debug_tuple("EventStream").field(journal).finish(),
            Source::Other(_) => f.debug_struct("EventStream").finish_non_exhaustive(),
        }
    }
}
