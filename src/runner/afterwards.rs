//! Work that is left of attempts that were dropped: nobody waits for it, but the end of the runner does.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Mutex, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// How long one piece of it may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A thread that does such work, started with the first piece.
#[derive(Debug, Default)]
pub(super) struct Afterwards(Mutex<Option<(Sender<Work>, JoinHandle<()>)>>);

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
            // Bounded by the number of attempts in flight, each of which is dropped at most once.
            let (orders, taken) = channel();
            (orders, thread::spawn(move || work_off(&taken)))
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

fn work_off(orders: &Receiver<Work>) {
    // The runtime of who dropped the attempt may be gone.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::warn!(%error, "what dropped attempts left stays");
            return;
        }
    };
    for Work { what, doing } in orders {
        match runtime.block_on(async { tokio::time::timeout(PATIENCE, doing).await }) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("failed to {what}: {error:#}"),
            Err(_) => tracing::warn!("failed to {what}: no answer in {} s", PATIENCE.as_secs()),
        }
    }
}
