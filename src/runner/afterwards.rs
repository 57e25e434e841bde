//! Work that attempts leave, ended or dropped: nobody waits for it, but the end of the runner does.

use std::{
    future::Future,
    pin::Pin,
    sync::{Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinSet,
};

/// How long one piece of it may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A thread that does such work, started with the first piece.
#[derive(Debug, Default)]
pub(super) struct Afterwards(Mutex<Option<(UnboundedSender<Work>, JoinHandle<()>)>>);

/// What is to be done, as in "remove container NAME", and how.
struct Work {
    what: String,
    doing: Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>,
}

impl Afterwards {
    /// Has something done, soon. Takes no longer than sending a message.
    pub(super) fn run<E: Into<anyhow::Error>>(
        &self,
        what: impl Into<String>,
        doing: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let work = Work { what: what.into(), doing: Box::pin(async { doing.await.map_err(Into::into) }) };
        let mut thread = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (orders, _) = thread.get_or_insert_with(|| {
            // At most one piece for each attempt, and each is done faster than an attempt.
            let (orders, taken) = unbounded_channel();
            (orders, thread::spawn(move || work_off(taken)))
        });
        if let Err(unsent) = orders.send(work) {
            tracing::warn!("failed to {}: the thread for it is gone", unsent.0.what);
        }
    }
}

impl Drop for Afterwards {
    fn drop(&mut self) {
        let thread = self.0.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((orders, thread)) = thread {
            drop(orders);
            // It panics at nothing, and what it does is bounded in time.
            let _ = thread.join();
        }
    }
}

fn work_off(mut orders: UnboundedReceiver<Work>) {
    // The runtime of who dropped the attempt may be gone.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::warn!(%error, "what attempts left stays");
            return;
        }
    };
    runtime.block_on(async {
        let mut under_way = JoinSet::new();
        while let Some(work) = orders.recv().await {
            under_way.spawn(work.done());
            // What has ended needs to be remembered no longer.
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
