//! The thread that moves the packets of all steps of a runner.

use std::{fmt, io, net::TcpListener, os::fd::OwnedFd, rc::Rc, sync::Arc};

use rustix::io::Errno;
use tokio::{
    io::Interest,
    runtime::Builder,
    sync::{mpsc, oneshot},
    task::{JoinError, LocalSet},
};

use super::{
    access::Access,
    counters::{Counters, TcpCounters},
    log::{ConnectionSink, NetworkSummary},
    made::Made,
    relay::{Pipes, reset},
    served::{Devices, accept, has_packets, serve},
};
use crate::{sync::Mutex, userns::register};

/// A namespace that the thread serves. It goes when this is dropped.
///
/// The thread wakes up when the first packet comes. A step that sends none costs it nothing.
#[derive(Debug)]
pub(super) struct Namespace {
    pub(super) namespace: Arc<OwnedFd>,
    pub(super) reusable: bool,
    shared: Arc<Shared>,
    /// Calls the thread to take the step that waits.
    calls: mpsc::UnboundedSender<()>,
}

/// What the owner of a namespace shares with the thread.
#[derive(Debug)]
struct Shared {
    tun: Arc<OwnedFd>,
    counters: Arc<Counters>,
    slot: Mutex<Slot>,
}

#[derive(Default)]
struct Slot {
    /// The step in the namespace, until the thread serves it.
    step: Option<Step>,
    /// The counters when no step was in the namespace.
    before: Option<TcpCounters>,
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("before", &self.before).finish_non_exhaustive()
    }
}

/// A step in a namespace.
struct Step {
    access: Access,
    sink: ConnectionSink,
    end: oneshot::Receiver<()>,
    done: oneshot::Sender<io::Result<NetworkSummary>>,
}

/// A step that is being served, or that waits for its first packet.
#[derive(Debug)]
pub(super) struct Serving {
    /// Dropping it ends the service.
    end: oneshot::Sender<()>,
    done: oneshot::Receiver<io::Result<NetworkSummary>>,
}

impl Namespace {
    /// Returns whether the thread can serve steps in it.
    pub(super) fn is_served(&self) -> bool {
        !self.calls.is_closed()
    }

    /// Serves a step from its first packet on.
    pub(super) fn serve(&self, access: Access, sink: ConnectionSink) -> Serving {
        let ((end, ends), (done, is_done)) = (oneshot::channel(), oneshot::channel());
        self.shared.slot.lock().step = Some(Step { access, sink, end: ends, done });
        Serving { end, done: is_done }
    }

    /// Ends the service, and returns what the step's connections say when the namespace is as before.
    pub(super) async fn end(&self, serving: Serving) -> io::Result<NetworkSummary> {
        if !self.is_served() {
            return Err(gone());
        }
        if let Some(summary) = self.shared.end_without_packets()? {
            return Ok(summary);
        }
        drop(serving.end);
        // The packet that wakes the thread may be on its way.
        self.calls.send(()).map_err(|_| gone())?;
        serving.done.await.map_err(|_| gone())?
    }
}

impl Shared {
    /// Takes a step back if it sent no packet. Returns `None` if it did.
    fn end_without_packets(&self) -> io::Result<Option<NetworkSummary>> {
        let mut slot = self.slot.lock();
        if slot.step.is_none() || has_packets(&self.tun)? {
            return Ok(None);
        }
        slot.step = None;
        let after = self.counters.read();
        let refused_within = slot.before.zip(after).is_some_and(|(before, after)| after.has_refused_within(before, 0));
        slot.before = after;
        Ok(Some(NetworkSummary { refused_within, is_unused: true, ..NetworkSummary::default() }))
    }

    /// Takes the step that waits, and the counters from before it. Without one, drops the packets that came:
    /// they are of a step that is dead, or of the kernel.
    fn take(&self) -> io::Result<Option<(Step, Option<TcpCounters>)>> {
        let mut slot = self.slot.lock();
        match slot.step.take() {
            Some(step) => Ok(Some((step, slot.before))),
            // Within the lock, so that no packet of the next step is among them.
            None => drop_packets(&self.tun).map(|()| None),
        }
    }
}

/// Drops packets until there are none for now.
fn drop_packets(tun: &OwnedFd) -> io::Result<()> {
    // The rest of a longer packet goes with it.
    let mut packet = [0_u8; 16];
    for _ in 0..MAX_DROPPED {
        match rustix::io::read(tun, &mut packet) {
            Ok(_) => {}
            Err(Errno::AGAIN) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// The most packets that are dropped at a time.
const MAX_DROPPED: usize = 256;

fn gone() -> io::Error {
    io::Error::other("the network's thread ended")
}

/// A namespace that the thread gets.
struct Adopted {
    shared: Arc<Shared>,
    listeners: Vec<OwnedFd>,
    calls: mpsc::UnboundedReceiver<()>,
}

/// A handle of the thread, which ends when this is dropped and no step is served any longer.
#[derive(Debug)]
pub(super) struct Thread(mpsc::UnboundedSender<Adopted>);

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
    pub(super) fn adopt(&self, made: Made) -> io::Result<Namespace> {
        let (calls, receiver) = mpsc::unbounded_channel();
        let counters = Counters::new(made.counters);
        let slot = Slot { step: None, before: counters.read() };
        let shared = Arc::new(Shared { tun: Arc::new(made.tun), counters: Arc::new(counters), slot: Mutex::new(slot) });
        let adopted = Adopted { shared: Arc::clone(&shared), listeners: made.listeners, calls: receiver };
        self.0.send(adopted).map_err(|_| gone())?;
        Ok(Namespace { namespace: Arc::new(made.namespace), reusable: made.reusable, shared, calls })
    }
}

async fn run(mut adopted: mpsc::UnboundedReceiver<Adopted>) {
    let pipes = Rc::new(Pipes::new());
    let mut namespaces = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            next = adopted.recv() => {
                let Some(next) = next else { break };
                namespaces.spawn_local(serve_steps(next, Rc::clone(&pipes)));
            }
            Some(ended) = namespaces.join_next() => note(ended),
        }
    }
    // The last steps may still be running.
    while let Some(ended) = namespaces.join_next().await {
        note(ended);
    }
}

/// Logs why a namespace is not served any longer.
fn note(ended: Result<io::Result<()>, JoinError>) {
    if let Err(error) = ended.unwrap_or_else(|error| Err(error.into())) {
        tracing::warn!(%error, "the network of a step broke");
    }
}

/// Serves one step of a namespace after the other, until its owner is gone or its state is unknown.
async fn serve_steps(Adopted { shared, listeners, mut calls }: Adopted, pipes: Rc<Pipes>) -> io::Result<()> {
    let devices = Rc::new(registered(&shared, listeners)?);
    loop {
        tokio::select! {
            called = calls.recv() => if called.is_none() { return Ok(()) },
            ready = devices.tun.readable() => drop(ready?),
            // It is the namespace's own: what comes from outside begins with a packet.
            socket = accept(&devices.listeners) => {
                reset(&socket);
                continue;
            }
        }
        match shared.take()? {
            None => devices.settle()?,
            Some((Step { access, sink, end, done }, before)) => {
                let served = serve(&devices, (access, sink), &pipes, before, end).await;
                let broken = served.as_ref().err().map(|error| io::Error::new(error.kind(), error.to_string()));
                if broken.is_none() {
                    devices.settle()?;
                    shared.slot.lock().before = devices.counters.read();
                }
                // The caller may be gone.
                let _ = done.send(served);
                if let Some(error) = broken {
                    return Err(error);
                }
            }
        }
    }
}

fn registered(shared: &Shared, listeners: Vec<OwnedFd>) -> io::Result<Devices> {
    let tun = register(Arc::clone(&shared.tun), Interest::READABLE)?;
    let listeners = listeners.into_iter().map(|listener| {
        // The maker made it non-blocking.
        tokio::net::TcpListener::from_std(TcpListener::from(listener))
    });
    let counters = Arc::clone(&shared.counters);
    Ok(Devices { tun, listeners: listeners.collect::<io::Result<_>>()?, counters })
}
