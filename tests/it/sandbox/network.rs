//! Steps with a network of their own: what they reach, what they do not, and what is left of them.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, Shutdown, TcpListener, TcpStream, UdpSocket},
    os::linux::net::SocketAddrExt,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use hm_exec::runner::StepRunner;
use serde_json::{Value, json};

use crate::support::{
    processes::eventually,
    project::{self, Ended, Project, ir},
    sandbox::{Ask, Bench},
    users::{has_users, is_root},
};

/// A step in Python with a private network, which reaches these ports of the machine as 10.0.2.2.
fn python(code: &str, ports: &[u16]) -> Ask {
    let code = format!("import socket, sys, threading, time\nHOST = '10.0.2.2'\n{code}");
    Ask::new("exec python3 -c \"$CODE\"").env("CODE", code).args(json!({ "network": "private", "host_ports": ports }))
}

/// Runs a step that must pass, and returns its output.
async fn passes(bench: &Bench, ask: Ask) -> String {
    let mut run = bench.run();
    let result = bench.step(&mut run, ask).await.unwrap();
    let output = run.output().await;
    assert_eq!(result.exit_code, 0, "{output}");
    output
}

/// Starts a server on the machine's loopback. Returns its port.
fn server(serve: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    serve_on(listener, serve)
}

fn serve_on(listener: TcpListener, serve: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> u16 {
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = serve.clone();
            thread::spawn(move || serve(stream));
        }
    });
    port
}

/// Sends back what it receives, and the end.
fn echo(mut stream: TcpStream) {
    let mut copy = stream.try_clone().unwrap();
    // The peer may break the connection.
    let _ = std::io::copy(&mut copy, &mut stream);
}

#[tokio::test]
async fn two_steps_listen_on_one_port_at_the_same_time() {
    let bench = Bench::new();
    let code = "s = socket.create_server(('127.0.0.1', 5432))\n\
                a = socket.create_server(('', 80))\n\
                time.sleep(1)\n\
                c = socket.create_connection(('127.0.0.1', 5432)); s.accept()[0].send(b'mine'); print(c.recv(9))";
    let [one, two] = [passes(&bench, python(code, &[])), passes(&bench, python(code, &[]))];
    let (one, two) = tokio::join!(one, two);
    assert_eq!((one.as_str(), two.as_str()), ("b'mine'\n", "b'mine'\n"));
}

#[tokio::test]
async fn the_machine_is_out_of_reach() {
    let port = server(echo);
    let own = own_address();
    let everywhere = serve_on(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap(), echo);
    let name = format!("hm-test-{}", std::process::id());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let _abstract = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
    let code = format!(
        "def no(family, to):\n\
         \x20   s = socket.socket(family); s.settimeout(5)\n\
         \x20   try: s.connect(to)\n\
         \x20   except OSError as e: return print(type(e).__name__)\n\
         \x20   print('reached', to)\n\
         for to in [('127.0.0.1', {port}), ('0.0.0.0', {port}), (HOST, {port}), ('{own}', {everywhere}), \
         ('169.254.169.254', 80), ('10.0.2.1', 80)]: no(socket.AF_INET, to)\n\
         for to in ['::1', '::ffff:127.0.0.1', 'fd00:2::2', 'fd00:ec2::254']: no(socket.AF_INET6, (to, {port}))\n\
         no(socket.AF_UNIX, '\\0{name}')"
    );
    let output = passes(&Bench::new(), python(&code, &[])).await;
    assert_eq!(output, "ConnectionRefusedError\n".repeat(11));
}

/// Returns an address of this machine that is not on its loopback, or else one that is.
fn own_address() -> std::net::IpAddr {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    match socket.connect("192.0.2.1:9") {
        Ok(()) => socket.local_addr().unwrap().ip(),
        Err(_) => Ipv4Addr::LOCALHOST.into(),
    }
}

/// Returns a port of the machine's loopback whose queue is full, and what keeps it so: the kernel ignores
/// further connections, as a firewall does.
fn silent() -> (u16, (TcpListener, TcpStream)) {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    rustix::net::listen(&socket, 0).unwrap();
    let listener = TcpListener::from(socket);
    let address = listener.local_addr().unwrap();
    (address.port(), (listener, TcpStream::connect(address).unwrap()))
}

#[tokio::test]
async fn a_port_that_refuses_is_refused_and_a_silent_one_keeps_the_step_waiting_only() {
    let refusing = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let (port, _silent) = silent();
    let code = format!(
        "for port in [{refusing}, {port}]:\n\
         \x20   try: socket.create_connection((HOST, port), 1)\n\
         \x20   except OSError as e: print(type(e).__name__)"
    );
    let bench = Bench::new();
    let output = passes(&bench, python(&code, &[refusing, port])).await;
    assert_eq!(output, "ConnectionRefusedError\nTimeoutError\n");
    let echoing = server(echo);
    let code = format!("c = socket.create_connection((HOST, {echoing})); c.send(b'on'); print(c.recv(9))");
    assert_eq!(passes(&bench, python(&code, &[echoing])).await, "b'on'\n");
}

#[tokio::test]
async fn each_direction_ends_by_itself() {
    let length = server(|mut stream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(format!("{} bytes", all.len()).as_bytes()).unwrap();
    });
    let (last, is_last) = std::sync::mpsc::channel();
    let far_first = server(move |mut stream| {
        stream.write_all(b"first").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        last.send(all).unwrap();
    });
    let resets = server(|stream| {
        let mut one = [0];
        (&stream).read_exact(&mut one).unwrap();
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    });
    let code = format!(
        "c = socket.create_connection((HOST, {length})); c.sendall(b'x' * 3000000)\n\
         c.shutdown(socket.SHUT_WR); print(c.recv(99))\n\
         c = socket.create_connection((HOST, {far_first})); time.sleep(.1); print(c.recv(9), c.recv(9))\n\
         c.sendall(b'last'); c.close()\n\
         c = socket.create_connection((HOST, {resets})); c.send(b'xx')\n\
         try: print(c.recv(9))\n\
         except OSError as e: print(type(e).__name__)"
    );
    let output = passes(&Bench::new(), python(&code, &[length, far_first, resets])).await;
    assert_eq!(output, "b'3000000 bytes'\nb'first' b''\nConnectionResetError\n");
    assert_eq!(is_last.recv_timeout(Duration::from_secs(20)).unwrap(), b"last");
}

#[tokio::test]
async fn datagrams_go_and_come_back() {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = socket.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(&buffer[..length], from).unwrap();
        }
    });
    let closed = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let code = format!(
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5)\n\
         for size in [0, 1, 1400, 60000]:\n\
         \x20   s.sendto(b'x' * size, (HOST, {port})); d, f = s.recvfrom(65536); print(len(d), f == (HOST, {port}))\n\
         for port in [{closed}, 9]:\n\
         \x20   c = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); c.settimeout(5); c.connect((HOST, port))\n\
         \x20   try: [c.send(b'x') for _ in range(3)], c.recv(9)\n\
         \x20   except OSError as e: print(type(e).__name__)"
    );
    let output = passes(&Bench::new(), python(&code, &[port, closed])).await;
    let sizes = "0 True\n1 True\n1400 True\n60000 True\n";
    assert_eq!(output, format!("{sizes}ConnectionRefusedError\nConnectionRefusedError\n"));
}

#[tokio::test]
async fn both_families_work() {
    let Ok(listener) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) else {
        return crate::support::backends::skip("this machine has no IPv6");
    };
    let port = serve_on(listener, echo);
    let code = format!(
        "for to in ['10.0.2.2', 'fd00:2::2']:\n\
         \x20   c = socket.create_connection((to, {port})); c.sendall(b'x' * 100000)\n\
         \x20   n = 0\n\
         \x20   while n < 100000: n += len(c.recv(65536))\n\
         \x20   print(to, n)"
    );
    let output = passes(&Bench::new(), python(&code, &[port])).await;
    assert_eq!(output, "10.0.2.2 100000\nfd00:2::2 100000\n");
}

#[tokio::test]
async fn every_user_of_a_step_has_its_network() {
    if !has_users() {
        // Steps have one user.
        return;
    }
    let port = server(echo);
    // As package managers do, which download as another user.
    let code = format!(
        "import os\nos.setgroups([]); os.setgid(1234); os.setuid(1234)\n\
         name = socket.gethostbyname('host.hm.internal'); print(os.getuid(), name)\n\
         c = socket.create_connection((name, {port})); c.send(b'on'); print(c.recv(9))\n\
         s = socket.create_server(('', 80)); l = socket.create_connection(('127.0.0.1', 80)); print(len(s.accept()))"
    );
    let output = passes(&Bench::new(), python(&code, &[port])).await;
    assert_eq!(output, "1234 10.0.2.2\nb'on'\n2\n");
}

#[tokio::test]
async fn a_step_that_waits_for_silent_destinations_ends_when_it_is_cancelled() {
    let (port, _silent) = silent();
    let code = format!(
        "all = [socket.socket() for _ in range(100)]\n\
         for s in all: s.setblocking(False); s.connect_ex((HOST, {port}))\n\
         print('waiting', flush=True)\n\
         s = socket.socket(); s.connect((HOST, {port}))"
    );
    let bench = Bench::new();
    let mut run = bench.run();
    let input = run.input(python(&code, &[port]));
    let ctx = run.ctx.clone();
    let step = bench.runner.execute(&ctx, input);
    let (ended, since) = tokio::join!(step, async {
        let waits = tokio::time::timeout(project::PATIENCE, run.says("waiting")).await;
        waits.expect("the step waits");
        ctx.cancel.cancel();
        std::time::Instant::now()
    });
    assert_ne!(ended.map_or(1, |result| result.exit_code), 0);
    // The kernel would try for two minutes.
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    // The network is as before.
    assert_eq!(passes(&bench, python("print('next')", &[])).await, "next\n");
}

#[tokio::test]
async fn a_namespace_has_the_settings_of_a_path_in_memory() {
    let code =
        "for name in ['tcp_congestion_control', 'tcp_wmem']: print(open('/proc/sys/net/ipv4/' + name).read().split())";
    let output = passes(&Bench::new(), python(code, &[])).await;
    assert_eq!(output, "['reno']\n['4096', '16384', '786432']\n");
}

#[tokio::test]
async fn many_short_connections_leave_nothing_and_a_stalled_one_stops_no_other() {
    let stalls = server(|stream| {
        // Reads nothing until the step is dead.
        thread::sleep(Duration::from_secs(600));
        drop(stream);
    });
    let echoes = server(echo);
    let code = format!(
        "stalled = socket.create_connection((HOST, {stalls})); stalled.setblocking(False)\n\
         try:\n\
         \x20   while True: stalled.send(b'x' * 65536)\n\
         except BlockingIOError: pass\n\
         def many():\n\
         \x20   for _ in range(1250):\n\
         \x20       c = socket.create_connection((HOST, {echoes}), 30); c.send(b'x'); assert c.recv(9) == b'x'; c.close()\n\
         all = [threading.Thread(target=many) for _ in range(8)]\n\
         [t.start() for t in all]; [t.join() for t in all]; print('done')"
    );
    let bench = Bench::new();
    passes(&bench, python("", &[])).await;
    let before = open_files();
    assert_eq!(passes(&bench, python(&code, &[stalls, echoes])).await, "done\n");
    // Kept pipes have two descriptors each.
    eventually("descriptors are closed", || open_files() <= before + 40).await;
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[tokio::test]
async fn the_next_step_in_a_namespace_finds_nothing_of_the_last_one() {
    let (ended, is_ended) = std::sync::mpsc::channel();
    let holds = server(move |mut stream| {
        let mut all = Vec::new();
        // Ends by a reset, or by the end of the step's socket if that is passed on first.
        let _ = stream.read_to_end(&mut all);
        ended.send(()).unwrap();
    });
    let bench = Bench::new();
    let namespace = "print(__import__('os').readlink('/proc/self/ns/net'))\n";
    // A process of the step holds connections, and a port, when the step ends.
    let code = format!(
        "{namespace}import os\ns = socket.create_server(('', 4000)); l = socket.create_connection(('127.0.0.1', 4000))\n\
         a = s.accept()[0]; a.send(b'unread')\n\
         c = socket.create_connection((HOST, {holds})); c.send(b'x')\n\
         u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.sendto(b'x', (HOST, 9))\n\
         sys.stdout.flush()\n\
         if os.fork() == 0: time.sleep(600)"
    );
    let first = passes(&bench, python(&code, &[holds])).await;
    is_ended.recv_timeout(Duration::from_secs(20)).unwrap();
    let code = format!(
        "{namespace}socket.create_server(('', 4000))\n\
         for kind in ['tcp', 'tcp6', 'udp', 'udp6']:\n\
         \x20   for line in open('/proc/net/' + kind).readlines()[1:]:\n\
         \x20       w = line.split()\n\
         \x20       if w[1].split(':')[1] != '0001' and w[3] != '0A': print(kind, w[1:4])"
    );
    let second = passes(&bench, python(&code, &[])).await;
    assert_eq!(first, second, "another namespace, or something is left");
}

#[tokio::test]
async fn ports_of_the_machine_need_a_private_network_and_numbers() {
    let bench = Bench::new();
    let mut run = bench.run();
    for args in [json!({ "network": "private", "host_ports": [0] }), json!({ "network": "private", "host_ports": 1 })] {
        let error = bench.step(&mut run, Ask::new("true").args(args)).await.unwrap_err();
        assert!(error.to_string().contains("wrong runner_args"), "{error}");
    }
}

#[test]
fn nothing_is_left_if_the_engine_is_killed() {
    let (ended, is_ended) = std::sync::mpsc::channel();
    let holds = server(move |mut stream| {
        let mut namespace = [0; 64];
        let length = stream.read(&mut namespace).unwrap();
        stream.write_all(b"k").unwrap();
        // The connection may end by a reset.
        let _ = stream.read(&mut [0]);
        ended.send(String::from_utf8(namespace[..length].to_vec()).unwrap()).unwrap();
    });
    let code = "import os, socket, sys, time; s = socket.create_connection((\"host.hm.internal\", int(sys.argv[1])));\
                s.send(os.readlink(\"/proc/self/ns/net\").encode()); s.recv(1); print(\"connected\", flush=True); time.sleep(600)";
    let mut ir: Value =
        serde_json::from_str(&ir(&[("a", &format!("exec python3 -c '{code}' {holds}"), None)])).unwrap();
    ir["graph"]["nodes"][0]["step"]["runner_args"] = json!({ "network": "private", "host_ports": [holds] });
    let project = Project::new();
    project.file(".hm/ci.json", &ir.to_string());
    let mut hm = project.hm(&["run", "--trust"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(hm.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.contains("connected")), "the step ended");
    hm.kill().unwrap();
    hm.wait().unwrap();
    // The far end sees the end of the connection, and no process is left in the namespace.
    let namespace = is_ended.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(namespace.starts_with("net:["), "{namespace}");
    project::eventually("the namespace is empty", || {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let mut namespaces = processes.filter_map(|process| process.path().join("ns/net").read_link().ok());
        !namespaces.any(|it| it.as_os_str() == namespace.as_str())
    });
}

#[test]
fn a_machine_without_tun_is_found_out_before_anything_runs() {
    if !is_root() {
        // An ordinary user cannot hide the device. The suite of root has just done so.
        return;
    }
    let project = Project::with_steps(&[("a", "echo never", None)]);
    let hide = "mount --bind /dev/null /dev/net/tun && exec \"$@\"";
    let run = |network: &str| {
        let hm = project.hm(&["run", "--network", network]);
        let mut hidden = Command::new("unshare");
        hidden.args(["-m", "sh", "-c", hide, "sh"]).arg(hm.get_program()).args(hm.get_args());
        hidden.envs(hm.get_envs().filter_map(|(name, value)| Some((name, value?))));
        hidden.current_dir(&project.dir);
        Ended::of(&mut hidden)
    };
    let ended = run("private").expect(3);
    assert!(ended.stderr.contains("make a TUN device") && ended.stderr.contains("--network host"), "{}", ended.stderr);
    assert!(!ended.stdout.contains("never"), "{}", ended.stdout);
    run("host").expect(0);
}
