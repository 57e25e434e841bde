//! A model of the table of connections, for its property test and its fuzz target: a script of packets and
//! events, and what must come of each.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use etherparse::{Ipv4HeaderSlice, PacketBuilder, TcpHeaderSlice};

use super::{
    addresses::{neighbour, step},
    nat::{Nat, Verdict},
    packet::{Content, Packet, Unreachable},
};
use crate::jail::network::{FRAME_HEADER_BYTES, LISTENER_PORT};

/// The far ends of the script's connections.
const FAR: [&str; 4] = ["192.0.2.1:80", "192.0.2.2:443", "[2001:db8::1]:80", "[2001:db8::2]:443"];

/// What the model knows of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Connecting,
    Open,
    Over,
}

#[derive(Debug, Clone, Copy)]
struct Connection {
    from: SocketAddr,
    to: SocketAddr,
    state: State,
    ended: [bool; 2],
}

#[derive(Default)]
struct Model {
    nat: Nat,
    connections: BTreeMap<u16, Connection>,
}

/// Plays a script, and panics if the table does anything but what the model says.
///
/// # Panics
/// Panics if the table is wrong.
pub(crate) fn check(script: &[u8]) {
    let mut model = Model::default();
    let start = Instant::now();
    let mut now = start;
    let mut rest = script;
    while let Some((command, after)) = rest.split_first_chunk::<4>() {
        let [kind, a, b, c] = *command;
        rest = after;
        // Sometimes long enough to forget what is over.
        now += Duration::from_millis(u64::from(c) * 10);
        match kind % 8 {
            0 => {
                let (bytes, after) = rest.split_at(rest.len().min(usize::from(a)));
                rest = after;
                let _ = model.nat.handle(&mut bytes.to_vec(), now);
                // What happened depends on the bytes, so the model starts over.
                model = Model::default();
            }
            1..=3 => model.step_sent(a, b, c, now),
            4 => model.listener_sent(a, c, now),
            _ => model.event(kind % 8, a, now),
        }
    }
}

impl Model {
    fn step_sent(&mut self, a: u8, b: u8, flags: u8, now: Instant) {
        let to: SocketAddr = FAR[usize::from(b) % FAR.len()].parse().expect("an address");
        let from = SocketAddr::new(step(to.ip()), 40000 + u16::from(a % 8));
        let mut frame = segment(from, to, flags);
        // One in two packets is broken in one place: the table must bear it, and the model cannot follow.
        if flags & 0x80 != 0 {
            let at = usize::from(flags) * 7 % frame.len();
            frame[at] ^= 1 << (b % 8);
            let _ = Nat::default().handle(&mut frame, now);
            return;
        }
        let (syn, ack, fin, rst) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0, flags & 8 != 0);
        let opens = syn && !ack && !fin && !rst;
        let verdict = self.nat.handle(&mut frame, now);
        let known = self
            .connections
            .iter_mut()
            .filter(|(_, it)| it.from == from && it.to == to)
            .find(|(_, it)| !(opens && (it.state == State::Over || it.ended == [true; 2])));
        match known {
            Some((_, it)) if it.state == State::Connecting => assert_eq!(verdict, Verdict::Drop),
            // The table may have forgotten a connection that is over.
            Some((_, it)) if it.state == State::Over && verdict != Verdict::Forward => {}
            Some((port, it)) => {
                assert_eq!(verdict, Verdict::Forward);
                it.ended[0] |= fin;
                it.ended = if rst { [true; 2] } else { it.ended };
                let listener = SocketAddr::new(from.ip(), LISTENER_PORT);
                assert_frame(&frame, SocketAddr::new(neighbour(to.ip()), *port), listener);
            }
            None if opens => {
                let Verdict::Connect(port, far) = verdict else { panic!("a SYN got {verdict:?}") };
                assert_eq!(far, to);
                self.connections.retain(|_, it| it.from != from || it.to != to);
                let new = Connection { from, to, state: State::Connecting, ended: [false; 2] };
                let old = self.connections.insert(port, new);
                assert!(old.is_none_or(|old| old.state == State::Over), "the port {port} is in use");
            }
            None if rst => assert_eq!(verdict, Verdict::Drop),
            None => {
                let Verdict::Answer(answer) = verdict else { panic!("an unknown segment got {verdict:?}") };
                assert_frame(&answer, to, from);
            }
        }
    }

    fn listener_sent(&mut self, a: u8, flags: u8, now: Instant) {
        let Some((port, it)) = self.nth(a) else { return };
        let from = SocketAddr::new(it.from.ip(), LISTENER_PORT);
        let mut frame = segment(from, SocketAddr::new(neighbour(it.to.ip()), port), flags & 0x7f);
        let verdict = self.nat.handle(&mut frame, now);
        if it.state == State::Over && verdict == Verdict::Drop {
            return;
        }
        assert_eq!(verdict, Verdict::Forward);
        assert_frame(&frame, it.to, it.from);
        let it = self.connections.get_mut(&port).expect("it is there");
        it.ended[1] |= flags & 4 != 0;
        it.ended = if flags & 8 != 0 { [true; 2] } else { it.ended };
    }

    fn event(&mut self, kind: u8, a: u8, now: Instant) {
        let Some((port, it)) = self.nth(a) else { return };
        let connecting = it.state == State::Connecting;
        match kind {
            5 => {
                let frame = self.nat.connected(port);
                assert_eq!(frame.is_some(), connecting);
                if let Some(frame) = frame {
                    let listener = SocketAddr::new(it.from.ip(), LISTENER_PORT);
                    assert_frame(&frame, SocketAddr::new(neighbour(it.to.ip()), port), listener);
                    self.set(port, State::Open);
                }
            }
            6 => {
                let frame = match a % 3 {
                    0 => self.nat.refused(port),
                    1 => self.nat.unreachable(port, Unreachable::Host),
                    _ => {
                        self.nat.abandon(port);
                        None
                    }
                };
                assert_eq!(frame.is_some(), connecting && a % 3 < 2);
                if connecting {
                    self.connections.remove(&port);
                }
            }
            _ => {
                self.nat.closed(port, now);
                if it.state == State::Open {
                    self.set(port, State::Over);
                }
            }
        }
    }

    fn nth(&self, a: u8) -> Option<(u16, Connection)> {
        let at = usize::from(a).checked_rem(self.connections.len())?;
        self.connections.iter().nth(at).map(|(port, it)| (*port, *it))
    }

    fn set(&mut self, port: u16, state: State) {
        if let Some(it) = self.connections.get_mut(&port) {
            it.state = state;
        }
    }
}

/// Returns a frame with a segment.
pub(super) fn segment(from: SocketAddr, to: SocketAddr, flags: u8) -> Vec<u8> {
    let builder = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 64),
        _ => panic!("two families"),
    };
    let mut tcp = builder.tcp(from.port(), to.port(), 7, 100);
    tcp = if flags & 1 != 0 { tcp.syn() } else { tcp };
    tcp = if flags & 2 != 0 { tcp.ack(9) } else { tcp };
    tcp = if flags & 4 != 0 { tcp.fin() } else { tcp };
    tcp = if flags & 8 != 0 { tcp.rst() } else { tcp };
    let mut frame = vec![0; FRAME_HEADER_BYTES];
    tcp.write_to_vec(&mut frame, &[flags; 3]).expect("memory");
    frame
}

/// Panics unless a frame has a segment with these addresses and correct checksums.
pub(super) fn assert_frame(frame: &[u8], from: SocketAddr, to: SocketAddr) {
    let packet = Packet::parse(frame).expect("a whole packet");
    assert_eq!((packet.from, packet.to), (from, to));
    assert!(matches!(packet.content, Content::Segment(_)));
    let ip = &frame[FRAME_HEADER_BYTES..];
    let (header, sum) = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let header = Ipv4HeaderSlice::from_slice(ip).expect("a header").to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            let tcp = TcpHeaderSlice::from_slice(&ip[20..]).expect("a header");
            let content = &ip[20 + tcp.slice().len()..];
            (tcp.checksum(), tcp.calc_checksum_ipv4_raw(from.octets(), to.octets(), content))
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let tcp = TcpHeaderSlice::from_slice(&ip[40..]).expect("a header");
            let content = &ip[40 + tcp.slice().len()..];
            (tcp.checksum(), tcp.calc_checksum_ipv6_raw(from.octets(), to.octets(), content))
        }
        _ => panic!("two families"),
    };
    assert_eq!(Ok(header), sum);
}
