//! The connections of a step, for its log.
//!
//! Each one is handed on when it ends. If a step has very many, the rest is counted by destination and
//! handed on at the end of the step, so that neither memory nor the log grows with them.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use crate::model::{Connection, ConnectionEnd, Protocol};

/// The most connections of a step that are recorded one by one.
const MAX_SINGLE: usize = 1000;
/// The most destinations that further ones are counted by. What goes to yet others is one sum for each
/// protocol and end.
const MAX_SUMS: usize = 1000;

/// Takes each connection that ended.
pub(crate) type ConnectionSink = Box<dyn Fn(&Connection) + Send>;

/// What the connections of a step say about a failure of the step.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct NetworkSummary {
    /// The first connection that the step's rules do not allow.
    pub(crate) blocked: Option<Connection>,
    /// Whether a connection within the step's own network was refused.
    pub(crate) refused_within: bool,
    /// Whether it is certain that no packet of the step left its network, so that nothing from outside can
    /// have influenced it. Packets that the kernel sends by itself do not count: they are dropped.
    pub(crate) is_unused: bool,
}

/// A log that is being written.
pub(super) struct Recorder {
    sink: ConnectionSink,
    state: RefCell<State>,
}

#[derive(Debug, Default)]
struct State {
    single: usize,
    sums: BTreeMap<Key, Connection>,
    blocked: Option<Connection>,
    /// The number of resets that the step got in answer to an attempt to connect.
    refused: u64,
}

/// What connections have in common that are counted together.
type Key = (Protocol, ConnectionEnd, Option<(Option<Arc<str>>, Option<IpAddr>, Option<u16>)>);

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Recorder {
    pub(super) fn new(sink: ConnectionSink) -> Self {
        Self { sink, state: RefCell::default() }
    }

    /// Records a connection that ended.
    pub(super) fn record(&self, connection: Connection) {
        if connection.end == ConnectionEnd::Blocked {
            self.state.borrow_mut().blocked.get_or_insert_with(|| connection.clone());
        }
        self.record_harmless(connection);
    }

    /// Records a connection that does not explain a failure of the step.
    pub(super) fn record_harmless(&self, connection: Connection) {
        let mut state = self.state.borrow_mut();
        if state.single < MAX_SINGLE {
            state.single += 1;
            drop(state);
            (self.sink)(&connection);
            return;
        }
        let place = (connection.host.clone(), connection.address, connection.port);
        let key = (connection.protocol, connection.end, Some(place));
        let is_full = state.sums.len() >= MAX_SUMS;
        match state.sums.get_mut(&key) {
            Some(sum) => sum.add(&connection),
            None if is_full => {
                let (protocol, end, _) = key;
                let others = || Connection { count: 0, ..Connection::new(protocol, end) };
                state.sums.entry((protocol, end, None)).or_insert_with(others).add(&connection);
            }
            None => drop(state.sums.insert(key, connection)),
        }
    }

    /// Counts a reset that the step gets in answer to an attempt to connect.
    pub(super) fn count_refused(&self) {
        self.state.borrow_mut().refused += 1;
    }

    /// Hands on what was counted. Returns the summary, and the number of resets.
    pub(super) fn finish(&self) -> (NetworkSummary, u64) {
        let State { sums, blocked, refused, .. } = self.state.take();
        sums.values().for_each(|sum| (self.sink)(sum));
        (NetworkSummary { blocked, ..NetworkSummary::default() }, refused)
    }
}

/// Returns the record of a connection to `to` by `protocol`.
pub(super) fn connection(protocol: Protocol, to: SocketAddr, end: ConnectionEnd) -> Connection {
    Connection { address: Some(to.ip().to_canonical()), port: Some(to.port()), ..Connection::new(protocol, end) }
}

/// Returns the time since `since` in milliseconds.
pub(super) fn millis_since(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    fn recorded(connections: impl IntoIterator<Item = Connection>) -> (Vec<Connection>, NetworkSummary) {
        let all = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&all);
        let recorder = Recorder::new(Box::new(move |it| sink.lock().unwrap().push(it.clone())));
        connections.into_iter().for_each(|it| recorder.record(it));
        let (summary, _) = recorder.finish();
        let all = all.lock().unwrap().clone();
        (all, summary)
    }

    fn to(address: &str, end: ConnectionEnd) -> Connection {
        Connection { sent: 1, ..connection(Protocol::Tcp, address.parse().unwrap(), end) }
    }

    #[test]
    fn a_flood_is_counted_by_destination_and_nothing_is_lost() {
        let flood = (0..100_000).map(|_| to("192.0.2.1:80", ConnectionEnd::Closed));
        let (all, summary) = recorded(flood);
        assert_eq!(all.len(), MAX_SINGLE + 1);
        assert_eq!((all[MAX_SINGLE].count, all[MAX_SINGLE].sent), (99_000, 99_000));
        assert_eq!(all.iter().map(|it| it.count).sum::<u64>(), 100_000);
        assert_eq!(summary, NetworkSummary::default());
    }

    #[test]
    fn a_scan_of_many_destinations_is_one_sum_beyond_the_limit() {
        let scan = (0..50_000_u32).map(|at| {
            let end = if at % 2 == 0 { ConnectionEnd::Refused } else { ConnectionEnd::Blocked };
            to(&format!("{}:80", std::net::Ipv4Addr::from(0xc000_0000 + at)), end)
        });
        let (all, summary) = recorded(scan);
        assert!(all.len() <= MAX_SINGLE + MAX_SUMS + 2, "{}", all.len());
        assert_eq!(all.iter().map(|it| it.count).sum::<u64>(), 50_000);
        assert_eq!(all.iter().map(|it| it.sent).sum::<u64>(), 50_000);
        let others = all.iter().filter(|it| it.address.is_none());
        assert_eq!(others.map(|it| it.end).collect::<Vec<_>>(), [ConnectionEnd::Refused, ConnectionEnd::Blocked]);
        assert_eq!(summary.blocked.unwrap().address, Some("192.0.0.1".parse().unwrap()));
    }
}
