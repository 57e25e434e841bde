//! A thread that removes trees, so that no step has to wait for that.

use std::{
    io,
    path::PathBuf,
    sync::mpsc,
    thread::{self, JoinHandle},
};

use super::tree_ops::CurrentTreeOps;

/// Removes trees in the order of the requests. The owner has to [finish](Self::finish) it.
#[derive(Debug)]
pub(super) struct Remover {
    // Unbounded, because its length is limited by the number of trees on disk.
    orders: Option<mpsc::Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Order {
    Remove(PathBuf),
    /// The directories of an overlay, which have to be unmounted first.
    Unmount(PathBuf),
    Retry,
}

impl Remover {
    pub(super) fn start(ops: CurrentTreeOps) -> Self {
        let (orders, inbox) = mpsc::channel();
        let thread = thread::Builder::new().name("hm-remover".into()).spawn(move || work(&inbox, &ops));
        match thread {
            Ok(thread) => Self { orders: Some(orders), thread: Some(thread) },
            Err(error) => {
                tracing::warn!(%error, "failed to start the thread that removes files; they remain until the store is closed");
                Self { orders: None, thread: None }
            }
        }
    }

    pub(super) fn remove(&self, path: PathBuf) {
        self.send(Order::Remove(path));
    }

    /// Unmounts a [`StagedDir`](super::StagedDir) and removes it.
    pub(super) fn unmount(&self, home: PathBuf) {
        self.send(Order::Unmount(home));
    }

    /// Retries failed removals, after the [`TreeOps`](super::TreeOps) have changed.
    pub(super) fn retry(&self) {
        self.send(Order::Retry);
    }

    /// Waits until all requested trees are removed. Later requests have no effect.
    pub(super) fn finish(&mut self) {
        drop(self.orders.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::warn!("the thread that removes files panicked");
        }
    }

    fn send(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // Fails if the thread panicked. Closing the store then removes what is left.
            let _ = orders.send(order);
        }
    }
}

fn work(inbox: &mpsc::Receiver<Order>, ops: &CurrentTreeOps) {
    let mut stuck = Vec::new();
    while let Ok(order) = inbox.recv() {
        let paths = match order {
            Order::Remove(path) => vec![path],
            Order::Unmount(home) => {
                if let Err(error) = super::staged_dir::unmount(&home) {
                    // A mounted directory must not be removed: that would write to files that steps see.
                    report(&error, &home);
                    continue;
                }
                vec![home]
            }
            Order::Retry => std::mem::take(&mut stuck),
        };
        let ops = ops.get();
        for path in paths {
            if let Err(error) = ops.remove_tree(&path) {
                report(&error, &path);
                stuck.push(path);
            }
        }
    }
}

fn report(error: &io::Error, path: &std::path::Path) {
    tracing::debug!(%error, path = %path.display(), "could not remove a tree yet");
}
