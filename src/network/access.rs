//! What a step may connect to on the machine's network.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use super::{addresses::Destination, resolver};

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

/// Returns whether an address belongs to this machine: a socket can be bound to it.
fn is_own(ip: IpAddr) -> io::Result<bool> {
    /// Addresses for documentation, which no machine has.
    const FOREIGN: [IpAddr; 2] =
        [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];
    if !binds(ip)? {
        return Ok(false);
    }
    // The machine may allow sockets any address (`ip_nonlocal_bind`): `is_within` decides when it is
    // connected.
    Ok(!binds(FOREIGN[usize::from(ip.is_ipv6())])?)
}

fn binds(ip: IpAddr) -> io::Result<bool> {
    match UdpSocket::bind((ip, 0)) {
        Ok(_) => Ok(true),
        Err(error) => match error.kind() {
            io::ErrorKind::AddrNotAvailable | io::ErrorKind::InvalidInput => Ok(false),
            // A kernel without this family has no such address, and no way to one.
            _ if error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) => Ok(false),
            _ => Err(error),
        },
    }
}

/// Returns whether a connection stays on this machine.
pub(super) fn is_within(local: SocketAddr, peer: SocketAddr) -> bool {
    local.ip() == peer.ip()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_own_addresses_are_known() {
        assert!(is_own("127.0.0.1".parse().unwrap()).unwrap());
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
