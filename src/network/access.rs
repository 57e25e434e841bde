//! What a step may connect to on the machine's network.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with},
};

use super::{addresses::Destination, packet::Unreachable, resolver};

/// What a step may reach besides the rest of the world.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Access {
    /// The ports of the machine's loopback that are reachable under its name.
    pub(crate) host_ports: Vec<u16>,
}

/// What to do for a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Way {
    /// Connect to the first of these addresses that accepts.
    To(Vec<SocketAddr>),
    /// Refuse, because the step may not go there.
    Denied,
    /// Refuse, because nothing is there.
    Refused,
}

impl Access {
    /// Returns what to do for a connection to `to`.
    ///
    /// # Errors
    /// Returns an error if the machine has no descriptor left to find that out.
    pub(super) fn way(&self, to: SocketAddr) -> io::Result<Way> {
        Ok(match Destination::of(to) {
            Destination::Blocked => Way::Denied,
            Destination::Resolver => Way::To(resolver::servers()),
            Destination::Machine(port) if self.host_ports.contains(&port) => {
                Way::To(vec![(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()])
            }
            Destination::Machine(_) => Way::Refused,
            Destination::Far(to) if is_own(to.ip())? => Way::Denied,
            Destination::Far(to) => Way::To(vec![to]),
        })
    }
}

/// Returns whether packets to an address stay on this machine, by its routing table (`rtnetlink(7)`). Whether
/// a socket can be bound to it would not tell: whole networks can be local (`ip route add local`), and so is
/// the first address of each network of a router.
fn is_own(ip: IpAddr) -> io::Result<bool> {
    const NEW_ROUTE: u16 = 24;
    const GET_ROUTE: u16 = 26;
    const REQUEST: u16 = 1;
    const DESTINATION: u16 = 1;
    const UNICAST: u8 = 1;
    /// The length of `nlmsghdr`, and of `rtmsg` after it.
    const LENGTHS: (usize, usize) = (16, 12);
    /// The offset of the route's kind in `rtmsg`.
    const KIND_AT: usize = 7;
    let (family, bytes) = match ip {
        IpAddr::V4(ip) => (AddressFamily::INET, ip.octets().to_vec()),
        IpAddr::V6(ip) => (AddressFamily::INET6, ip.octets().to_vec()),
    };
    // An address has at most 16 bytes, and the number of a family fits in one.
    #[expect(clippy::cast_possible_truncation, reason = "see above")]
    let (family, length) = (family.as_raw() as u8, bytes.len() as u8);
    let mut message = Vec::with_capacity(64);
    message.extend((32 + u32::from(length)).to_ne_bytes());
    message.extend(GET_ROUTE.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([family, length * 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    message.extend((4 + u16::from(length)).to_ne_bytes());
    message.extend(DESTINATION.to_ne_bytes());
    message.extend(&bytes);
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    send(&socket, &message, SendFlags::empty())?;
    let mut answer = [0_u8; 1024];
    let (length, _) = recv(&socket, &mut answer, RecvFlags::empty())?;
    let kind = u16::from_ne_bytes([answer[4], answer[5]]);
    // Another answer is an error: there is no route, which the connection will show.
    let is_route = length >= LENGTHS.0 + LENGTHS.1 && kind == NEW_ROUTE;
    Ok(is_route && answer[LENGTHS.0 + KIND_AT] != UNICAST)
}

/// Returns what an error says about the destination `to`, or `None` if it is about this machine.
pub(super) fn why_unreachable(error: &io::Error, to: SocketAddr) -> Option<Unreachable> {
    use io::ErrorKind::{
        AddrNotAvailable, ConnectionRefused, ConnectionReset, HostUnreachable, NetworkDown, NetworkUnreachable,
        PermissionDenied, TimedOut,
    };
    match error.kind() {
        ConnectionRefused | ConnectionReset | PermissionDenied => Some(Unreachable::Port),
        NetworkUnreachable | NetworkDown => Some(Unreachable::Network),
        HostUnreachable | TimedOut => Some(Unreachable::Host),
        // IPv6 is turned off. For IPv4, it means that no port is free.
        AddrNotAvailable if to.is_ipv6() => Some(Unreachable::Network),
        _ if error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error()) => Some(Unreachable::Network),
        _ => None,
    }
}

/// Returns whether a connection stays on this machine.
pub(super) fn is_within(local: SocketAddr, peer: SocketAddr) -> bool {
    local.ip() == peer.ip()
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn the_machines_own_addresses_are_known() {
        assert!(is_own("127.0.0.1".parse().unwrap()).unwrap());
        assert!(is_own("::1".parse().unwrap()).unwrap());
        assert!(!is_own("192.0.2.7".parse().unwrap()).unwrap());
        assert!(!is_own("2001:db8::7".parse().unwrap()).unwrap());
        // The address that packets to the world leave from.
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        if socket.connect("192.0.2.1:9").is_ok() {
            let own = socket.local_addr().unwrap().ip();
            assert_eq!(Access::default().way((own, 80).into()).unwrap(), Way::Denied, "{own}");
        }
    }

    #[test]
    fn ports_of_the_machine_are_open_if_they_are_listed() {
        let access = Access { host_ports: vec![5000] };
        let to = |port| SocketAddr::from(([10, 0, 2, 2], port));
        assert_eq!(access.way(to(5001)).unwrap(), Way::Refused);
        assert!(matches!(access.way(to(5000)).unwrap(), Way::To(to) if to[0] == "127.0.0.1:5000".parse().unwrap()));
        assert_eq!(access.way("127.0.0.1:5000".parse().unwrap()).unwrap(), Way::Denied);
    }
}
