//! What a step may connect to on the machine's network.

use std::{
    borrow::Cow,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use rustix::{
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with},
};

use super::{addresses::Destination, names::Names, packet::Unreachable, resolver};
use crate::model::{EgressRule, Protocol};

/// What a step may reach besides the rest of the world.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Access {
    /// The ports of the machine's loopback that are reachable under its name.
    pub(crate) host_ports: Vec<u16>,
    /// The only destinations in the rest of the world, if they are listed.
    pub(crate) egress: Option<Arc<[EgressRule]>>,
}

/// The port of TLS connections whose server's name is checked.
const TLS_PORT: u16 = 443;

/// What to do for a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Way {
    /// Connect to the first of these addresses that accepts.
    To(Vec<SocketAddr>),
    /// Connect to this address, and go on if the step then wants a server whose name is allowed.
    Named(SocketAddr),
    /// Ask the machine's resolvers, which have these addresses.
    Resolver(Vec<SocketAddr>),
    /// Refuse, because the step may not go there, for this reason.
    Blocked(Cow<'static, str>),
}

impl Access {
    /// Returns whether `name` begins with a name that is listed: resolvers append the domains of their search
    /// list, and go on if such a name does not exist.
    pub(super) fn lists_beginning_of(&self, name: &str) -> bool {
        let Some(rules) = &self.egress else { return false };
        name.match_indices('.').any(|(at, _)| rules.iter().any(|rule| rule.allows_name(&name[..at], None)))
    }

    /// Returns what to do for a connection, or a datagram, to `to`.
    ///
    /// # Errors
    /// Returns an error if the machine has no descriptor left to find that out.
    pub(super) fn way(&self, protocol: Protocol, to: SocketAddr, names: &Names) -> io::Result<Way> {
        const OWN: &str = "it is an address of this machine: list the port in `host_ports`";
        Ok(match Destination::of(to) {
            Destination::Blocked => Way::Blocked("no step may reach this address".into()),
            Destination::Resolver => Way::Resolver(resolver::servers()),
            Destination::Machine(port) if self.host_ports.contains(&port) => {
                Way::To(vec![(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()])
            }
            Destination::Machine(port) => Way::Blocked(format!("{port} is not in `host_ports`").into()),
            Destination::Far(to) if is_own(to.ip())? => Way::Blocked(OWN.into()),
            Destination::Far(to) => match &self.egress {
                Some(rules) => listed(rules, protocol, to, names),
                None => Way::To(vec![to]),
            },
        })
    }

    /// Returns whether the step may reach a server with this name, in lower case, by TLS.
    pub(super) fn allows_server(&self, name: &str) -> bool {
        let Some(rules) = &self.egress else { return true };
        rules.iter().any(|rule| rule.allows_name(name, Some(TLS_PORT)))
    }
}

/// Returns what to do for a destination in the rest of the world, if `rules` list what is allowed.
fn listed(rules: &[EgressRule], protocol: Protocol, to: SocketAddr, names: &Names) -> Way {
    let (ip, port) = (to.ip(), to.port());
    if rules.iter().any(|rule| rule.allows_address(ip, port)) {
        return Way::To(vec![to]);
    }
    let is_listed = names.any(ip, |name| rules.iter().any(|rule| rule.allows_name(name, Some(port))));
    match (is_listed, port, protocol) {
        // An address has many names, so the one of the handshake counts, too.
        (true, TLS_PORT, Protocol::Tcp) => Way::Named(to),
        (true, TLS_PORT, _) => Way::Blocked("names cannot be checked in QUIC: only TCP may go to port 443".into()),
        (true, ..) => Way::To(vec![to]),
        (false, ..) => {
            let host = names.host(ip).map_or_else(|| to.to_string(), |name| format!("{name}:{port}"));
            Way::Blocked(format!("`egress` has no entry for {host}").into())
        }
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
            assert!(is_blocked(&Access::default(), (own, 80).into()), "{own}");
        }
    }

    #[test]
    fn ports_of_the_machine_are_open_if_they_are_listed() {
        let access = Access { host_ports: vec![5000], egress: Some([].into()) };
        let to = |port| SocketAddr::from(([10, 0, 2, 2], port));
        assert!(is_blocked(&access, to(5001)));
        let Way::To(way) = way(&access, Protocol::Tcp, to(5000)) else { panic!("another way") };
        assert_eq!(way[0], "127.0.0.1:5000".parse().unwrap());
        assert!(is_blocked(&access, "127.0.0.1:5000".parse().unwrap()));
    }

    fn way(access: &Access, protocol: Protocol, to: SocketAddr) -> Way {
        access.way(protocol, to, &Names::default()).unwrap()
    }

    fn is_blocked(access: &Access, to: SocketAddr) -> bool {
        matches!(way(access, Protocol::Tcp, to), Way::Blocked(_))
    }

    #[test]
    fn listed_networks_are_reached_and_addresses_without_a_listed_name_are_not() {
        let rules = ["192.0.2.0/24:443", "127.0.0.0/8", "a.example"].map(|rule| rule.parse().unwrap());
        let access = Access { host_ports: vec![], egress: Some(rules.into()) };
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let to = "192.0.2.9:443".parse().unwrap();
            assert_eq!(way(&access, protocol, to), Way::To(vec![to]));
        }
        for address in ["192.0.2.9:80", "198.51.100.1:443", "[2001:db8::1]:443", "127.0.0.1:80"] {
            assert!(is_blocked(&access, address.parse().unwrap()), "{address}");
        }
        assert!(access.allows_server("a.example") && !access.allows_server("b.example"));
    }
}
