//! Packets of a TUN device: reading their headers, giving them other addresses, and making a few.
//!
//! A frame is an IP packet behind the header of virtio's network devices, by which the kernel leaves
//! checksums and segmentation for later. Frames come from a step that can send anything, so all lengths are
//! checked before a field is read. This module does no input or output.

use std::{
    net::{IpAddr, SocketAddr},
    ops::Range,
};

use etherparse::{
    Icmpv4Type, Icmpv6Type, IpHeaders, IpNumber, Ipv4HeaderSlice, Ipv6HeaderSlice, PacketBuilder, PacketBuilderStep,
    TcpHeaderSlice, UdpHeaderSlice, icmpv4, icmpv6,
};

use crate::jail::network::FRAME_HEADER_BYTES as HEADER;

/// The flag of a frame whose checksum is left for later: its field has the sum of the pseudo-header.
const NEEDS_CHECKSUM: u8 = 1;
/// The length of an IPv4 header without options.
const V4_BYTES: usize = 20;
/// The length of an IPv6 header without extensions.
const V6_BYTES: usize = 40;
/// The place of the checksum in a TCP header.
const TCP_CHECKSUM: Range<usize> = 16..18;
/// The most bytes of a packet that an ICMP message quotes: enough for both headers, options included.
const QUOTED_BYTES: usize = 128;
/// The lifetime of packets that are made here: the step is the next hop.
const HOPS: u8 = 64;

/// The headers of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) content: Content,
}

/// The content of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    /// A segment of TCP.
    Segment(Segment),
    /// A datagram of UDP, and where its content is in the frame.
    Datagram(Range<usize>),
}

/// The fields of a TCP header that say what happens to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) sequence: u32,
    pub(super) acknowledged: u32,
    pub(super) syn: bool,
    pub(super) ack: bool,
    pub(super) fin: bool,
    pub(super) rst: bool,
}

impl Segment {
    /// Returns whether the segment opens a connection.
    pub(super) fn opens(self) -> bool {
        self.syn && !self.ack && !self.rst && !self.fin
    }
}

impl Packet {
    /// Reads the headers of a frame. Returns `None` for anything but a whole TCP or UDP packet without IP
    /// options, extension headers or fragments.
    pub(super) fn parse(frame: &[u8]) -> Option<Self> {
        let ip = frame.get(HEADER..)?;
        let (from, to, protocol, header_bytes) = match ip.first()? >> 4 {
            4 => {
                let header = Ipv4HeaderSlice::from_slice(ip).ok()?;
                let is_whole = usize::from(header.total_len()) == ip.len() && !header.is_fragmenting_payload();
                let (from, to) = (IpAddr::V4(header.source_addr()), IpAddr::V4(header.destination_addr()));
                let plain = is_whole && header.slice().len() == V4_BYTES;
                plain.then_some((from, to, header.protocol(), V4_BYTES))?
            }
            6 => {
                let header = Ipv6HeaderSlice::from_slice(ip).ok()?;
                let is_whole = usize::from(header.payload_length()) + V6_BYTES == ip.len();
                let (from, to) = (IpAddr::V6(header.source_addr()), IpAddr::V6(header.destination_addr()));
                is_whole.then_some((from, to, header.next_header(), V6_BYTES))?
            }
            _ => return None,
        };
        let transport = ip.get(header_bytes..)?;
        let (from_port, to_port, content) = match protocol {
            IpNumber::TCP => {
                let tcp = TcpHeaderSlice::from_slice(transport).ok()?;
                let segment = Segment {
                    sequence: tcp.sequence_number(),
                    acknowledged: tcp.acknowledgment_number(),
                    syn: tcp.syn(),
                    ack: tcp.ack(),
                    fin: tcp.fin(),
                    rst: tcp.rst(),
                };
                (tcp.source_port(), tcp.destination_port(), Content::Segment(segment))
            }
            IpNumber::UDP => {
                let udp = UdpHeaderSlice::from_slice(transport).ok()?;
                let start = HEADER + header_bytes + udp.slice().len();
                let content = (usize::from(udp.length()) == transport.len()).then_some(start..frame.len())?;
                (udp.source_port(), udp.destination_port(), Content::Datagram(content))
            }
            _ => return None,
        };
        Some(Self { from: SocketAddr::new(from, from_port), to: SocketAddr::new(to, to_port), content })
    }
}

/// Gives a frame with a TCP segment other addresses of the same family, and corrects its checksums. Returns
/// `None`, and leaves the frame as it is, if it is not such a frame.
pub(super) fn readdress(frame: &mut [u8], from: SocketAddr, to: SocketAddr) -> Option<()> {
    let is_partial = frame.first()? & NEEDS_CHECKSUM != 0;
    let ip = frame.get_mut(HEADER..)?;
    let (new, addresses, tcp) = match (ip.first()? >> 4, from.ip(), to.ip()) {
        (4, IpAddr::V4(from), IpAddr::V4(to)) => ([from.octets(), to.octets()].concat(), 12..20, V4_BYTES),
        (6, IpAddr::V6(from), IpAddr::V6(to)) => ([from.octets(), to.octets()].concat(), 8..40, V6_BYTES),
        _ => return None,
    };
    let ports = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    let (head, segment) = ip.split_at_mut_checked(tcp)?;
    let old = head.get(addresses.clone())?.to_vec();
    let old_ports = segment.get(..4)?.to_vec();
    let sum = word(segment.get(TCP_CHECKSUM)?);
    let sum = if is_partial {
        // The field has the sum itself, not its complement, and only of addresses.
        !adjusted(!sum, &old, &new)
    } else {
        adjusted(adjusted(sum, &old, &new), &old_ports, &ports)
    };
    segment[TCP_CHECKSUM].copy_from_slice(&sum.to_be_bytes());
    segment[..4].copy_from_slice(&ports);
    if from.is_ipv4() {
        let sum = adjusted(word(&head[10..12]), &old, &new);
        head[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    head[addresses].copy_from_slice(&new);
    Some(())
}

fn word(bytes: &[u8]) -> u16 {
    bytes.first_chunk().map_or(0, |bytes| u16::from_be_bytes(*bytes))
}

/// Returns the checksum of data in which `old`, an even number of bytes, was replaced by `new` (RFC 1624).
fn adjusted(sum: u16, old: &[u8], new: &[u8]) -> u16 {
    let removed = old.chunks_exact(2).map(|pair| u32::from(!word(pair))).sum::<u32>();
    let added = new.chunks_exact(2).map(|pair| u32::from(word(pair))).sum::<u32>();
    let mut folded = u32::from(!sum) + removed + added;
    while folded > 0xffff {
        folded = (folded & 0xffff) + (folded >> 16);
    }
    !(folded as u16)
}

/// Why a connection or a datagram does not reach its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreachable {
    Network,
    Host,
    Port,
}

impl Unreachable {
    fn v4(self) -> icmpv4::DestUnreachableHeader {
        match self {
            Self::Network => icmpv4::DestUnreachableHeader::Network,
            Self::Host => icmpv4::DestUnreachableHeader::Host,
            Self::Port => icmpv4::DestUnreachableHeader::Port,
        }
    }

    fn v6(self) -> icmpv6::DestUnreachableCode {
        match self {
            Self::Network => icmpv6::DestUnreachableCode::NoRoute,
            Self::Host => icmpv6::DestUnreachableCode::Address,
            Self::Port => icmpv6::DestUnreachableCode::Port,
        }
    }
}

/// Returns a frame that resets the connection of a segment, as the far end would.
pub(super) fn reset(packet: &Packet) -> Option<Vec<u8>> {
    let Content::Segment(segment) = packet.content else { return None };
    let sequence = if segment.ack { segment.acknowledged } else { 0 };
    let builder = ip(packet.to.ip(), packet.from.ip())?.tcp(packet.to.port(), packet.from.port(), sequence, 0).rst();
    let next = segment.sequence.wrapping_add(u32::from(segment.syn) + u32::from(segment.fin));
    let builder = if segment.ack { builder } else { builder.ack(next) };
    let mut frame = vec![0; HEADER];
    builder.write_to_vec(&mut frame, &[]).ok()?;
    Some(frame)
}

/// Returns a frame with a datagram.
pub(super) fn datagram(from: SocketAddr, to: SocketAddr, content: &[u8]) -> Option<Vec<u8>> {
    let mut frame = vec![0; HEADER];
    ip(from.ip(), to.ip())?.udp(from.port(), to.port()).write_to_vec(&mut frame, content).ok()?;
    Some(frame)
}

/// Returns a frame with an ICMP message of `from` about another frame, which came from the step.
pub(super) fn unreachable(from: IpAddr, frame: &[u8], why: Unreachable) -> Option<Vec<u8>> {
    let to = Packet::parse(frame)?.from.ip();
    let quoted = frame.get(HEADER..)?;
    let quoted = &quoted[..quoted.len().min(QUOTED_BYTES)];
    let mut made = vec![0; HEADER];
    let builder = ip(from, to)?;
    match from {
        IpAddr::V4(_) => {
            builder.icmpv4(Icmpv4Type::DestinationUnreachable(why.v4())).write_to_vec(&mut made, quoted).ok()?;
        }
        IpAddr::V6(_) => {
            builder.icmpv6(Icmpv6Type::DestinationUnreachable(why.v6())).write_to_vec(&mut made, quoted).ok()?;
        }
    }
    Some(made)
}

fn ip(from: IpAddr, to: IpAddr) -> Option<PacketBuilderStep<IpHeaders>> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => Some(PacketBuilder::ipv4(from.octets(), to.octets(), HOPS)),
        (IpAddr::V6(from), IpAddr::V6(to)) => Some(PacketBuilder::ipv6(from.octets(), to.octets(), HOPS)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use etherparse::Icmpv4Slice;
    use proptest::prelude::*;

    use super::{
        super::nat_oracle::{assert_frame, segment},
        *,
    };

    fn at(address: &str) -> SocketAddr {
        address.parse().unwrap()
    }

    proptest! {
        #[test]
        fn bytes_without_sense_are_no_packet_or_a_whole_one(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(Packet { content: Content::Datagram(content), .. }) = Packet::parse(&bytes) {
                prop_assert!(content.start <= content.end && content.end == bytes.len());
            }
            let mut same = bytes.clone();
            if readdress(&mut same, at("192.0.2.1:1"), at("192.0.2.2:2")).is_none() {
                prop_assert_eq!(same, bytes);
            }
        }

        #[test]
        fn checksums_stay_correct(from: [u8; 4], to: [u8; 4], ports: [u16; 2], flags: u8) {
            let mut frame = segment(at("10.0.2.15:40000"), at("192.0.2.1:80"), flags);
            let before = frame.clone();
            let (from, to) = (SocketAddr::from((from, ports[0])), SocketAddr::from((to, ports[1])));
            readdress(&mut frame, from, to).unwrap();
            assert_frame(&frame, from, to);
            readdress(&mut frame, at("10.0.2.15:40000"), at("192.0.2.1:80")).unwrap();
            assert_frame(&frame, at("10.0.2.15:40000"), at("192.0.2.1:80"));
            prop_assert_eq!(frame.len(), before.len());
        }
    }

    #[test]
    fn a_partial_checksum_is_a_sum_of_addresses() {
        let sum = |frame: &[u8]| {
            let sum = frame[HEADER + 12..HEADER + 20].chunks_exact(2).map(|pair| u32::from(word(pair))).sum::<u32>();
            let sum = sum + 6 + (frame.len() - HEADER - V4_BYTES) as u32;
            ((sum & 0xffff) + (sum >> 16)) as u16
        };
        let mut frame = segment(at("10.0.2.15:40000"), at("192.0.2.1:80"), 2);
        frame[0] = NEEDS_CHECKSUM;
        let partial = sum(&frame);
        frame[HEADER + V4_BYTES..][TCP_CHECKSUM].copy_from_slice(&partial.to_be_bytes());
        readdress(&mut frame, at("10.0.2.4:1024"), at("10.0.2.15:1")).unwrap();
        assert_eq!(word(&frame[HEADER + V4_BYTES..][TCP_CHECKSUM]), sum(&frame));
    }

    #[test]
    fn fragments_options_and_wrong_lengths_are_no_packets() {
        let good = segment(at("10.0.2.15:40000"), at("192.0.2.1:80"), 1);
        assert!(Packet::parse(&good).is_some());
        for (at, value, what) in [
            (HEADER, 0x46, "options"),
            (HEADER + 6, 0x20, "more fragments"),
            (HEADER + 7, 1, "a fragment"),
            (HEADER + 3, 200, "longer than it is"),
            (HEADER + 9, 1, "ICMP"),
            (HEADER, 0x55, "no version"),
            (HEADER + V4_BYTES + 12, 0x40, "a short TCP header"),
        ] {
            let mut bad = good.clone();
            bad[at] = value;
            assert_eq!(Packet::parse(&bad), None, "{what}");
        }
        for length in 0..good.len() {
            assert_eq!(Packet::parse(&good[..length]), None);
        }
        let mut extended = segment(at("[fd00:2::15]:40000"), at("[2001:db8::1]:80"), 1);
        extended[HEADER + 6] = 0;
        assert_eq!(Packet::parse(&extended), None, "an extension header");
    }

    #[test]
    fn an_answer_is_about_what_was_sent() {
        for (from, to) in [("10.0.2.15:40000", "192.0.2.1:80"), ("[fd00:2::15]:40000", "[2001:db8::1]:80")] {
            let syn = segment(at(from), at(to), 1);
            let reset = reset(&Packet::parse(&syn).unwrap()).unwrap();
            assert_frame(&reset, at(to), at(from));
            let Content::Segment(it) = Packet::parse(&reset).unwrap().content else { panic!("{reset:?}") };
            // The SYN has the number 7, and three bytes of content that do not count before it is answered.
            assert!(it.rst && it.ack && !it.syn && it.acknowledged == 8);
            let datagram = datagram(at(to), at(from), b"content").unwrap();
            let Content::Datagram(content) = Packet::parse(&datagram).unwrap().content else { panic!() };
            assert_eq!(&datagram[content], b"content");
        }
        let syn = segment(at("10.0.2.15:40000"), at("192.0.2.1:80"), 1);
        let message = unreachable(at("10.0.2.2:0").ip(), &syn, Unreachable::Host).unwrap();
        let icmp = Icmpv4Slice::from_slice(&message[HEADER + V4_BYTES..]).unwrap();
        assert_eq!(icmp.header().checksum, icmp.icmp_type().calc_checksum(icmp.payload()));
        assert_eq!(icmp.payload(), &syn[HEADER..]);
        assert!(unreachable(at("[fd00:2::2]:0").ip(), &syn, Unreachable::Host).is_none());
    }
}
