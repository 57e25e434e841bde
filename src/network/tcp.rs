//! A TCP connection of a step, from its SYN to its end.

use std::{
    io,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use rustix::io::Errno;
use tokio::{net::TcpStream, sync::oneshot};

use super::{
    access::{Way, is_within, why_unreachable},
    addresses::Destination,
    log::{Connection, ConnectionEnd, Protocol},
    packet::Unreachable,
    relay::{Pair, Passed},
    served::Served,
};

/// How long the step's kernel may take to accept what the engine is connected to. Its handshake waits for
/// nothing but packets that are here already.
const PATIENCE: Duration = Duration::from_secs(30);

/// Serves the connection of a step to `to` that has the neighbour's port `port`.
pub(super) async fn serve(served: Rc<Served>, port: u16, to: SocketAddr) {
    let record = Recording { served: &served, to, passed: Passed::default(), end: ConnectionEnd::Reset };
    serve_recorded(&served, port, record).await;
}

/// Writes a connection to the log when it ends, also if that is with the step.
struct Recording<'a> {
    served: &'a Served,
    to: SocketAddr,
    passed: Passed,
    end: ConnectionEnd,
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        self.served.recorder.record(Connection {
            protocol: Protocol::Tcp,
            to: self.to,
            end: self.end,
            sent: self.passed.sent.get(),
            received: self.passed.received.get(),
        });
    }
}

async fn serve_recorded(served: &Served, port: u16, mut record: Recording<'_>) {
    let held = served.pipes.hold();
    let connected = match &held {
        Some(_) => connect(served, record.to).await,
        None => Err(Failure::NoMeans(Errno::MFILE.into())),
    };
    let far = match connected {
        Ok(far) => far,
        Err(failure) => {
            record.end = failure.end();
            let answer = match failure {
                Failure::Refused | Failure::Denied => served.nat.borrow_mut().refused(port),
                Failure::Unreachable(why) => served.nat.borrow_mut().unreachable(port, why),
                Failure::NoMeans(error) => {
                    tracing::debug!(%error, to = %record.to, "a connection of a step waits");
                    served.nat.borrow_mut().abandon(port);
                    None
                }
            };
            served.write(answer);
            return;
        }
    };
    let (accepted, step) = oneshot::channel();
    served.waiting.borrow_mut().insert(port, accepted);
    let syn = served.nat.borrow_mut().connected(port);
    served.write(syn);
    let step = tokio::time::timeout(PATIENCE, step).await;
    served.waiting.borrow_mut().remove(&port);
    if let Ok(Ok(step)) = step {
        match Pair::new(step, far).join(&served.pipes, &record.passed).await {
            Ok(()) => record.end = ConnectionEnd::Closed,
            Err(error) => tracing::trace!(%error, to = %record.to, "a connection of a step broke"),
        }
    }
    served.nat.borrow_mut().closed(port, Instant::now());
}

/// Why there is no connection.
enum Failure {
    Refused,
    Denied,
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

    fn end(&self) -> ConnectionEnd {
        match self {
            Self::Refused => ConnectionEnd::Refused,
            Self::Denied => ConnectionEnd::Denied,
            Self::Unreachable(_) | Self::NoMeans(_) => ConnectionEnd::Unreachable,
        }
    }
}

async fn connect(served: &Served, to: SocketAddr) -> Result<TcpStream, Failure> {
    let addresses = match served.access.way(to).map_err(Failure::NoMeans)? {
        Way::To(addresses) => addresses,
        Way::Denied => return Err(Failure::Denied),
        Way::Refused => return Err(Failure::Refused),
    };
    // That of the first address: this machine may lack the family of another.
    let mut failure = None;
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(far) => {
                let (local, peer) =
                    far.local_addr().and_then(|own| Ok((own, far.peer_addr()?))).map_err(Failure::NoMeans)?;
                // Only these were meant to be here.
                let is_asked_for = address.ip().is_loopback() || Destination::of(to) == Destination::Resolver;
                return if is_within(local, peer) && !is_asked_for { Err(Failure::Denied) } else { Ok(far) };
            }
            Err(error) if failure.is_none() => failure = Some(Failure::of(error, address)),
            Err(_) => {}
        }
    }
    Err(failure.unwrap_or(Failure::Refused))
}
