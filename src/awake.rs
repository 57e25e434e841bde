//! Waits that count only the time during which this process ran: see [`Awake`].

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::time::Instant;

pub(crate) use crate::step::Awake;

/// Waits until this process has run for `limit`.
///
/// # Cancel safety
/// Only the elapsed time is lost.
pub(crate) async fn sleep(limit: Duration) {
    let mut awake = Awake::new(limit);
    while let Some(slice) = awake.next() {
        let since = Instant::now();
        tokio::time::sleep(slice).await;
        awake.pass(since.elapsed());
    }
}

/// Waits for `work` while this process runs for at most `limit`. Returns `None` if the limit was reached
/// first.
///
/// # Cancel safety
/// The same as that of `work`.
pub(crate) fn timeout<F: Future + Unpin>(limit: Duration, work: F) -> Timeout<F> {
    Timeout { work, time_is_up: Box::pin(sleep(limit)) }
}

/// The future of [`timeout`]. It is a named type because an `async fn` over borrowed futures is not known
/// to be `Send`.
pub(crate) struct Timeout<F> {
    work: F,
    time_is_up: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl<F: Future + Unpin> Future for Timeout<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // Work that is done was done in time, even if the limit is reached now.
        if let Poll::Ready(done) = self.work.poll_unpin(cx) {
            return Poll::Ready(Some(done));
        }
        self.time_is_up.as_mut().poll(cx).map(|()| None)
    }
}
