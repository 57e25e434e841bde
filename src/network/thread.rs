//! The thread that moves the packets of all steps of a runner.

use std::{io, net::TcpListener, os::fd::OwnedFd, rc::Rc, sync::Arc};

use tokio::{
    io::{Interest, unix::AsyncFd},
    runtime::Builder,
    sync::{mpsc, oneshot},
    task::LocalSet,
};

use super::{
    access::Access,
    counters::Counters,
    log::{ConnectionSink, NetworkSummary},
    made::Made,
    relay::Pipes,
    served::{Devices, serve},
};
use crate::userns::register;

/// A namespace whose descriptors belong to the thread. It goes when this is dropped.
#[derive(Debug)]
pub(super) struct Namespace {
    pub(super) namespace: Arc<OwnedFd>,
    pub(super) reusable: bool,
    steps: mpsc::UnboundedSender<Step>,
}

/// A step in a namespace.
struct Step {
    access: Access,
    sink: ConnectionSink,
    end: oneshot::Receiver<()>,
    done: oneshot::Sender<io::Result<NetworkSummary>>,
}

/// A step that is being served.
#[derive(Debug)]
pub(super) struct Serving {
    /// Dropping it ends the service.
    end: oneshot::Sender<()>,
    done: oneshot::Receiver<io::Result<NetworkSummary>>,
}

impl Serving {
    /// Ends the service, and returns what the step's connections say when the namespace is as before.
    pub(super) async fn end(self) -> io::Result<NetworkSummary> {
        drop(self.end);
        self.done.await.map_err(|_| gone())?
    }
}

impl Namespace {
    /// Starts to serve a step.
    pub(super) fn serve(&self, access: Access, sink: ConnectionSink) -> io::Result<Serving> {
        let ((end, ends), (done, is_done)) = (oneshot::channel(), oneshot::channel());
        self.steps.send(Step { access, sink, end: ends, done }).map_err(|_| gone())?;
        Ok(Serving { end, done: is_done })
    }
}

fn gone() -> io::Error {
    io::Error::other("the network's thread ended")
}

/// A handle of the thread, which ends when this is dropped and no step is served any longer.
#[derive(Debug)]
pub(super) struct Thread(mpsc::UnboundedSender<(Made, mpsc::UnboundedReceiver<Step>)>);

impl Thread {
    /// Starts the thread.
    ///
    /// # Errors
    /// Returns an error if this process may have no other thread.
    pub(super) fn start() -> io::Result<Self> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
        std::thread::Builder::new().name("hm-network".into()).spawn(move || {
            LocalSet::new().block_on(&runtime, run(receiver));
        })?;
        Ok(Self(sender))
    }

    /// Gives a namespace to the thread.
    pub(super) fn adopt(&self, mut made: Made) -> io::Result<Namespace> {
        let (steps, receiver) = mpsc::unbounded_channel();
        let namespace = Arc::new(made.namespace.try_clone()?);
        let reusable = std::mem::take(&mut made.reusable);
        self.0.send((made, receiver)).map_err(|_| gone())?;
        Ok(Namespace { namespace, reusable, steps })
    }
}

async fn run(mut adopted: mpsc::UnboundedReceiver<(Made, mpsc::UnboundedReceiver<Step>)>) {
    let pipes = Rc::new(Pipes::new());
    let mut namespaces = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            next = adopted.recv() => {
                let Some((made, steps)) = next else { break };
                namespaces.spawn_local(serve_steps(made, steps, Rc::clone(&pipes)));
            }
            Some(ended) = namespaces.join_next() => {
                if let Err(error) = ended {
                    tracing::warn!(%error, "the network of a step broke");
                }
            }
        }
    }
    // The last steps may still be running.
    while namespaces.join_next().await.is_some() {}
}

/// Serves one step of a namespace after the other.
async fn serve_steps(made: Made, mut steps: mpsc::UnboundedReceiver<Step>, pipes: Rc<Pipes>) {
    let mut devices = registered(made).map(Rc::new);
    while let Some(Step { access, sink, end, done }) = steps.recv().await {
        let served = match &devices {
            Ok(devices) => serve(devices, (access, sink), &pipes, end).await,
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        };
        if let Err(error) = &served {
            // Its state is unknown.
            devices = Err(io::Error::new(error.kind(), error.to_string()));
        }
        // The caller may be gone.
        let _ = done.send(served);
    }
}

fn registered(made: Made) -> io::Result<Devices> {
    let tun: AsyncFd<OwnedFd> = register(made.tun, Interest::READABLE)?;
    let listeners = made.listeners.into_iter().map(|listener| {
        // The maker made it non-blocking.
        tokio::net::TcpListener::from_std(TcpListener::from(listener))
    });
    let counters = Counters::new(made.counters);
    Ok(Devices { tun, listeners: listeners.collect::<io::Result<_>>()?, counters })
}
