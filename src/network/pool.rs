//! The networks of a runner: one for each step that runs at the same time.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Weak},
};

use super::{
    access::Access,
    log::{ConnectionSink, NetworkSummary},
    made::{NetworkError, make},
    thread::{Namespace, Serving, Thread},
};
use crate::{sync::Mutex, userns::Zygote};

/// The most namespaces that are kept for later steps.
const MAX_IDLE: usize = 64;

/// Networks for the steps of a runner. Nothing is made or started before the first step that needs one.
#[derive(Debug, Default)]
pub(crate) struct Networks(Arc<Mutex<Pool>>);

#[derive(Debug, Default)]
struct Pool {
    thread: Option<Thread>,
    /// The zygote whose user namespace owns `idle`.
    zygote: Weak<Zygote>,
    idle: Vec<Namespace>,
}

/// A network that a step may enter.
#[derive(Debug)]
pub(crate) struct Network {
    pool: Arc<Mutex<Pool>>,
    zygote: Weak<Zygote>,
    namespace: Namespace,
    serving: Serving,
}

impl Networks {
    /// Returns a network for a step that `zygote` will start. Its connections go to `sink`.
    ///
    /// # Errors
    /// Returns an error if a namespace is needed and cannot be made.
    pub(crate) async fn enter(
        &self,
        zygote: &Arc<Zygote>,
        access: Access,
        sink: ConnectionSink,
    ) -> Result<Network, NetworkError> {
        let namespace = self.namespace(zygote).await?;
        let serving = namespace.serve(access, sink);
        Ok(Network { pool: Arc::clone(&self.0), zygote: Arc::downgrade(zygote), namespace, serving })
    }

    /// Makes what the first step will need.
    ///
    /// # Errors
    /// Returns an error if no namespace can be made.
    pub(crate) async fn prepare(&self, zygote: &Arc<Zygote>) -> Result<(), NetworkError> {
        let namespace = self.namespace(zygote).await?;
        self.0.lock().give_back(&Arc::downgrade(zygote), namespace);
        Ok(())
    }

    async fn namespace(&self, zygote: &Arc<Zygote>) -> Result<Namespace, NetworkError> {
        let idle = self.0.lock().take(zygote);
        if let Some(namespace) = idle {
            return Ok(namespace);
        }
        let made = make(zygote).await?;
        let mut pool = self.0.lock();
        let thread = match pool.thread.take() {
            Some(thread) => thread,
            None => Thread::start()?,
        };
        Ok(pool.thread.insert(thread).adopt(made)?)
    }
}

impl Pool {
    /// Takes a namespace that steps of `zygote` may enter.
    fn take(&mut self, zygote: &Arc<Zygote>) -> Option<Namespace> {
        if self.zygote.as_ptr() != Arc::as_ptr(zygote) {
            self.zygote = Arc::downgrade(zygote);
            self.idle.clear();
        }
        // Those that broke are not served.
        while let Some(namespace) = self.idle.pop() {
            if namespace.is_served() {
                return Some(namespace);
            }
        }
        None
    }

    /// Keeps a namespace that no step is in.
    fn give_back(&mut self, zygote: &Weak<Zygote>, namespace: Namespace) {
        if Weak::ptr_eq(&self.zygote, zygote) && self.idle.len() < MAX_IDLE {
            self.idle.push(namespace);
        }
    }
}

impl Network {
    /// Returns the namespace.
    pub(crate) fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.namespace.as_fd()
    }

    /// Ends the network of a step whose processes are dead. All of the step's connections are then recorded.
    ///
    /// # Cancel safety
    /// If the future is dropped, the namespace is not used again.
    pub(crate) async fn end(self) -> NetworkSummary {
        match self.namespace.end(self.serving).await {
            Ok(summary) => {
                if self.namespace.reusable {
                    self.pool.lock().give_back(&self.zygote, self.namespace);
                }
                summary
            }
            Err(error) => {
                tracing::warn!(%error, "the network of a step broke");
                NetworkSummary::default()
            }
        }
    }
}
