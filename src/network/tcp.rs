//! A TCP connection of a step, from its SYN to its end.

use std::{
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::io::Errno;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
};

use super::{
    access::{Way, is_within, why_unreachable},
    dns_stream,
    hello::{Hello, HelloReader},
    log::{connection, millis_since},
    packet::Unreachable,
    relay::{Pair, Passed},
    served::Served,
};
use crate::model::{Connection, ConnectionEnd, Protocol};

/// How long the step's kernel may take to accept what the engine is connected to. Its handshake waits for
/// nothing but packets that are here already.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a step may take to name the server that it wants.
const HELLO_PATIENCE: Duration = Duration::from_secs(60);
/// The bytes that are read at a time before a server is named.
const HELLO_BYTES: usize = 4096;

/// Serves the connection of a step to `to` that has the neighbour's port `port`.
pub(super) async fn serve(served: Rc<Served>, port: u16, to: SocketAddr) {
    let mut record = Recording::new(&served, to);
    let held = served.pipes.hold();
    let connected = match &held {
        Some(_) => connect(&served, to).await,
        None => Err(Failure::NoMeans(Errno::MFILE.into())),
    };
    match connected {
        Ok((far, purpose)) => {
            if matches!(purpose, Purpose::Names) {
                // It does not leave the step's network.
                record.end = None;
            }
            exchange(&served, port, (far, purpose), &mut record).await;
            served.nat.borrow_mut().closed(port, Instant::now());
        }
        Err(failure) => refuse(&served, port, failure, &mut record),
    }
}

/// Writes a connection to the log when it ends, also if that is with the step.
struct Recording<'a> {
    served: &'a Served,
    to: SocketAddr,
    host: Option<Arc<str>>,
    since: Instant,
    passed: Passed,
    /// `None` if there is nothing to record.
    end: Option<ConnectionEnd>,
    reason: Option<Arc<str>>,
}

impl<'a> Recording<'a> {
    fn new(served: &'a Served, to: SocketAddr) -> Self {
        let (host, passed, end) = (served.names.host(to.ip()), Passed::default(), Some(ConnectionEnd::Reset));
        Self { served, to, host, since: Instant::now(), passed, end, reason: None }
    }

    fn block(&mut self, reason: impl Into<Arc<str>>) {
        (self.end, self.reason) = (Some(ConnectionEnd::Blocked), Some(reason.into()));
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        let Some(end) = self.end else { return };
        self.served.recorder.record(Connection {
            host: self.host.take(),
            sent: self.passed.sent.get(),
            received: self.passed.received.get(),
            duration_ms: millis_since(self.since),
            reason: self.reason.take(),
            ..connection(Protocol::Tcp, self.to, end)
        });
    }
}

/// Answers the SYN of a connection that there is no far end for.
fn refuse(served: &Served, port: u16, failure: Failure, record: &mut Recording<'_>) {
    let answer = match failure {
        Failure::Refused => {
            record.end = Some(ConnectionEnd::Refused);
            served.nat.borrow_mut().refused(port)
        }
        Failure::Blocked(reason) => {
            record.block(reason);
            served.nat.borrow_mut().refused(port)
        }
        Failure::Unreachable(why) => {
            record.end = Some(ConnectionEnd::Unreachable);
            served.nat.borrow_mut().unreachable(port, why)
        }
        Failure::NoMeans(error) => {
            tracing::debug!(%error, to = %record.to, "a connection of a step waits");
            // The step's kernel tries again.
            record.end = None;
            served.nat.borrow_mut().abandon(port);
            None
        }
    };
    if answer.is_some() {
        served.recorder.count_refused();
    }
    served.write(answer);
}

/// Lets the SYN through, and passes bytes on until both ends have ended.
async fn exchange(served: &Served, port: u16, (mut far, purpose): (TcpStream, Purpose), record: &mut Recording<'_>) {
    let (accepted, step) = oneshot::channel();
    served.waiting.borrow_mut().insert(port, accepted);
    let syn = served.nat.borrow_mut().connected(port);
    served.write(syn);
    let step = tokio::time::timeout(PATIENCE, step).await;
    served.waiting.borrow_mut().remove(&port);
    let Ok(Ok(mut step)) = step else { return };
    let joined = match purpose {
        Purpose::Data => Pair::new(step, far).join(&served.pipes, &record.passed).await,
        Purpose::Names => dns_stream::relay(served, step, far).await,
        Purpose::Server => {
            let checked = tokio::time::timeout(HELLO_PATIENCE, check_server(served, &mut step, &mut far, record));
            let checked = checked.await.unwrap_or_else(|_| {
                record.block("the step named no server within a minute");
                Ok(false)
            });
            let pair = Pair::new(step, far);
            match checked {
                Ok(true) => pair.join(&served.pipes, &record.passed).await,
                // Resets both ends.
                Ok(false) => return,
                Err(error) => Err(error),
            }
        }
    };
    match joined {
        Ok(()) => record.end = record.end.map(|_| ConnectionEnd::Closed),
        Err(error) => tracing::trace!(%error, to = %record.to, "a connection of a step broke"),
    }
}

/// Reads which server the step wants. If that is allowed, passes on what was read, and returns true.
async fn check_server(
    served: &Served,
    step: &mut TcpStream,
    far: &mut TcpStream,
    record: &mut Recording<'_>,
) -> io::Result<bool> {
    let (mut reader, mut seen) = (HelloReader::default(), Vec::new());
    let reason = loop {
        let start = seen.len();
        seen.resize(start + HELLO_BYTES, 0);
        let length = step.read(&mut seen[start..]).await?;
        seen.truncate(start + length);
        match reader.push(&seen[start..]) {
            Hello::Incomplete if length == 0 && seen.is_empty() => {
                // Only to see whether something listens.
                record.end = Some(ConnectionEnd::Closed);
                return Ok(false);
            }
            Hello::Incomplete if length > 0 => {}
            Hello::Name(name) if served.access.allows_server(&name) => {
                far.write_all(&seen).await?;
                record.passed.sent.set(seen.len() as u64);
                record.host = Some(name.into());
                return Ok(true);
            }
            Hello::Name(name) => {
                break format!("`egress` has no entry for {name}:443, the server of the TLS handshake");
            }
            Hello::Nameless => break "the TLS handshake names no server: list the address in `egress`".to_owned(),
            Hello::NotTls | Hello::Incomplete => {
                break "only TLS may go to port 443 of a listed name: list the address in `egress`".to_owned();
            }
        }
    };
    record.block(reason);
    Ok(false)
}

/// What a connection is for.
enum Purpose {
    /// Bytes that are passed on unread.
    Data,
    /// TLS with a server whose name must be allowed.
    Server,
    /// Questions for names.
    Names,
}

/// Why there is no connection.
enum Failure {
    Refused,
    Blocked(Arc<str>),
    Unreachable(Unreachable),
    /// This machine lacks something for it now.
    NoMeans(io::Error),
}

impl Failure {
    fn of(error: io::Error, to: SocketAddr) -> Self {
        match why_unreachable(&error, to) {
            Some(Unreachable::Port) => Self::Refused,
            Some(why) => Self::Unreachable(why),
            None => Self::NoMeans(error),
        }
    }
}

async fn connect(served: &Served, to: SocketAddr) -> Result<(TcpStream, Purpose), Failure> {
    let way = served.access.way(Protocol::Tcp, to, &served.names).map_err(Failure::NoMeans)?;
    let (addresses, purpose) = match way {
        Way::To(addresses) => (addresses, Purpose::Data),
        Way::Named(address) => (vec![address], Purpose::Server),
        Way::Resolver(addresses) => (addresses, Purpose::Names),
        Way::Blocked(reason) => return Err(Failure::Blocked(reason.into())),
    };
    // That of the first address: this machine may lack the family of another.
    let mut failure = None;
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(far) => {
                let (local, peer) =
                    far.local_addr().and_then(|own| Ok((own, far.peer_addr()?))).map_err(Failure::NoMeans)?;
                // Only these were meant to be here.
                let is_asked_for = address.ip().is_loopback() || matches!(purpose, Purpose::Names);
                return if is_within(local, peer) && !is_asked_for {
                    Err(Failure::Blocked("it is an address of this machine".into()))
                } else {
                    Ok((far, purpose))
                };
            }
            Err(error) if failure.is_none() => failure = Some(Failure::of(error, address)),
            Err(_) => {}
        }
    }
    Err(failure.unwrap_or(Failure::Refused))
}
