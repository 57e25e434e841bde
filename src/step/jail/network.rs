//! Network namespaces for steps with a network of their own, which the engine connects to the machine's.
//!
//! ```text
//!   the step's sockets ─▶ default route ─▶ TUN ─▶ the engine ─▶ TUN ─▶ the listener, which the engine
//! accepts from
//! ```
//!
//! A child of the zygote makes a namespace and sends its descriptors to the engine. The engine alone knows
//! what becomes of the packets.

use std::{
    ffi::CStr,
    fs,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{CWD, Mode, OFlags},
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, listen, netdevice::name_to_index, recv,
        send, socket, socket_with,
    },
};

use super::{SetupError, error::ResultExt, sys};

/// The step's address.
pub const STEP_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// The step's address.
pub const STEP_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 0x15);
/// The next hop of everything that leaves the namespace.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const NETMASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
const PREFIX_BITS: u8 = 64;
/// The port of the listeners: below those that the kernel gives to sockets, and one that no program uses.
pub const LISTENER_PORT: u16 = 1;
/// The length of the header before each packet of the device.
pub const FRAME_HEADER_BYTES: usize = 10;
/// The largest packet: datagrams are not fragmented.
pub const MAX_PACKET_BYTES: usize = 65535;

const DEVICE: &CStr = c"/dev/net/tun";
const NAME: &str = "tun0";
const MTU: i32 = 65520;
/// The connections that wait until the engine accepts them.
const BACKLOG: i32 = 4096;

/// Settings without which a step would notice, or could influence, the one before or after it: ports of
/// closed connections are free at once, and neither redirects nor measurements are kept.
const FORGETFUL: [(&str, &str); 6] = [
    // Forged handshakes with the listener, and bytes that are never read, are gone within seconds.
    ("ipv4/tcp_synack_retries", "0"),
    ("ipv4/tcp_orphan_retries", "1"),
    ("ipv4/tcp_max_tw_buckets", "0"),
    ("ipv4/tcp_no_metrics_save", "1"),
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv4/conf/default/accept_redirects", "0"),
];

/// Settings that some kernels, or user namespaces, do not have. As in containers, every user may listen on
/// every port and send echo requests to itself. No message shrinks a path. The path to the listener is
/// memory: it needs no congestion control that paces packets by timers. What waits in a socket is bounded,
/// because the queue of a TUN device does not push back.
const OPTIONAL: [(&str, &str); 7] = [
    ("ipv4/ip_unprivileged_port_start", "0"),
    ("ipv4/ping_group_range", "0 2147483647"),
    ("ipv4/route/min_pmtu", "65520"),
    ("ipv6/conf/default/accept_redirects", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv4/tcp_congestion_control", "reno"),
    ("ipv4/tcp_wmem", "4096 16384 786432"),
];

/// A network namespace, and what the engine needs of it.
#[derive(Debug)]
pub(super) struct Made {
    namespace: OwnedFd,
    tun: OwnedFd,
    counters: OwnedFd,
    listeners: Vec<OwnedFd>,
    /// Whether it forgets a step.
    pub(super) reusable: bool,
}

impl Made {
    /// Returns the descriptors in the order in which they are sent.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [&self.namespace, &self.tun, &self.counters].into_iter().chain(&self.listeners).map(AsFd::as_fd)
    }
}

/// Sets up the network namespace of this process, which must be new.
pub(super) fn make() -> Result<Made, SetupError> {
    let reusable = FORGETFUL.iter().all(|(name, value)| set(name, value));
    for (name, value) in OPTIONAL {
        set(name, value);
    }
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let tun = rustix::fs::openat(CWD, DEVICE, flags, Mode::empty()).doing(|| "open /dev/net/tun".into())?;
    sys::make_tun(&tun, NAME.as_bytes()).doing(|| "make a TUN device".into())?;
    let doing = || "set up a TUN device".to_owned();
    let v4 = socket(AddressFamily::INET, SocketType::DGRAM, None).doing(doing)?;
    sys::loopback_up(&v4).doing(doing)?;
    sys::set_mtu(&v4, NAME.as_bytes(), MTU).doing(doing)?;
    sys::interface_up(&v4, NAME.as_bytes(), STEP_V4, NETMASK).doing(doing)?;
    sys::default_route(&v4, GATEWAY).doing(doing)?;
    let mut listeners =
        vec![listener((STEP_V4, LISTENER_PORT).into()).doing(|| "listen in a network namespace".into())?];
    listeners.extend(v6().doing(|| "set up IPv6 of a TUN device".into())?);
    let namespace = rustix::fs::openat(CWD, c"/proc/self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .doing(|| "open a network namespace".into())?;
    // The file is that of this namespace, also for a reader in another one.
    let counters = rustix::fs::openat(CWD, c"/proc/self/net/snmp", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .doing(|| "open the counters of a network namespace".into())?;
    Ok(Made { namespace, tun, counters, listeners, reusable })
}

/// Sets up IPv6, and returns its listener, or `None` if the kernel has no IPv6.
fn v6() -> Result<Option<OwnedFd>, Errno> {
    let made = socket(AddressFamily::INET6, SocketType::DGRAM, None)
        .and_then(|socket| name_to_index(&socket, NAME))
        .and_then(route_v6);
    match made {
        Ok(()) => listener((STEP_V6, LISTENER_PORT).into()).map(Some),
        // Not compiled in, or turned off for new namespaces.
        Err(Errno::AFNOSUPPORT | Errno::OPNOTSUPP | Errno::ACCESS | Errno::PERM) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Sets the IPv6 address of an interface, and makes the interface the default route. By because an
/// address that is set in another way cannot be used at once: the kernel first looks for duplicates.
fn route_v6(interface: u32) -> Result<(), Errno> {
    const NEW_ADDRESS: u16 = 20;
    const NEW_ROUTE: u16 = 24;
    const LOCAL: u16 = 2;
    const OUT: u16 = 4;
    const WITHOUT_DUPLICATE_DETECTION: u8 = 2;
    const MAIN_TABLE: u8 = 254;
    const STATIC: u8 = 4;
    const UNICAST: u8 = 1;
    let family = AddressFamily::INET6.as_raw() as u8;
    // The protocol that is the default is that of routes.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    let address = [&[family, PREFIX_BITS, WITHOUT_DUPLICATE_DETECTION, 0], &interface.to_ne_bytes()[..]].concat();
    change(&socket, NEW_ADDRESS, &address, (LOCAL, &STEP_V6.octets()))?;
    let route = [family, 0, 0, 0, MAIN_TABLE, STATIC, 0, UNICAST, 0, 0, 0, 0];
    change(&socket, NEW_ROUTE, &route, (OUT, &interface.to_ne_bytes()))
}

/// Sends a netlink request to create something, and waits for the answer.
fn change(socket: &OwnedFd, kind: u16, body: &[u8], (name, value): (u16, &[u8])) -> Result<(), Errno> {
    const REQUEST_ACKNOWLEDGE_EXCLUSIVE_CREATE: u16 = 1 | 4 | 0x200 | 0x400;
    const HEADER_BYTES: usize = 16;
    const ATTRIBUTE_BYTES: usize = 4;
    let length = HEADER_BYTES + body.len() + ATTRIBUTE_BYTES + value.len();
    let mut message = u32::try_from(length).map_err(|_| Errno::INVAL)?.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(REQUEST_ACKNOWLEDGE_EXCLUSIVE_CREATE.to_ne_bytes());
    // A number and a sender, which the kernel repeats.
    message.extend([0; 8]);
    message.extend(body);
    message.extend(((ATTRIBUTE_BYTES + value.len()) as u16).to_ne_bytes());
    message.extend(name.to_ne_bytes());
    message.extend(value);
    send(socket, &message, SendFlags::empty())?;
    let mut answer = [0; 256];
    let (length, _) = recv(socket, &mut answer[..], RecvFlags::empty())?;
    // After the header comes an error number, negative, or zero.
    let number = answer[..length].get(HEADER_BYTES..).and_then(|body| body.first_chunk());
    match i32::from_ne_bytes(*number.ok_or(Errno::PROTO)?) {
        0 => Ok(()),
        number => Err(Errno::from_raw_os_error(-number)),
    }
}

fn listener(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let listener = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    bind(&listener, &address)?;
    listen(&listener, BACKLOG)?;
    Ok(listener)
}

/// Changes a setting of this network namespace. Returns false if that is not possible.
fn set(name: &str, value: &str) -> bool {
    fs::write(format!("/proc/sys/net/{name}"), value).is_ok()
}
