//! A reader of a run's journal, live.

use std::{
    fs::File,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::task::coop;

use super::{
    BuildEvent, EventBatch, EventStream, JournalError,
    cursor::{Cursor, EventOrLines, Next},
    shared::Shared,
    wake::ReaderId,
};

/// A reader of a journal that is being written.
#[derive(Debug)]
pub(super) struct JournalStream {
    shared: Arc<Shared>,
    cursor: Cursor,
    reader: ReaderId,
    /// The length of the journal that may be read, in bytes.
    limit: u64,
    error: Option<JournalError>,
}

/// Creates readers of a journal. The run's temporary directory is kept as long as this is.
#[derive(Debug, Clone)]
pub(crate) struct Subscriber(Arc<Shared>);

impl Subscriber {
    /// Returns a new reader of the whole stream from its start.
    pub(crate) fn subscribe(&self) -> EventStream {
        EventStream::of_journal(Arc::clone(&self.0))
    }
}

impl JournalStream {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let cursor = Cursor::new(shared.run.clone(), shared.files.dir(), shared.first_record);
        let reader = shared.published.new_reader();
        Self { cursor, reader, limit: shared.first_record, error: None, shared }
    }

    /// Returns the next event, or all whole lines that can be had at once; see [`EventStream::next_batch`].
    pub(super) async fn next_batch(&mut self) -> Option<EventBatch<'_>> {
        let next = std::future::poll_fn(|cx| self.poll_with(cx, Cursor::next_batch)).await?;
        Some(match next {
            EventOrLines::Event(event) => EventBatch::Event(event),
            EventOrLines::Lines(batch) => EventBatch::Lines(self.cursor.lines(batch)),
        })
    }

    /// Polls for the next event.
    pub(super) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<BuildEvent>> {
        self.poll_with(cx, Cursor::next)
    }

    pub(super) fn error(&self) -> Option<&JournalError> {
        self.error.as_ref()
    }

    pub(super) fn subscriber(&self) -> Subscriber {
        Subscriber(Arc::clone(&self.shared))
    }

    #[cfg(test)]
    pub(super) fn dir(&self) -> &std::path::Path {
        self.shared.files.dir()
    }

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

impl Drop for JournalStream {
    fn drop(&mut self) {
        self.shared.published.forget(self.reader);
    }
}
