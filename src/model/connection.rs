//! What a step connected to.

use std::{fmt, net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};

/// A connection of a step to something outside its network, a series of datagrams, a refused question for a
/// name, or the sum of many of these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Connection {
    /// The protocol.
    pub protocol: Protocol,
    /// The name that the step asked for before it connected to the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<Arc<str>>,
    /// The destination as the step named it. A question for a name has none, and neither has the sum of
    /// connections to several destinations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The port of the destination, if there is an address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// How it ended.
    pub end: ConnectionEnd,
    /// The bytes from the step, without headers of the protocol.
    pub sent: u64,
    /// The bytes to the step.
    pub received: u64,
    /// The time from the first packet to the end, in milliseconds. It is that of the longest one if this is
    /// the sum of several.
    pub duration_ms: u64,
    /// The number of connections that this stands for.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub count: u64,
    /// The reason, if the end alone does not show it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Arc<str>>,
}

const fn one() -> u64 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_one(count: &u64) -> bool {
    *count == 1
}

impl Connection {
    /// Returns a single connection over which no bytes have passed.
    #[must_use]
    pub const fn new(protocol: Protocol, end: ConnectionEnd) -> Self {
        Self {
            protocol,
            host: None,
            address: None,
            port: None,
            end,
            sent: 0,
            received: 0,
            duration_ms: 0,
            count: 1,
            reason: None,
        }
    }

    /// Adds another one to this sum.
    pub(crate) fn add(&mut self, other: &Self) {
        self.sent = self.sent.saturating_add(other.sent);
        self.received = self.received.saturating_add(other.received);
        self.duration_ms = self.duration_ms.max(other.duration_ms);
        self.count = self.count.saturating_add(other.count);
    }

    /// Returns the destination as text: the name if there is one, otherwise the address, and the port.
    #[must_use]
    pub fn destination(&self) -> String {
        let host = match (&self.host, self.address) {
            (Some(host), _) => host.to_string(),
            (None, Some(IpAddr::V6(address))) => format!("[{address}]"),
            (None, Some(address)) => address.to_string(),
            (None, None) => "other destinations".to_owned(),
        };
        match self.port {
            Some(port) => format!("{host}:{port}"),
            None => host,
        }
    }
}

/// The protocol of a [`Connection`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Protocol {
    /// A connection.
    Tcp,
    /// Datagrams between one port of the step and one destination.
    Udp,
    /// A question for a name.
    Dns,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Dns => "dns",
        })
    }
}

/// How a [`Connection`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ConnectionEnd {
    /// Both sides closed it, or nothing was sent for a while.
    Closed,
    /// One side broke it, or it was open when the step ended.
    Reset,
    /// The destination refused it.
    Refused,
    /// The destination could not be reached.
    Unreachable,
    /// The step may not reach the destination.
    Blocked,
}

impl fmt::Display for ConnectionEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Closed => "closed",
            Self::Reset => "reset",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Blocked => "blocked",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_named_as_the_step_named_it() {
        let mut connection = Connection::new(Protocol::Tcp, ConnectionEnd::Closed);
        assert_eq!(connection.destination(), "other destinations");
        connection.port = Some(443);
        connection.address = Some("2001:db8::1".parse().unwrap());
        assert_eq!(connection.destination(), "[2001:db8::1]:443");
        connection.address = Some("192.0.2.1".parse().unwrap());
        assert_eq!(connection.destination(), "192.0.2.1:443");
        connection.host = Some("a.example".into());
        assert_eq!(connection.destination(), "a.example:443");
    }

    #[test]
    fn a_sum_counts_everything() {
        let one = Connection {
            sent: 3,
            received: 4,
            duration_ms: 5,
            ..Connection::new(Protocol::Udp, ConnectionEnd::Closed)
        };
        let mut sum = one.clone();
        sum.add(&Connection { sent: u64::MAX, duration_ms: 9, ..one.clone() });
        sum.add(&one);
        assert_eq!((sum.sent, sum.received, sum.duration_ms, sum.count), (u64::MAX, 12, 9, 3));
        let json = serde_json::to_value(&one).unwrap();
        let plain = serde_json::json!({"protocol": "udp", "end": "closed", "sent": 3, "received": 4, "duration_ms": 5});
        assert_eq!(json, plain);
        assert_eq!(serde_json::from_value::<Connection>(json).unwrap(), one);
    }
}
