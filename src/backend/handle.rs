//! What a caller holds while a build runs.

use std::fmt;

use futures_util::{Stream, stream};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{BackendError, Result};
use crate::{
    event::{BuildEvent, EventStream, Subscriber},
    outcome::BuildOutcome,
};

/// A running build: events to show, and a control to hold.
pub struct BackendHandle {
    events: EventStream,
    control: Control,
}

impl BackendHandle {
    /// Creates the handle of a build whose events come from `events`. The task `outcome` ends when the build
    /// has ended. The backend stops the build when `cancel` fires.
    ///
    /// The stream ends with the build; `build_end` is its last event. A backend that wraps another uses
    /// [`from_parts`](Self::from_parts) instead, so that [`Control::subscribe`] and
    /// [`EventStream::next_batch`] keep working.
    #[must_use]
    pub fn new(
        events: impl Stream<Item = BuildEvent> + Send + 'static,
        cancel: CancellationToken,
        outcome: JoinHandle<Result<BuildOutcome>>,
    ) -> Self {
        Self::from_parts(EventStream::new(events), Control { cancel, outcome, subscriber: None })
    }

    /// Creates the handle of a build whose events arrive over a channel; see [`new`](Self::new).
    #[must_use]
    pub fn spawn(
        mut events: mpsc::Receiver<BuildEvent>,
        cancel: CancellationToken,
        outcome: JoinHandle<Result<BuildOutcome>>,
    ) -> Self {
        Self::new(stream::poll_fn(move |cx| events.poll_recv(cx)), cancel, outcome)
    }

    /// Creates the handle of a build whose events are in a journal.
    pub(crate) fn of_journal(
        events: EventStream,
        cancel: CancellationToken,
        outcome: JoinHandle<Result<BuildOutcome>>,
    ) -> Self {
        let subscriber = events.subscriber();
        Self::from_parts(events, Control { cancel, outcome, subscriber })
    }

    /// Joins what [`into_parts`](Self::into_parts) split. A backend that wraps another may replace the
    /// events; [`Control::subscribe`] still returns those of the backend that made the control.
    #[must_use]
    pub fn from_parts(events: EventStream, control: Control) -> Self {
        Self { events, control }
    }

    /// Splits the handle. Either part may be dropped: an unread stream slows nothing down, and without a
    /// control the build continues by itself.
    #[must_use]
    pub fn into_parts(self) -> (EventStream, Control) {
        (self.events, self.control)
    }

    /// Waits for the end of the build, and ignores its events.
    ///
    /// # Cancel safety
    /// If the future is dropped, the build is cancelled.
    pub(super) async fn finish(self) -> Result<BuildOutcome> {
        let (events, control) = self.into_parts();
        drop(events);
        let cancelled_on_drop = control.cancel_token().drop_guard();
        let outcome = control.wait().await;
        cancelled_on_drop.disarm();
        outcome
    }
}

impl fmt::Debug for BackendHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendHandle").finish_non_exhaustive()
    }
}

/// Cancels a build, and waits for its end.
#[derive(Debug)]
pub struct Control {
    cancel: CancellationToken,
    outcome: JoinHandle<Result<BuildOutcome>>,
    subscriber: Option<Subscriber>,
}

impl Control {
    /// Cancels the build: running steps get SIGTERM, then SIGKILL. Repeated or late calls do nothing.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Returns the token behind [`cancel`](Self::cancel), for a signal handler.
    #[must_use]
    pub fn cancel_token(&self) -> CancellationToken {
        self.cancel.clone()
    }

    /// Returns another reader of all events of the build from the first, also after its end. Returns `None`
    /// if the backend has only one stream of events, as those made with [`BackendHandle::new`].
    ///
    /// Subscribe before [`wait`](Self::wait), which consumes the control. A run directory that is temporary
    /// is kept as long as the control or a reader exists.
    #[must_use]
    pub fn subscribe(&self) -> Option<EventStream> {
        self.subscriber.as_ref().map(Subscriber::subscribe)
    }

    /// Waits for the end of the build.
    ///
    /// # Errors
    /// Returns an error if the backend could not report an outcome. A failed build is an outcome.
    ///
    /// # Cancel safety
    /// If the future is dropped, the build continues and its outcome is lost.
    pub async fn wait(self) -> Result<BuildOutcome> {
        self.outcome.await.map_err(|error| BackendError::Other(error.into()))?
    }
}
