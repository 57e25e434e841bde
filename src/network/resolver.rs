//! The machine's resolvers, and passing messages on to them.

use std::{
    fmt::Write as _,
    fs::File,
    io::{self, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::net::UdpSocket;

use super::addresses::RESOLVER_V4;

const CONFIG: &str = "/etc/resolv.conf";
/// The most that is read of the file, in bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 16;
/// How long a resolver may take to answer before the next one is asked.
const PATIENCE: Duration = Duration::from_secs(3);
const PORT: u16 = 53;
/// The most resolvers that are asked, as in the C library.
const MAX_SERVERS: usize = 3;
/// The longest datagram of a resolver.
const MAX_MESSAGE_BYTES: usize = 65535;

/// Returns the machine's resolvers, as they are configured now.
pub(super) fn servers() -> Vec<SocketAddr> {
    servers_in(&read())
}

/// Returns the content of a step's `/etc/resolv.conf`: our resolver, with the machine's search list and
/// options.
pub(crate) fn config() -> Vec<u8> {
    config_like(&read())
}

fn read() -> String {
    let mut content = Vec::new();
    let read = File::open(CONFIG).and_then(|file| file.take(MAX_CONFIG_BYTES).read_to_end(&mut content));
    if let Err(error) = read {
        tracing::debug!(%error, "failed to read {CONFIG}");
    }
    String::from_utf8_lossy(&content).into_owned()
}

fn servers_in(config: &str) -> Vec<SocketAddr> {
    let named = config.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let address = (words.next()? == "nameserver").then(|| words.next())??;
        Some(SocketAddr::new(address.parse().ok()?, PORT))
    });
    let named: Vec<_> = named.take(MAX_SERVERS).collect();
    // Without any, the C library asks this machine.
    if named.is_empty() { vec![(Ipv4Addr::LOCALHOST, PORT).into()] } else { named }
}

fn config_like(config: &str) -> Vec<u8> {
    let mut made = format!("nameserver {RESOLVER_V4}\n");
    for line in config.lines() {
        let kind = line.split_ascii_whitespace().next();
        if matches!(kind, Some("search" | "domain" | "options")) {
            // The machine's resolvers may not listen on TCP.
            let words = line.split_ascii_whitespace().filter(|word| *word != "use-vc");
            let _ = writeln!(made, "{}", words.collect::<Vec<_>>().join(" "));
        }
    }
    made.into_bytes()
}

/// Passes a message on, and returns the answer of the first resolver that gives one.
pub(super) async fn ask(message: &[u8]) -> io::Result<Vec<u8>> {
    let mut failure = io::ErrorKind::TimedOut.into();
    for server in servers() {
        match tokio::time::timeout(PATIENCE, ask_one(server, message)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => failure = error,
            Err(_) => {}
        }
    }
    Err(failure)
}

async fn ask_one(server: SocketAddr, message: &[u8]) -> io::Result<Vec<u8>> {
    let own: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((own, 0)).await?;
    // Only this server can answer, and only on this port.
    socket.connect(server).await?;
    socket.send(message).await?;
    let mut answer = vec![0; MAX_MESSAGE_BYTES];
    loop {
        let length = socket.recv(&mut answer).await?;
        if answer.get(..2) == message.get(..2) && length >= 2 {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_those_of_the_file() {
        let config = "# nameserver 9.9.9.9\nnameserver 192.0.2.1\nnameserver\t2001:db8::1 \nnameserver x\n\
                      search a.example b.example\noptions ndots:2\nsortlist 1.1.1.1\n";
        let servers = servers_in(config);
        assert_eq!(servers, ["192.0.2.1:53".parse().unwrap(), "[2001:db8::1]:53".parse().unwrap()]);
        let own = String::from_utf8(config_like(config)).unwrap();
        assert_eq!(own, "nameserver 10.0.2.3\nsearch a.example b.example\noptions ndots:2\n");
        assert_eq!(config_like("options use-vc ndots:2\n"), b"nameserver 10.0.2.3\noptions ndots:2\n");
        assert_eq!(servers_in(""), ["127.0.0.1:53".parse().unwrap()]);
        assert_eq!(servers_in(&"nameserver 192.0.2.1\n".repeat(9)).len(), 3);
    }
}
