//! Connections of steps in a run's journal.

use std::{net::IpAddr, path::Path, sync::Arc};

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use super::{
    JournalError,
    record::{Record, clip},
    replay::records,
};
use crate::model::{Connection, ConnectionEnd, Protocol, StepIndex};

/// The fields of a connection in its record. The order is the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct ConnectionFields<'a> {
    protocol: u8,
    end: u8,
    address: Option<IpAddr>,
    port: Option<u16>,
    sent: u64,
    received: u64,
    duration_ms: u64,
    count: u64,
    host: Option<&'a str>,
    reason: Option<&'a str>,
}

impl<'a> ConnectionFields<'a> {
    /// Returns the fields of a connection, with these texts as its host and its reason.
    fn of(connection: &Connection, (host, reason): (Option<&'a str>, Option<&'a str>)) -> Self {
        Self {
            protocol: protocol_code(connection.protocol),
            end: end_code(connection.end),
            address: connection.address,
            port: connection.port,
            sent: connection.sent,
            received: connection.received,
            duration_ms: connection.duration_ms,
            count: connection.count,
            host: host.map(clip),
            reason: reason.map(clip),
        }
    }

    /// Returns the connection. Returns `None` if it has a code of a later version.
    fn decode(self) -> Option<Connection> {
        Some(Connection {
            host: self.host.map(Into::into),
            address: self.address,
            port: self.port,
            sent: self.sent,
            received: self.received,
            duration_ms: self.duration_ms,
            count: self.count,
            reason: self.reason.map(Into::into),
            ..Connection::new(protocol_of(self.protocol)?, end_of(self.end)?)
        })
    }
}

/// Encodes a connection for its record, with these texts as its host and its reason.
pub(super) fn encode_connection(connection: &Connection, texts: (Option<&str>, Option<&str>)) -> Vec<u8> {
    // The type cannot fail to encode.
    postcard::to_stdvec(&ConnectionFields::of(connection, texts)).unwrap_or_default()
}

/// Decodes what [`encode_connection`] encoded. Returns `None` if it has a code of a later version. Any bytes
/// after its fields belong to a later version.
pub(super) fn decode_connection(bytes: &[u8]) -> Result<Option<Connection>, postcard::Error> {
    let (fields, _later_fields) = postcard::take_from_bytes::<ConnectionFields<'_>>(bytes)?;
    Ok(fields.decode())
}

const fn protocol_code(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 0,
        Protocol::Udp => 1,
        Protocol::Dns => 2,
    }
}

const fn protocol_of(code: u8) -> Option<Protocol> {
    Some(match code {
        0 => Protocol::Tcp,
        1 => Protocol::Udp,
        2 => Protocol::Dns,
        _ => return None,
    })
}

const fn end_code(end: ConnectionEnd) -> u8 {
    match end {
        ConnectionEnd::Closed => 0,
        ConnectionEnd::Reset => 1,
        ConnectionEnd::Refused => 2,
        ConnectionEnd::Unreachable => 3,
        ConnectionEnd::Blocked => 4,
    }
}

const fn end_of(code: u8) -> Option<ConnectionEnd> {
    Some(match code {
        0 => ConnectionEnd::Closed,
        1 => ConnectionEnd::Reset,
        2 => ConnectionEnd::Refused,
        3 => ConnectionEnd::Unreachable,
        4 => ConnectionEnd::Blocked,
        _ => return None,
    })
}

/// A connection in a run's journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ConnectionRecord {
    /// The step's key.
    pub step: Arc<str>,
    /// The attempt.
    pub attempt: u32,
    /// The time of its end.
    pub ts: DateTime<Utc>,
    /// The connection.
    #[serde(flatten)]
    pub connection: Connection,
}

/// Calls `show` with each connection of one step, or of all steps, of the run in `dir`, in the order in which
/// they ended. Stops if it returns false. Logs are not read. Parts of a truncated journal that cannot be read
/// are left out.
///
/// # Errors
/// Returns the same errors as [`open`](super::open).
pub fn connections(
    dir: impl AsRef<Path>,
    step: Option<StepIndex>,
    mut show: impl FnMut(ConnectionRecord) -> bool,
) -> Result<(), JournalError> {
    records(dir.as_ref(), |meta, record| {
        let Record::Connection { at_ms, step: of, attempt, trailing } = record else { return true };
        if step.is_some_and(|step| step.0 != of) {
            return true;
        }
        let connection = decode_connection(trailing).ok().flatten();
        let (Some(step), Some(connection)) = (meta.steps.get(of as usize), connection) else { return true };
        let since = i64::try_from(at_ms).ok().and_then(TimeDelta::try_milliseconds).unwrap_or_default();
        let ts = meta.started_at.checked_add_signed(since).unwrap_or(meta.started_at);
        show(ConnectionRecord { step: Arc::clone(&step.key), attempt, ts, connection })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_connection_survives_its_record() {
        for protocol in (0..=u8::MAX).filter_map(protocol_of) {
            for end in (0..=u8::MAX).filter_map(end_of) {
                for address in [None, Some("192.0.2.1"), Some("2001:db8::1")] {
                    let connection = Connection {
                        address: address.map(|address| address.parse().unwrap()),
                        port: address.map(|_| 443),
                        sent: 1,
                        received: u64::MAX,
                        duration_ms: 3,
                        count: 4,
                        ..Connection::new(protocol, end)
                    };
                    let mut bytes = encode_connection(&connection, (Some("a.example"), Some("why")));
                    bytes.extend_from_slice(b"later");
                    let (host, reason) = (Some("a.example".into()), Some("why".into()));
                    let decoded = decode_connection(&bytes).unwrap();
                    assert_eq!(decoded, Some(Connection { host, reason, ..connection }));
                }
            }
        }
        assert_eq!((0..=u8::MAX).filter_map(protocol_of).count(), 3);
        assert_eq!((0..=u8::MAX).filter_map(end_of).count(), 5);
    }

    #[test]
    fn a_connection_with_a_code_of_a_later_version_is_unknown() {
        let connection = Connection::new(Protocol::Tcp, ConnectionEnd::Closed);
        let fields = ConnectionFields::of(&connection, (None, None));
        assert_eq!(fields.decode(), Some(connection.clone()));
        assert_eq!(ConnectionFields { protocol: 77, ..fields }.decode(), None);
        assert_eq!(ConnectionFields { end: 77, ..fields }.decode(), None);
    }
}
