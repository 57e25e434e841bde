//! Removing containers whose attempts were dropped: nobody waits for that, but the end of the runner does.

use std::{
    sync::{
        Mutex, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use bollard::Docker;

use super::sweep::remove_container;

/// How long the daemon may take for one of them.
const PATIENCE: Duration = Duration::from_secs(20);

/// A thread that removes containers, started with the first one.
#[derive(Debug, Default)]
pub(super) struct Remover(Mutex<Option<(Sender<Order>, JoinHandle<()>)>>);

type Order = (Docker, String);

impl Remover {
    /// Kills and removes a container, soon. Takes no longer than sending a message.
    pub(super) fn remove(&self, docker: &Docker, name: String) {
        let mut thread = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (orders, _) = thread.get_or_insert_with(|| {
            // Bounded by the number of attempts in flight, each of which is dropped at most once.
            let (orders, taken) = channel();
            (orders, thread::spawn(move || work(&taken)))
        });
        if orders.send((docker.clone(), name)).is_err() {
            tracing::warn!("the thread that removes containers is gone: the next run will remove what is left");
        }
    }
}

impl Drop for Remover {
    fn drop(&mut self) {
        let thread = self.0.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((orders, thread)) = thread {
            drop(orders);
            // It panics at nothing, and what it does is bounded in time.
            let _ = thread.join();
        }
    }
}

fn work(orders: &Receiver<Order>) {
    // The runtime of who dropped the attempt may be gone.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::warn!(%error, "containers are left for the next run to remove");
            return;
        }
    };
    for (docker, name) in orders {
        let removed =
            runtime.block_on(async { tokio::time::timeout(PATIENCE, remove_container(&docker, &name)).await });
        match removed {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, name, "a container is left for the next run to remove"),
            Err(_) => {
                tracing::warn!(name, "the daemon does not answer: a container is left for the next run to remove")
            }
        }
    }
}
