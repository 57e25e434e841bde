//! A live reader.

use std::{
    fs::File,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_util::Stream;
use tokio::task::coop;

use super::{
    BuildEvent, EventBatch, JournalError,
    cursor::{Cursor, EventOrLines, Next},
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
        let cursor = Cursor::new(shared.run.clone(), shared.files.dir(), shared.first_record);
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

    /// Returns the next event, or all whole lines that can be had at once. Returns `None` after the last
    /// event. For readers that show millions of lines: this makes no event and no `String` for each of them.
    ///
    /// Calls can be mixed with those of [`next`](Self::next).
    ///
    /// # Cancel safety
    /// If this is cancelled, no event is lost.
    pub async fn next_batch(&mut self) -> Option<EventBatch<'_>> {
        let next = std::future::poll_fn(|cx| self.poll_with(cx, Cursor::next_batch)).await?;
        Some(match next {
            EventOrLines::Event(event) => EventBatch::Event(event),
            EventOrLines::Lines(batch) => EventBatch::Lines(self.cursor.lines(batch)),
        })
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

impl EventStream {
    /// Polls for what `advance` returns next.
    fn poll_with<T>(
        &mut self,
        cx: &mut Context<'_>,
        advance: impl Fn(&mut Cursor, &File, u64) -> Result<Next<T>, JournalError>,
    ) -> Poll<Option<T>> {
        let mut is_registered = false;
        loop {
            // A reader that always finds an event must still yield to the build if both share a thread.
            let budget = ready!(coop::poll_proceed(cx));
            if self.error.is_some() {
                return Poll::Ready(None);
            }
            match advance(&mut self.cursor, &self.shared.journal, self.limit) {
                Ok(Next::Event(event)) => {
                    budget.made_progress();
                    return Poll::Ready(Some(event));
                }
                Ok(Next::Again) => budget.made_progress(),
                Ok(Next::End) => return Poll::Ready(None),
                Ok(Next::Wait) => match self.shared.published.state() {
                    (bytes, _) if bytes > self.limit => self.limit = bytes,
                    (_, true) => self.cursor.break_off(),
                    _ if is_registered => return Poll::Pending,
                    _ => {
                        self.shared.published.wait(self.reader, cx.waker());
                        is_registered = true;
                    }
                },
                Err(error) => {
                    tracing::error!(%error, "failed to read the build's events");
                    self.error = Some(error);
                }
            }
        }
    }
}

impl Stream for EventStream {
    type Item = BuildEvent;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<BuildEvent>> {
        self.get_mut().poll_with(cx, Cursor::next)
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        self.shared.published.forget(self.reader);
    }
}
