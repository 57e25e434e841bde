//! Cleanup work that finished or dropped attempts leave behind. No attempt waits for it, but dropping the
//! runner does.

use std::{
    future::Future,
    pin::Pin,
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinSet,
};

use crate::sync::Mutex;

/// How long one piece of work may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A thread that runs cleanup work. It is started with the first piece of work.
#[derive(Debug, Default)]
pub(super) struct CleanupThread(Mutex<Option<(UnboundedSender<Work>, JoinHandle<()>)>>);

/// One piece of work: what to do, as in "remove container NAME", and the future that does it.
struct Work {
    what: String,
    doing: Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>,
}

impl CleanupThread {
    /// Queues `doing` to run soon. This takes no longer than sending a message.
    pub(super) fn run<E: Into<anyhow::Error>>(
        &self,
        what: impl Into<String>,
        doing: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let work = Work { what: what.into(), doing: Box::pin(async { doing.await.map_err(Into::into) }) };
        let mut thread = self.0.lock();
        let (orders, _) = thread.get_or_insert_with(|| {
            // The queue is short: each attempt sends only a few pieces, which take less time than an attempt.
            let (orders, taken) = unbounded_channel();
            (orders, thread::spawn(move || work_off(taken)))
        });
        if let Err(unsent) = orders.send(work) {
            tracing::warn!("failed to {}: the cleanup thread has ended", unsent.0.what);
        }
    }
}

impl Drop for CleanupThread {
    fn drop(&mut self) {
        let thread = self.0.get_mut().take();
        if let Some((orders, thread)) = thread {
            drop(orders);
            // The thread never panics, and its work is bounded in time.
            let _ = thread.join();
        }
    }
}

fn work_off(mut orders: UnboundedReceiver<Work>) {
    // The runtime of the caller that dropped the attempt may be gone.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::warn!(%error, "failed to start the cleanup thread; leftovers of attempts remain");
            return;
        }
    };
    runtime.block_on(async {
        let mut under_way = JoinSet::new();
        while let Some(work) = orders.recv().await {
            under_way.spawn(work.done());
            // Finished tasks need not be tracked any longer.
            while under_way.try_join_next().is_some() {}
        }
        while under_way.join_next().await.is_some() {}
    });
}

impl Work {
    async fn done(self) {
        let Self { what, doing } = self;
        match tokio::time::timeout(PATIENCE, doing).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("failed to {what}: {error:#}"),
            Err(_) => tracing::warn!("failed to {what}: no answer in {} s", PATIENCE.as_secs()),
        }
    }
}
