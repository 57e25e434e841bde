//! A live reader.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_util::Stream;
use tokio::task::coop;

use super::{
    BuildEvent, JournalError,
    cursor::{Cursor, Next},
    shared::Shared,
    wake::ReaderId,
};

/// A reader: every event of a run from the first to `build_end`, at the reader's own pace. A reader that is
/// not polled costs nothing.
///
/// If the build was interrupted, the stream ends without a `build_end`.
#[derive(Debug)]
pub struct EventStream {
    shared: Arc<Shared>,
    cursor: Cursor,
    reader: ReaderId,
    /// The length of the journal that may be read, in bytes.
    limit: u64,
    error: Option<JournalError>,
}

impl EventStream {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let cursor = Cursor::new(shared.meta.clone(), shared.files.dir(), shared.first_record);
        let reader = shared.published.new_reader();
        Self { cursor, reader, limit: shared.first_record, error: None, shared }
    }

    /// Returns the next event, or `None` after the last.
    ///
    /// # Cancel safety
    /// If this is cancelled, no event is lost.
    pub async fn next(&mut self) -> Option<BuildEvent> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// Returns the error that ended the stream early, if the journal could not be read.
    #[must_use]
    pub fn error(&self) -> Option<&JournalError> {
        self.error.as_ref()
    }
}

#[cfg(test)]
impl EventStream {
    pub(super) fn dir(&self) -> &std::path::Path {
        self.shared.files.dir()
    }
}

impl Stream for EventStream {
    type Item = BuildEvent;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<BuildEvent>> {
        let this = self.get_mut();
        let mut is_registered = false;
        loop {
            // A reader that always finds an event must still yield to the build if both share a thread.
            let budget = ready!(coop::poll_proceed(cx));
            if this.error.is_some() {
                return Poll::Ready(None);
            }
            match this.cursor.next(&this.shared.journal, this.limit) {
                Ok(Next::Event(event)) => {
                    budget.made_progress();
                    return Poll::Ready(Some(event));
                }
                Ok(Next::Again) => budget.made_progress(),
                Ok(Next::End) => return Poll::Ready(None),
                Ok(Next::Wait) => match this.shared.published.state() {
                    (bytes, _) if bytes > this.limit => this.limit = bytes,
                    (_, true) => this.cursor.break_off(),
                    _ if is_registered => return Poll::Pending,
                    _ => {
                        this.shared.published.wait(this.reader, cx.waker());
                        is_registered = true;
                    }
                },
                Err(error) => {
                    tracing::error!(%error, "failed to read the build's events");
                    this.error = Some(error);
                }
            }
        }
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        self.shared.published.forget(self.reader);
    }
}
