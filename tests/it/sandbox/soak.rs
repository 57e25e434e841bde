//! Thousands of steps with connections in one process: what is left of them at the end. `just soak` runs it.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde_json::json;

use crate::support::{
    processes::eventually,
    sandbox::{Ask, Bench},
};

/// The steps that run at once.
const AT_ONCE: usize = 4;
/// The rounds before the first count: caches, pools and allocators have grown by then.
const WARM_UP: usize = 50;
/// How much larger this process may be at the end than after the warm-up.
const MAX_GROWTH_KIB: u64 = 8 << 10;

/// What this process has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    files: usize,
    devices: usize,
    namespaces: usize,
    threads: usize,
    resident_kib: u64,
}

impl Held {
    fn now() -> Self {
        let links: Vec<_> = fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|file| Some(fs::read_link(file.unwrap().path()).ok()?.to_string_lossy().into_owned()))
            .collect();
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let number = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_ascii_whitespace().next().unwrap().parse().unwrap()
        };
        Self {
            files: links.len(),
            devices: links.iter().filter(|link| *link == "/dev/net/tun").count(),
            namespaces: links.iter().filter(|link| link.starts_with("net:[")).count(),
            threads: usize::try_from(number("Threads:")).unwrap(),
            resident_kib: number("VmRSS:"),
        }
    }
}

/// Starts servers on one port of the machine's loopback that send back what they receive. Returns the port.
fn echo() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 64];
        for mut stream in listener.incoming().flatten() {
            // The step may be dead.
            if let Ok(length @ 1..) = stream.read(&mut buffer) {
                let _ = stream.write_all(&buffer[..length]);
            }
        }
    });
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            // The same.
            let _ = socket.send_to(&buffer[..length], from);
        }
    });
    port
}

async fn one_step(bench: &Bench, port: u16) {
    // Ten connections, a refused one, a blocked one, a datagram, and a connection that is open at the end.
    let cmd = format!(
        "for n in 1 2 3 4 5 6 7 8 9 10; do exec 3<> /dev/tcp/10.0.2.2/{port}; echo $n >&3; read -r got <&3; \
         test $n = $got || exit 1; exec 3>&-; done; \
         (exec 3<> /dev/tcp/10.0.2.2/9) 2> /dev/null; (exec 3<> /dev/tcp/127.0.0.1/9) 2> /dev/null; \
         exec 4<> /dev/udp/10.0.2.2/{port}; echo datagram >&4; got=$(head -c 8 <&4); test $got = datagram || exit 1; \
         exec 5<> /dev/tcp/10.0.2.2/{port}; exit 0"
    );
    let mut ask = Ask::new(format!("bash -c '{cmd}'")).args(json!({ "network": "private", "host_ports": [port] }));
    ask.commit = false;
    let mut run = bench.run();
    let result = bench.step(&mut run, ask).await.unwrap();
    assert_eq!(result.exit_code, 0, "{}", run.output().await);
    run.ctx.end_build().await;
}

/// Waits longer than idle threads live, so that what is counted does not depend on the last round.
async fn settle() {
    tokio::time::sleep(Duration::from_secs(15)).await;
}

#[tokio::test]
#[ignore = "takes minutes: `just soak`"]
#[allow(clippy::print_stdout, reason = "it prints figures")]
async fn thousands_of_steps_with_connections_leave_nothing() {
    let seconds = std::env::var("HM_SOAK_SECONDS").map_or(300, |seconds| seconds.parse().unwrap());
    let (bench, port) = (Bench::new(), echo());
    let round = || join_all((0..AT_ONCE).map(|_| one_step(&bench, port)));
    for _ in 0..WARM_UP {
        round().await;
    }
    settle().await;
    let before = Held::now();
    println!("after {} steps: {before:?}", WARM_UP * AT_ONCE);
    let since = Instant::now();
    let mut rounds = WARM_UP;
    while since.elapsed() < Duration::from_secs(seconds) {
        round().await;
        rounds += 1;
    }
    settle().await;
    eventually("descriptors are closed", || Held::now().files <= before.files).await;
    let after = Held::now();
    println!("after {} steps: {after:?}", rounds * AT_ONCE);
    assert_eq!((after.devices, after.namespaces), (before.devices, before.namespaces));
    assert!(after.threads <= before.threads, "{after:?}");
    assert!(after.resident_kib <= before.resident_kib + MAX_GROWTH_KIB, "{after:?}");
}
