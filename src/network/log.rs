//! The connections of a step, for its log.

use std::{cell::RefCell, net::SocketAddr};

/// The most connections of a step that are recorded one by one.
const MAX_RECORDED: usize = 10_000;

/// A connection of a step, or a series of datagrams to one destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Connection {
    pub(crate) protocol: Protocol,
    /// The destination as the step named it, by address.
    pub(crate) to: SocketAddr,
    pub(crate) end: ConnectionEnd,
    /// The bytes from the step.
    pub(crate) sent: u64,
    /// The bytes to the step.
    pub(crate) received: u64,
}

/// The protocol of a [`Connection`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

/// How a [`Connection`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectionEnd {
    /// Both sides closed it.
    Closed,
    /// One side broke it, or it was open when the step ended.
    Reset,
    /// The destination refused it.
    Refused,
    /// The destination could not be reached.
    Unreachable,
    /// The step may not reach the destination.
    Denied,
}

/// The connections of a step.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ConnectionLog {
    /// Those that ended, in this order.
    pub(crate) connections: Vec<Connection>,
    /// The number of further ones.
    pub(crate) omitted: u64,
}

/// A log that is being written.
#[derive(Debug, Default)]
pub(super) struct Recorder(RefCell<ConnectionLog>);

impl Recorder {
    pub(super) fn record(&self, connection: Connection) {
        let mut log = self.0.borrow_mut();
        if log.connections.len() < MAX_RECORDED {
            log.connections.push(connection);
        } else {
            log.omitted += 1;
        }
    }

    pub(super) fn take(&self) -> ConnectionLog {
        self.0.take()
    }
}
