//! Datagrams of a step.
//!
//! Each pair of a step's port and a destination has a socket on the machine, which is connected, so that
//! only the destination can answer.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{SendFlags, send},
};
use tokio::{io::Interest, net::UdpSocket, task::AbortHandle, time::Instant};

use super::{
    access::{Way, is_within, why_unreachable},
    addresses::{Destination, machine},
    log::connection,
    names::Asked,
    nat::Datagram,
    packet::{self, Unreachable},
    resolver,
    served::{Served, Tasks},
};
use crate::model::{Connection, ConnectionEnd, Protocol};

/// The most sockets for datagrams of a step.
const MAX_SOCKETS: usize = 256;
/// The most questions to resolvers at a time.
const MAX_QUESTIONS: usize = 256;
/// How long a socket may be idle.
const IDLE: Duration = Duration::from_secs(60);
/// The longest datagram.
const MAX_BYTES: usize = 65535;

type Key = (SocketAddr, SocketAddr);

/// The sockets of a step.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    open: RefCell<HashMap<Key, Open>>,
    questions: Cell<usize>,
}

#[derive(Debug)]
struct Open {
    socket: Rc<Socket>,
    task: AbortHandle,
}

#[derive(Debug)]
struct Socket {
    udp: UdpSocket,
    since: Instant,
    used: Cell<Instant>,
    sent: Cell<u64>,
    received: Cell<u64>,
    /// Whether the destination has refused a datagram.
    is_refused: Cell<bool>,
}

/// Sends a datagram of the step.
pub(super) fn send_datagram(served: &Rc<Served>, tasks: &mut Tasks, datagram: &Datagram, frame: &[u8]) {
    let Some(content) = frame.get(datagram.content.clone()) else { return };
    let sent = match Destination::of(datagram.to) {
        Destination::Resolver => {
            question(served, tasks, datagram, content);
            Ok(())
        }
        _ => socket(served, tasks, datagram).and_then(|socket| socket.send(content)),
    };
    // Else it is lost, as datagrams may be.
    if let Err(error) = sent
        && let Some(why) = why_unreachable(&error, datagram.to)
    {
        served.write(packet::unreachable(machine(datagram.to.ip()), frame, why));
    }
}

/// Answers a question for a name, or asks the machine's resolvers.
fn question(served: &Rc<Served>, tasks: &mut Tasks, datagram: &Datagram, content: &[u8]) {
    let asked = &served.sockets.questions;
    if asked.get() >= MAX_QUESTIONS {
        return;
    }
    match served.names.ask(content) {
        Asked::Answered(answer) => return served.write(packet::datagram(datagram.to, datagram.from, &answer)),
        Asked::Blocked(answer, name) => {
            served.record_blocked_name(name);
            return served.write(packet::datagram(datagram.to, datagram.from, &answer));
        }
        Asked::Drop => return,
        Asked::Pass => {}
    }
    asked.set(asked.get() + 1);
    let (served, from, to, content) = (Rc::clone(served), datagram.from, datagram.to, content.to_vec());
    tasks.spawn_local(async move {
        match resolver::ask(&content).await {
            Ok(answer) => {
                let answer = served.names.answered(&content, answer);
                served.write(packet::datagram(to, from, &answer));
            }
            Err(error) => tracing::debug!(%error, "no resolver of this machine answers"),
        }
        let asked = &served.sockets.questions;
        asked.set(asked.get().saturating_sub(1));
    });
}

/// Returns the socket for a datagram.
fn socket(served: &Rc<Served>, tasks: &mut Tasks, datagram: &Datagram) -> io::Result<Rc<Socket>> {
    let key = (datagram.from, datagram.to);
    if let Some(open) = served.sockets.open.borrow().get(&key) {
        return Ok(Rc::clone(&open.socket));
    }
    let record = |end, reason: Option<Arc<str>>| {
        let host = served.names.host(datagram.to.ip());
        served.recorder.record(Connection { host, reason, ..connection(Protocol::Udp, datagram.to, end) });
    };
    let address = match served.access.way(Protocol::Udp, datagram.to, &served.names)? {
        Way::To(addresses) | Way::Resolver(addresses) => addresses.first().copied(),
        Way::Named(address) => Some(address),
        Way::Blocked(reason) => {
            record(ConnectionEnd::Blocked, Some(reason.into()));
            None
        }
    };
    let address = address.ok_or(io::ErrorKind::ConnectionRefused)?;
    make_room(served);
    let socket = connected(address).inspect_err(|_| record(ConnectionEnd::Unreachable, None))?;
    let now = Instant::now();
    let (used, sent, received, is_refused) = (Cell::new(now), Cell::new(0), Cell::new(0), Cell::new(false));
    let socket = Rc::new(Socket { udp: socket, since: now, used, sent, received, is_refused });
    let record = Recording { served: Rc::clone(served), socket: Rc::clone(&socket), to: datagram.to };
    let task = tasks.spawn_local(receive(record, key));
    served.sockets.open.borrow_mut().insert(key, Open { socket: Rc::clone(&socket), task });
    Ok(socket)
}

fn connected(to: SocketAddr) -> io::Result<UdpSocket> {
    let own: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = std::net::UdpSocket::bind((own, 0))?;
    socket.connect(to)?;
    if is_within(socket.local_addr()?, to) && !to.ip().is_loopback() {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

/// Closes the socket that was not used for the longest time, if there are too many.
fn make_room(served: &Served) {
    let mut open = served.sockets.open.borrow_mut();
    while open.len() >= MAX_SOCKETS
        && let Some(key) = open.iter().min_by_key(|(_, open)| open.socket.used.get()).map(|(key, _)| *key)
        && let Some(oldest) = open.remove(&key)
    {
        oldest.task.abort();
    }
}

impl Socket {
    fn send(&self, content: &[u8]) -> io::Result<()> {
        self.used.set(Instant::now());
        let send = || {
            let sent = send(&self.udp, content, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
            self.sent.set(self.sent.get() + sent as u64);
            Ok(())
        };
        let sent = send();
        if sent == Err(Errno::CONNREFUSED) {
            self.is_refused.set(true);
            // That is what came of an earlier datagram. The step learns it, and this one is sent.
            let _ = send();
        }
        Ok(sent?)
    }
}

/// Writes the datagrams of a socket to the log when it is closed.
struct Recording {
    served: Rc<Served>,
    socket: Rc<Socket>,
    to: SocketAddr,
}

impl Drop for Recording {
    fn drop(&mut self) {
        let Socket { since, used, sent, received, is_refused, .. } = &*self.socket;
        let end = if is_refused.get() && received.get() == 0 { ConnectionEnd::Refused } else { ConnectionEnd::Closed };
        let duration_ms = used.get().duration_since(*since).as_millis();
        self.served.recorder.record(Connection {
            host: self.served.names.host(self.to.ip()),
            sent: sent.get(),
            received: received.get(),
            duration_ms: u64::try_from(duration_ms).unwrap_or(u64::MAX),
            ..connection(Protocol::Udp, self.to, end)
        });
    }
}

/// Passes on what a destination sends, until there was nothing for a while.
async fn receive(record: Recording, (from, to): Key) {
    let (served, socket) = (&record.served, &record.socket);
    loop {
        let ready = socket.udp.ready(Interest::READABLE | Interest::ERROR);
        match tokio::time::timeout_at(socket.used.get() + IDLE, ready).await {
            Ok(Ok(ready)) if ready.is_error() => {
                // Waits for the next error.
                let seen = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
                let _ = socket.udp.try_io(Interest::ERROR, seen);
                let error = socket.udp.take_error().ok().flatten().map(|error| error.kind());
                if error == Some(io::ErrorKind::ConnectionRefused) {
                    socket.is_refused.set(true);
                    // About a datagram that was like this one.
                    let sent = packet::datagram(from, to, &[]);
                    served.write(sent.and_then(|sent| packet::unreachable(to.ip(), &sent, Unreachable::Port)));
                }
            }
            Ok(Ok(_)) => {}
            // Something was sent meanwhile.
            Err(_) if socket.used.get().elapsed() < IDLE => continue,
            Ok(Err(_)) | Err(_) => break,
        }
        {
            let mut buffer = served.buffer.borrow_mut();
            buffer.resize(MAX_BYTES, 0);
            if let Ok(length) = socket.udp.try_recv(&mut buffer) {
                socket.used.set(Instant::now());
                socket.received.set(socket.received.get() + length as u64);
                served.write(packet::datagram(to, from, &buffer[..length]));
            }
        }
        // Else one destination that sends without a pause would stop all others.
        tokio::task::consume_budget().await;
    }
    served.sockets.open.borrow_mut().remove(&(from, to));
}
