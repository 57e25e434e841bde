//! The addresses of a step's network, and those that no step may reach.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::jail::network::{STEP_V4, STEP_V6};

/// The machine, as the step sees it.
pub(crate) const MACHINE_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The machine, as the step sees it.
pub(crate) const MACHINE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 2);
/// The resolver of names.
pub(crate) const RESOLVER_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// The resolver of names.
const RESOLVER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 3);
/// The neighbour that readdressed packets come from.
const NEIGHBOUR_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 4);
/// The neighbour that readdressed packets come from.
const NEIGHBOUR_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 4);

/// The port of name servers.
const DNS_PORT: u16 = 53;

/// Returns the address of the step in the family of `like`.
pub(super) fn step(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { STEP_V4.into() } else { STEP_V6.into() }
}

/// Returns the address of the machine, as the step sees it, in the family of `like`.
pub(super) fn machine(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { MACHINE_V4.into() } else { MACHINE_V6.into() }
}

/// Returns the address of the neighbour in the family of `like`.
pub(super) fn neighbour(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { NEIGHBOUR_V4.into() } else { NEIGHBOUR_V6.into() }
}

/// What a destination of a step stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Destination {
    /// A port of the machine, if the step may use it.
    Machine(u16),
    /// The resolver of names.
    Resolver,
    /// An address that is not the step's business.
    Blocked,
    /// Any other address. It may still be one of the machine's own.
    Far(SocketAddr),
}

impl Destination {
    /// Returns what an address stands for.
    pub(super) fn of(address: SocketAddr) -> Self {
        let (ip, port) = (address.ip().to_canonical(), address.port());
        if ip == IpAddr::V4(RESOLVER_V4) || ip == IpAddr::V6(RESOLVER_V6) {
            if port == DNS_PORT { Self::Resolver } else { Self::Blocked }
        } else if ip == IpAddr::V4(MACHINE_V4) || ip == IpAddr::V6(MACHINE_V6) {
            Self::Machine(port)
        } else if port == 0 || is_blocked(ip) {
            Self::Blocked
        } else {
            Self::Far(SocketAddr::new(ip, port))
        }
    }
}

/// Returns whether no step may reach an address: the machine's own interfaces, the links that it is on, the
/// metadata of clouds, groups, and the rest of the step's own network.
fn is_blocked(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            /// The metadata of Alibaba's and Azure's machines.
            const METADATA: [Ipv4Addr; 2] = [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16)];
            METADATA.contains(&ip)
                || ip.is_loopback()
                || ip.is_link_local()
                || ip.is_multicast()
                || ip.is_broadcast()
                || ip.octets()[0] == 0
                || ip.octets()[..3] == STEP_V4.octets()[..3]
        }
        IpAddr::V6(ip) => {
            /// The metadata of Google's machines.
            const METADATA: Ipv6Addr = Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254);
            // An IPv4 address behind a gateway that translates (RFC 6052).
            if let [0x64, 0xff9b, 0, 0, 0, 0, high, low] = ip.segments() {
                let [[a, b], [c, d]] = [high.to_be_bytes(), low.to_be_bytes()];
                return is_blocked(Ipv4Addr::new(a, b, c, d).into());
            }
            // The address of the form `::a.b.c.d`, which some kernels take for `a.b.c.d`.
            let compatible = ip.segments()[..6] == [0; 6];
            compatible
                || ip.is_multicast()
                || ip.is_unicast_link_local()
                || ip == METADATA
                // Metadata, credentials, names and time of Amazon's machines.
                || ip.segments()[..2] == [0xfd00, 0xec2]
                || ip.segments()[..4] == STEP_V6.segments()[..4]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(address: &str) -> Destination {
        Destination::of(address.parse().unwrap())
    }

    #[test]
    fn what_is_the_machines_is_blocked_in_every_spelling() {
        for address in [
            "127.0.0.1:80",
            "127.255.0.9:80",
            "0.0.0.0:80",
            "0.1.2.3:80",
            "169.254.169.254:80",
            "224.0.0.251:5353",
            "255.255.255.255:67",
            "10.0.2.1:80",
            "10.0.2.15:80",
            "10.0.2.3:54",
            "192.0.2.1:0",
            "[::1]:80",
            "[::]:80",
            "[::127.0.0.1]:80",
            "[::ffff:127.0.0.1]:80",
            "[::ffff:169.254.169.254]:80",
            "[::ffff:0.0.0.0]:80",
            "[fe80::1]:80",
            "[ff02::fb]:5353",
            "[fd00:ec2::254]:80",
            "[fd00:ec2::23]:80",
            "[fd20:ce::254]:80",
            "100.100.100.200:80",
            "168.63.129.16:80",
            "[64:ff9b::a9fe:a9fe]:80",
            "[64:ff9b::7f00:1]:80",
            "[fd00:2::9]:80",
        ] {
            assert_eq!(of(address), Destination::Blocked, "{address}");
        }
    }

    #[test]
    fn the_rest_is_what_it_says() {
        assert_eq!(of("10.0.2.2:5000"), Destination::Machine(5000));
        assert_eq!(of("[fd00:2::2]:5000"), Destination::Machine(5000));
        assert_eq!(of("[::ffff:10.0.2.2]:5000"), Destination::Machine(5000));
        assert_eq!(of("10.0.2.3:53"), Destination::Resolver);
        assert_eq!(of("[fd00:2::3]:53"), Destination::Resolver);
        for address in ["192.0.2.1:443", "[2001:db8::1]:443", "10.0.3.1:1", "[fd00:3::1]:1"] {
            assert_eq!(of(address), Destination::Far(address.parse().unwrap()));
        }
        let mapped = Destination::Far("192.0.2.1:443".parse().unwrap());
        assert_eq!(of("[::ffff:192.0.2.1]:443"), mapped, "a mapped address is the address");
    }
}
