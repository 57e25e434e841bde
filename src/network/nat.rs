//! The table of a step's TCP connections, and what happens to each packet.
//!
//! ```text
//!   SYN from the step ─▶ Verdict::Connect ─┬─ connected() ─▶ the SYN, readdressed to the listener
//!      (held here)                         └─ refused(), unreachable() ─▶ a reset, an ICMP message
//!   other segments ─▶ Verdict::Forward: readdressed in place, step ⇄ listener
//! ```
//!
//! Each connection has a port of the neighbour, from which the listener sees it come. The table does no input
//! or output, and time is an argument.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    ops::Range,
    time::{Duration, Instant},
};

use super::{
    addresses::{machine, neighbour, step},
    packet::{self, Content, Packet, Segment, Unreachable},
};
use crate::jail::network::LISTENER_PORT;

/// The most connections of a step at a time.
const MAX_CONNECTIONS: usize = 1024;
/// The most connections that are over and not forgotten yet.
const MAX_OVER: usize = 16 << 10;
/// The first port of the neighbour.
const FIRST_PORT: u16 = 1024;
/// How long the end of a connection is remembered, so that late segments find it.
const LINGER: Duration = Duration::from_secs(60);

/// What to do about a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    Drop,
    /// Write it back to the device: it was readdressed.
    Forward,
    /// Write this frame instead.
    Answer(Vec<u8>),
    /// Connect to this address, and report what happened under this port.
    Connect(u16, SocketAddr),
    /// Send the datagram.
    Send(Datagram),
}

/// A datagram of the step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Datagram {
    /// The step's address.
    pub(super) from: SocketAddr,
    /// The destination.
    pub(super) to: SocketAddr,
    /// Where the content is in the frame.
    pub(super) content: Range<usize>,
}

/// A connection that a step asked for.
#[derive(Debug)]
struct Connection {
    /// The step's port.
    from_port: u16,
    to: SocketAddr,
    state: State,
    /// Whether the step, and the listener, have sent the last byte.
    ended: [bool; 2],
}

#[derive(Debug)]
enum State {
    /// The engine connects. The frame is the step's SYN.
    Connecting(Vec<u8>),
    /// Segments pass.
    Open,
    /// The sockets of the engine are closed: only what the kernel still has to send passes.
    Over,
}

impl Connection {
    /// Returns whether the step may use the port for the next connection.
    fn has_ended(&self) -> bool {
        matches!(self.state, State::Over) || self.ended == [true; 2]
    }
}

/// The connections of a step.
#[derive(Debug, Default)]
pub(super) struct Nat {
    /// By the neighbour's port.
    connections: HashMap<u16, Connection>,
    /// The neighbour's port by the step's port and the destination.
    ports: HashMap<(u16, SocketAddr), u16>,
    last_port: u16,
    /// The connections that are over, the oldest first.
    over: VecDeque<(Instant, u16)>,
}

impl Nat {
    /// Decides about a frame from the device.
    pub(super) fn handle(&mut self, frame: &mut [u8], now: Instant) -> Verdict {
        let Some(packet) = Packet::parse(frame) else { return Verdict::Drop };
        if packet.from.ip() != step(packet.to.ip()) {
            return Verdict::Drop;
        }
        match packet.content {
            Content::Datagram(content) => Verdict::Send(Datagram { from: packet.from, to: packet.to, content }),
            Content::Segment(segment) if packet.to.ip() == neighbour(packet.to.ip()) => {
                self.listener_sent(frame, &packet, segment)
            }
            Content::Segment(segment) => self.step_sent(frame, &packet, segment, now),
        }
    }

    /// Handles what the listener sends to its peer.
    fn listener_sent(&mut self, frame: &mut [u8], packet: &Packet, segment: Segment) -> Verdict {
        let connection = self.connections.get_mut(&packet.to.port());
        // A connection belongs to one family, and only the listener has its port.
        let connection =
            connection.filter(|it| it.to.is_ipv4() == packet.to.is_ipv4() && packet.from.port() == LISTENER_PORT);
        let Some(connection) = connection else { return Verdict::Drop };
        connection.ended[1] |= segment.fin;
        if segment.rst {
            connection.ended = [true; 2];
        }
        let step = SocketAddr::new(packet.from.ip(), connection.from_port);
        packet::readdress(frame, connection.to, step).map_or(Verdict::Drop, |()| Verdict::Forward)
    }

    /// Handles what the step sends to a far end.
    fn step_sent(&mut self, frame: &mut [u8], packet: &Packet, segment: Segment, now: Instant) -> Verdict {
        let key = (packet.from.port(), packet.to);
        let known = self.ports.get(&key).copied();
        let known = known.and_then(|port| Some((port, self.connections.get_mut(&port)?)));
        match known {
            Some((port, connection)) if !(segment.opens() && connection.has_ended()) => {
                if let State::Connecting(_) = connection.state {
                    // The step tries again, or gave up.
                    return Verdict::Drop;
                }
                connection.ended[0] |= segment.fin;
                if segment.rst {
                    connection.ended = [true; 2];
                }
                readdressed(frame, packet, port)
            }
            _ if segment.opens() => {
                let Some(port) = self.free_port(now) else { return Verdict::Drop };
                let state = State::Connecting(frame.to_vec());
                let (from_port, to) = key;
                self.connections.insert(port, Connection { from_port, to, state, ended: [false; 2] });
                self.ports.insert(key, port);
                Verdict::Connect(port, to)
            }
            // A segment of a connection that was reset.
            _ if !segment.rst => packet::reset(packet).map_or(Verdict::Drop, Verdict::Answer),
            _ => Verdict::Drop,
        }
    }

    /// Returns a free port of the neighbour, unless the step has too many connections.
    fn free_port(&mut self, now: Instant) -> Option<u16> {
        self.forget(now);
        if self.connections.len() - self.over.len() >= MAX_CONNECTIONS {
            return None;
        }
        // At most a third of the ports is taken, so a free one is near.
        for _ in FIRST_PORT..=u16::MAX {
            self.last_port = self.last_port.checked_add(1).map_or(FIRST_PORT, |port| port.max(FIRST_PORT));
            if !self.connections.contains_key(&self.last_port) {
                return Some(self.last_port);
            }
        }
        None
    }

    /// Forgets connections that are over: old ones, and the oldest if there are many. A step that reads
    /// slowly keeps those whose last byte the kernel has not sent yet.
    fn forget(&mut self, now: Instant) {
        while let Some((since, port)) = self.over.front().copied()
            && (self.over.len() > MAX_OVER || now.saturating_duration_since(since) >= LINGER)
        {
            self.over.pop_front();
            let is_sending = self.connections.get(&port).is_some_and(|it| it.ended != [true; 2]);
            if is_sending && self.over.len() < MAX_OVER {
                self.over.push_back((now, port));
            } else {
                self.remove(port);
            }
        }
    }

    fn remove(&mut self, port: u16) -> Option<Connection> {
        let connection = self.connections.remove(&port)?;
        let key = (connection.from_port, connection.to);
        // The step may have used the port again.
        if self.ports.get(&key) == Some(&port) {
            self.ports.remove(&key);
        }
        Some(connection)
    }

    /// Lets the SYN of a connection through: the engine is connected. Returns the frame to write, or `None`
    /// if nothing waits for that.
    pub(super) fn connected(&mut self, port: u16) -> Option<Vec<u8>> {
        let connection = self.connections.get_mut(&port)?;
        let State::Connecting(syn) = &mut connection.state else { return None };
        let mut frame = std::mem::take(syn);
        connection.state = State::Open;
        let packet = Packet::parse(&frame)?;
        (readdressed(&mut frame, &packet, port) == Verdict::Forward).then_some(frame)
    }

    /// Resets a connection: its destination refused it. Returns the frame to write.
    pub(super) fn refused(&mut self, port: u16) -> Option<Vec<u8>> {
        packet::reset(&Packet::parse(&self.take_syn(port)?)?)
    }

    /// Ends a connection with an ICMP message: there is no way to its destination. Returns the frame to
    /// write.
    pub(super) fn unreachable(&mut self, port: u16, why: Unreachable) -> Option<Vec<u8>> {
        let syn = self.take_syn(port)?;
        let to = Packet::parse(&syn)?.to.ip();
        packet::unreachable(machine(to), &syn, why)
    }

    /// Ends a connection without a word, so that the step's kernel tries again.
    pub(super) fn abandon(&mut self, port: u16) {
        self.take_syn(port);
    }

    fn take_syn(&mut self, port: u16) -> Option<Vec<u8>> {
        if !matches!(self.connections.get(&port)?.state, State::Connecting(_)) {
            return None;
        }
        match self.remove(port)?.state {
            State::Connecting(syn) => Some(syn),
            State::Open | State::Over => None,
        }
    }

    /// Records that the engine has closed the sockets of a connection. The kernel may still have something to
    /// send.
    pub(super) fn closed(&mut self, port: u16, now: Instant) {
        if let Some(connection) = self.connections.get_mut(&port)
            && matches!(connection.state, State::Open)
        {
            connection.state = State::Over;
            self.over.push_back((now, port));
        }
        self.forget(now);
    }
}

fn readdressed(frame: &mut [u8], packet: &Packet, port: u16) -> Verdict {
    let from = SocketAddr::new(neighbour(packet.to.ip()), port);
    let to = SocketAddr::new(packet.from.ip(), LISTENER_PORT);
    packet::readdress(frame, from, to).map_or(Verdict::Drop, |()| Verdict::Forward)
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, time::Instant};

    use proptest::prelude::*;

    use super::{super::nat_oracle, MAX_CONNECTIONS, Nat, Verdict};
    use crate::jail::network::STEP_V4;

    #[test]
    fn a_connection_beyond_the_limit_waits_until_another_is_over() {
        let (mut nat, now) = (Nat::default(), Instant::now());
        let far: SocketAddr = "192.0.2.1:80".parse().unwrap();
        let syn = |port: u16| nat_oracle::segment((STEP_V4, port).into(), far, 1);
        for port in (1..).take(MAX_CONNECTIONS) {
            assert!(matches!(nat.handle(&mut syn(port), now), Verdict::Connect(..)), "{port}");
        }
        assert_eq!(nat.handle(&mut syn(u16::MAX), now), Verdict::Drop);
        // The neighbour's first port.
        nat.connected(1024).unwrap();
        nat.closed(1024, now);
        assert!(matches!(nat.handle(&mut syn(u16::MAX), now), Verdict::Connect(..)));
    }

    proptest! {
        #[test]
        fn any_packets_in_any_order_do_what_the_model_says(script in prop::collection::vec(any::<u8>(), 0..2000)) {
            nat_oracle::check(&script);
        }
    }
}
