//! The machine's network: the addresses of QEMU's user networking, which are the same in every machine.

use std::{fs, io, net::Ipv4Addr};

use rustix::net::{AddressFamily, SocketType, socket};

use crate::jail::guest_ops as sys;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const NETMASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Forwards to the host's name server.
const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);

/// Brings up the loopback device and, if there is a network card, the card and a default route. The
/// resolver's configuration is then at `/etc/resolv.conf`.
pub(super) fn up() -> io::Result<()> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    sys::loopback_up(&socket)?;
    let names = fs::read_dir("/sys/class/net")?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    if let Some(card) = names.into_iter().find(|name| name != "lo") {
        sys::interface_up(&socket, card.as_bytes(), ADDRESS, NETMASK)?;
        sys::default_route(&socket, GATEWAY)?;
        fs::write("/etc/resolv.conf", format!("nameserver {NAME_SERVER}\n"))?;
    }
    Ok(())
}
