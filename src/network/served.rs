//! A network namespace while a step is in it: packets, connections, and what is left at the end.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::retry_on_intr,
    net::SocketFlags,
};
use tokio::{
    io::unix::AsyncFd,
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::{JoinError, JoinSet, yield_now},
};

use super::{
    access::Access,
    addresses::neighbour,
    counters::{Counters, TcpCounters},
    log::{ConnectionSink, NetworkSummary, Recorder},
    names::Names,
    nat::{Nat, Verdict},
    relay::{Pipes, reset},
    tcp, udp,
};
use crate::{
    jail::network::{FRAME_HEADER_BYTES, MAX_PACKET_BYTES},
    model::{Connection, ConnectionEnd, Protocol},
};

/// The most frames that are handled before others get their turn.
const BUDGET: usize = 64;
/// The most rounds of packets after a step's end: enough for every connection that it may have.
const MAX_ROUNDS: usize = 256;
/// How long to wait before accepting again, if there are no descriptors.
const PAUSE: Duration = Duration::from_millis(10);

/// The tasks of a step: one for each connection.
pub(super) type Tasks = JoinSet<()>;

/// The descriptors of a namespace, registered with the runtime of the thread.
#[derive(Debug)]
pub(super) struct Devices {
    pub(super) tun: AsyncFd<Arc<OwnedFd>>,
    pub(super) listeners: Vec<TcpListener>,
    pub(super) counters: Arc<Counters>,
}

impl Devices {
    /// Forgets that the device had packets, if it has none now.
    pub(super) fn settle(&self) -> io::Result<()> {
        if let Some(ready) = self.tun.readable().now_or_never() {
            let mut ready = ready?;
            // Looked at after the readiness, so that no packet is missed.
            if !has_packets(self.tun.get_ref())? {
                ready.clear_ready();
            }
        }
        Ok(())
    }
}

/// Returns whether a device has a packet, or is broken.
pub(super) fn has_packets(tun: &OwnedFd) -> io::Result<bool> {
    let mut ready = [PollFd::new(tun, PollFlags::IN)];
    // A signal with a handler interrupts even a poll that does not wait.
    let ready = retry_on_intr(|| poll(&mut ready, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })))?;
    Ok(ready > 0)
}

/// What the tasks of a step share.
#[derive(Debug)]
pub(super) struct Served {
    devices: Rc<Devices>,
    pub(super) access: Access,
    pub(super) names: Names,
    pub(super) nat: RefCell<Nat>,
    /// The connections that wait until the listener accepts them, by the neighbour's port.
    pub(super) waiting: RefCell<HashMap<u16, oneshot::Sender<TcpStream>>>,
    pub(super) sockets: udp::Sockets,
    pub(super) recorder: Recorder,
    /// Whether the step sent something that is not for itself.
    is_used: Cell<bool>,
    pub(super) pipes: Rc<Pipes>,
    pub(super) buffer: RefCell<Vec<u8>>,
}

impl Served {
    /// Records that the step may not ask for a name.
    pub(super) fn record_blocked_name(&self, name: Arc<str>) {
        let reason = format!("`egress` has no entry for {name}").into();
        let blocked = Connection::new(Protocol::Dns, ConnectionEnd::Blocked);
        let is_search = self.access.lists_beginning_of(&name);
        let refused = Connection { host: Some(name), reason: Some(reason), ..blocked };
        if is_search { self.recorder.record_harmless(refused) } else { self.recorder.record(refused) }
    }

    /// Writes a frame, if there is one, to the device.
    pub(super) fn write(&self, frame: Option<Vec<u8>>) {
        if let Some(frame) = frame {
            self.write_frame(&frame);
        }
    }

    fn write_frame(&self, frame: &[u8]) {
        // The kernel handles the packet within the call. What it refuses is lost, as packets may be.
        if let Err(error) = rustix::io::write(self.devices.tun.get_ref(), frame) {
            tracing::trace!(%error, "a packet for a step is lost");
        }
    }

    /// Handles at most [`BUDGET`] frames. Returns whether the device may have more.
    fn handle_frames(self: &Rc<Self>, tasks: Option<&mut Tasks>, buffer: &mut [u8]) -> io::Result<bool> {
        let mut tasks = tasks;
        for _ in 0..BUDGET {
            let length = match rustix::io::read(self.devices.tun.get_ref(), &mut *buffer) {
                Ok(length) => length,
                Err(rustix::io::Errno::AGAIN) => return Ok(false),
                Err(errno) => return Err(errno.into()),
            };
            let frame = &mut buffer[..length];
            let verdict = self.nat.borrow_mut().handle(frame, Instant::now());
            if matches!(verdict, Verdict::Connect(..) | Verdict::Send(_)) && tasks.is_some() {
                self.is_used.set(true);
            }
            match (verdict, tasks.as_deref_mut()) {
                (Verdict::Forward, _) => self.write_frame(frame),
                (Verdict::Answer(answer), _) => self.write_frame(&answer),
                (Verdict::Connect(port, to), Some(tasks)) => {
                    tasks.spawn_local(tcp::serve(Rc::clone(self), port, to));
                }
                (Verdict::Send(datagram), Some(tasks)) => udp::send_datagram(self, tasks, &datagram, frame),
                // The step is dead.
                (Verdict::Connect(..) | Verdict::Send(_), None) | (Verdict::Drop, _) => {}
            }
        }
        Ok(true)
    }

    /// Hands a socket that a listener accepted to the connection that waits for it.
    fn accepted(&self, step: TcpStream) {
        let waiting = match step.peer_addr() {
            // The step can connect to the listener, too, but not from the neighbour's address.
            Ok(peer) if peer.ip() == neighbour(peer.ip()) => self.waiting.borrow_mut().remove(&peer.port()),
            Ok(_) | Err(_) => None,
        };
        let refused = match waiting {
            Some(waiting) => waiting.send(step).err(),
            None => Some(step),
        };
        if let Some(step) = refused {
            reset(&step);
        }
    }

    /// Handles what the end of the connections leaves in the namespace.
    fn wind_up(self: &Rc<Self>, buffer: &mut [u8]) -> io::Result<()> {
        for _ in 0..MAX_ROUNDS {
            let mut is_quiet = true;
            for listener in &self.devices.listeners {
                while let Ok(socket) = rustix::net::accept_with(listener, SocketFlags::CLOEXEC) {
                    reset(&socket);
                    is_quiet = false;
                }
            }
            is_quiet &= !self.handle_frames(None, buffer)?;
            if is_quiet {
                break;
            }
        }
        Ok(())
    }
}

/// Serves a step until `end` says that it is dead. The namespace is then as before, when its counters were
/// `before`.
pub(super) async fn serve(
    devices: &Rc<Devices>,
    (access, sink): (Access, ConnectionSink),
    pipes: &Rc<Pipes>,
    before: Option<TcpCounters>,
    end: oneshot::Receiver<()>,
) -> io::Result<NetworkSummary> {
    let served = Rc::new(Served {
        devices: Rc::clone(devices),
        names: Names::new(access.egress.clone()),
        access,
        nat: RefCell::default(),
        waiting: RefCell::default(),
        sockets: udp::Sockets::default(),
        recorder: Recorder::new(sink),
        is_used: Cell::new(false),
        pipes: Rc::clone(pipes),
        buffer: RefCell::default(),
    });
    let mut tasks = Tasks::new();
    let mut buffer = vec![0; FRAME_HEADER_BYTES + MAX_PACKET_BYTES];
    tokio::pin!(end);
    loop {
        tokio::select! {
            biased;
            // Also if the caller is gone.
            _ = &mut end => break,
            // Frames come last: a step can send without a pause.
            accepted = accept(&devices.listeners) => served.accepted(accepted),
            Some(ended) = tasks.join_next() => note_panic(ended),
            ready = devices.tun.readable() => {
                let mut ready = ready?;
                let is_more = served.handle_frames(Some(&mut tasks), &mut buffer)?;
                // Connections that are refused end at once, and each keeps its memory until here.
                while let Some(ended) = tasks.try_join_next() {
                    note_panic(ended);
                }
                if is_more {
                    yield_now().await;
                } else {
                    ready.clear_ready();
                }
            }
        }
    }
    let after = devices.counters.read();
    // Datagrams that the step sent last may still be in the device. On the machine's network, the kernel has
    // them by then. Connections are reset, with what they have not passed on yet.
    for _ in 0..MAX_ROUNDS {
        if !served.handle_frames(Some(&mut tasks), &mut buffer)? {
            break;
        }
    }
    // Resets all connections.
    tasks.shutdown().await;
    served.wind_up(&mut buffer)?;
    let (summary, refused) = served.recorder.finish();
    let refused_within = before.zip(after).is_some_and(|(before, after)| after.has_refused_within(before, refused));
    Ok(NetworkSummary { refused_within, is_unused: !served.is_used.get(), ..summary })
}

/// Logs the panic of a task. Its connection is reset, and the step goes on.
fn note_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::warn!(%error, "a connection of a step broke");
    }
}

/// Waits for the next connection of any listener.
pub(super) async fn accept(listeners: &[TcpListener]) -> TcpStream {
    loop {
        let accepted = match listeners {
            [v4, v6] => tokio::select! {
                accepted = v4.accept() => accepted,
                accepted = v6.accept() => accepted,
            },
            [one] => one.accept().await,
            _ => std::future::pending().await,
        };
        match accepted {
            Ok((socket, _)) => return socket,
            // The connection ended before it was accepted, or there are no descriptors until others are
            // closed.
            Err(error) => {
                tracing::debug!(%error, "failed to accept a connection of a step");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        net::{Ipv4Addr, SocketAddr, UdpSocket},
        os::unix::net::UnixDatagram,
    };

    use tokio::{io::Interest, runtime::Builder, task::LocalSet};

    use super::{super::packet, *};
    use crate::userns::register;

    #[test]
    fn datagrams_that_are_in_the_device_when_the_step_ends_are_sent() {
        let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let port = receiver.local_addr().unwrap().port();
        // What the kernel of the step writes, the device has.
        let (kernel, device) = UnixDatagram::pair().unwrap();
        device.set_nonblocking(true).unwrap();
        let (from, to) = (SocketAddr::from(([10, 0, 2, 15], 5000)), SocketAddr::from(([10, 0, 2, 2], port)));
        for content in [b"one", b"two"] {
            kernel.send(&packet::datagram(from, to, content).unwrap()).unwrap();
        }
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let summary = LocalSet::new().block_on(&runtime, async {
            let tun = register(Arc::new(OwnedFd::from(device)), Interest::READABLE).unwrap();
            let counters = Arc::new(Counters::new(File::open("/proc/self/net/snmp").unwrap().into()));
            let devices = Rc::new(Devices { tun, listeners: Vec::new(), counters });
            let access = Access { host_ports: vec![port], egress: None };
            // The step has ended before anything was read.
            let (_, end) = oneshot::channel();
            serve(&devices, (access, Box::new(|_| {})), &Rc::new(Pipes::new()), None, end).await.unwrap()
        });
        assert!(!summary.is_unused);
        for content in [b"one", b"two"] {
            let mut buffer = [0; 9];
            let length = receiver.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], content);
        }
    }
}
