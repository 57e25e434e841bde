//! What a step with a network of its own connected to, and what its list of destinations lets through.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::{
    processes::{marker, pid_of},
    project::{Ended, Project, eventually, ir},
    users::is_root,
};

/// Returns a project whose step `a` runs this Python program with a private network.
fn python(code: &str, args: Value) -> Project {
    let code = format!("import socket\n{code}");
    let mut ir: Value = serde_json::from_str(&ir(&[("a", "exec python3 -c \"$CODE\"", None)])).unwrap();
    let node = &mut ir["graph"]["nodes"][0];
    node["env"] = json!({ "CODE": code });
    node["step"]["runner_args"] = args;
    node["step"]["runner_args"]["network"] = "private".into();
    let project = Project::new();
    project.file(".hm/ci.json", &ir.to_string());
    project
}

/// Runs the project's pipeline.
fn run(project: &Project, args: &[&str]) -> Ended {
    Ended::of(project.hm(&["run", "--trust"]).args(args))
}

/// Returns what `hm logs --network` prints.
fn logs(project: &Project, args: &[&str]) -> String {
    Ended::of(project.hm(&["logs", "--network"]).args(args)).expect(0).stdout
}

/// Returns the connections of a project's last run.
fn connections(project: &Project) -> Vec<Value> {
    let logs = logs(project, &["--format", "json", "a"]);
    logs.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Starts a server on the machine's loopback that answers five bytes with three. Returns its port.
fn server() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // The peer may break the connection.
            let _ = stream.read_exact(&mut [0; 5]).and_then(|()| stream.write_all(b"yes"));
        }
    });
    port
}

#[test]
fn connections_are_logged_with_names_ends_and_bytes() {
    let port = server();
    let code = format!(
        "def to(host, port):\n\
         \x20   try: return socket.create_connection((host, port), 5)\n\
         \x20   except OSError as e: print(type(e).__name__)\n\
         c = to('host.hm.internal', {port}); c.sendall(b'hello'); print(c.recv(9)); c.recv(9); c.close()\n\
         to('10.0.2.2', 9); to('127.0.0.1', 9); to('169.254.169.254', 80)\n\
         u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.sendto(b'four', ('10.0.2.2', {port}))"
    );
    let project = python(&code, json!({ "host_ports": [port] }));
    let ended = run(&project, &["--format", "human"]).expect(0);
    assert!(ended.stdout.lines().last().unwrap().ends_with(" · network: a"), "{}", ended.stdout);
    let ended = run(&project, &["--format", "json-full"]).expect(0);
    let all = connections(&project);
    let named = all.iter().find(|it| it["host"] == "host.hm.internal" && it["port"] == port).unwrap();
    assert_eq!((&named["protocol"], &named["port"], &named["end"]), (&json!("tcp"), &json!(port), &json!("closed")));
    assert_eq!((&named["sent"], &named["received"], &named["step"]), (&json!(5), &json!(3), &json!("a")));
    // The name has an address of each family.
    let address = named["address"].as_str().unwrap();
    assert!(["10.0.2.2", "fd00:2::2"].contains(&address) && named["ts"].is_string(), "{named}");
    let blocked: Vec<_> = all.iter().filter(|it| it["end"] == "blocked").collect();
    let to: Vec<_> = blocked.iter().map(|it| (it["address"].as_str().unwrap(), &it["port"])).collect();
    assert_eq!(to, [("10.0.2.2", &json!(9)), ("169.254.169.254", &json!(80))]);
    assert!(blocked[0]["reason"].as_str().unwrap().contains("`host_ports`"), "{}", blocked[0]);
    assert!(all.iter().any(|it| it["protocol"] == "udp" && it["sent"] == 4), "{all:?}");
    // Every reader sees them, before the end of the step.
    let kinds: Vec<_> = ended.events().into_iter().map(|event| event["kind"].clone()).collect();
    let last = kinds.iter().rposition(|kind| kind == "connection").unwrap();
    assert_eq!(kinds.iter().filter(|kind| *kind == "connection").count(), all.len());
    assert!(kinds.iter().position(|kind| kind == "step_end").unwrap() > last, "{kinds:?}");
    let text = logs(&project, &[]);
    assert!(text.contains(&format!("  a  tcp  host.hm.internal:{port} ({address})  closed  sent 5 B")), "{text}");
    // In the dialect of the ecosystem, they are a field of the step's end.
    let events = run(&project, &["--format", "json"]).expect(0).events();
    assert!(!events.iter().any(|event| event["kind"] == "connection"));
    let end = events.iter().find(|event| event["kind"] == "step_end").unwrap();
    assert_eq!((&end["connections"]["count"], &end["connections"]["blocked"]), (&json!(4), &json!(2)));
}

/// A process that is killed when this is dropped, even if it is stopped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn datagrams_that_a_step_sends_last_arrive() {
    // More than the network's thread handles at a time. It is stopped until the step has ended.
    const COUNT: u32 = 200;
    let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    receiver.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let port = receiver.local_addr().unwrap().port();
    let marker = marker();
    let code = format!(
        "import os, signal  # {marker}\n\
         u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
         os.kill(os.getpid(), signal.SIGSTOP)\n\
         for at in range({COUNT}): u.sendto(b'%d' % at, ('10.0.2.2', {port}))"
    );
    let project = python(&code, json!({ "host_ports": [port] }));
    let hm = project.hm(&["run", "--trust"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut hm = Killed(hm);
    let send = |pid: u32, signal| kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), signal).unwrap();
    // `R (running)`, for example.
    let state = |pid: u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().find_map(|line| line.strip_prefix("State:\t")?.chars().next())
    };
    let mut step = 0;
    eventually("the step has stopped itself", || {
        step = pid_of(&marker).unwrap_or_default();
        state(step) == Some('T')
    });
    send(hm.0.id(), Signal::STOP);
    send(step, Signal::CONT);
    eventually("the step has ended", || state(step).is_none());
    send(hm.0.id(), Signal::CONT);
    assert!(hm.0.wait().unwrap().success());
    for at in 0..COUNT {
        let mut buffer = [0; 9];
        let length = receiver.recv(&mut buffer).unwrap_or_else(|error| panic!("datagram {at}: {error}"));
        assert_eq!(&buffer[..length], at.to_string().as_bytes());
    }
}

#[test]
fn a_flood_is_recorded_by_destination() {
    let code = "for at in range(3000):\n\
                \x20   try: socket.create_connection(('10.0.2.2', 9))\n\
                \x20   except ConnectionRefusedError: pass";
    let project = python(code, json!({}));
    run(&project, &[]).expect(0);
    let all = connections(&project);
    assert_eq!(all.len(), 1001);
    assert_eq!(all[1000]["count"], 2000);
    assert!(logs(&project, &["a"]).contains("(2000 connections)"));
}

#[test]
fn a_failed_step_gets_a_hint_about_its_network_and_a_passed_one_does_not() {
    // A port on which nothing listens.
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let attempt = |host: &str| format!("socket.create_connection(('{host}', {port}), 5)");
    let hint = |code: &str, args: Value, exit: i32| {
        let ended = run(&python(code, args), &[]).expect(exit);
        ended.stdout + &ended.stderr
    };
    let has_ipv6 = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    for host in ["127.0.0.1", "::1"].into_iter().take(if has_ipv6 { 2 } else { 1 }) {
        let text = hint(&attempt(host), json!({}), 1);
        assert!(text.contains("`host_ports`") && text.contains("--network host"), "{host}: {text}");
    }
    let text = hint(&attempt("192.0.2.1"), json!({ "egress": ["192.0.2.1:443"] }), 1);
    assert!(text.contains(&format!("`egress` has no entry for 192.0.2.1:{port}")), "{text}");
    let text = hint("socket.getaddrinfo('evil.example', 80)", json!({ "egress": ["a.example"] }), 1);
    assert!(text.contains("`egress` has no entry for evil.example"), "{text}");
    let text = hint(&format!("try: {}\nexcept OSError: pass", attempt("127.0.0.1")), json!({}), 0);
    assert!(!text.contains("host_ports"), "{text}");
    // Refused by the machine, and not by its own loopback.
    let text = hint(&attempt("10.0.2.2"), json!({ "host_ports": [port] }), 1);
    assert!(!text.contains("its own loopback"), "{text}");
}

#[test]
fn a_wrong_destination_is_an_error_before_anything_runs() {
    let project = python("print('never')", json!({ "egress": ["crates.io:443", "https://crates.io"] }));
    let ended = run(&project, &[]).expect(2);
    assert!(ended.stderr.contains("`https://crates.io`") && ended.stderr.contains("URL"), "{}", ended.stderr);
    assert!(!ended.stdout.contains("never"));
}

/// A name server and servers on ports 80 and 443 that answer anything, all with the same address.
const FAR: &str = r#"
import socket, struct, threading
def serve(port):
    s = socket.create_server(('192.0.2.1', port))
    while True:
        c, _ = s.accept()
        try: c.recv(9999); c.sendall(b'far')
        except OSError: pass
        c.close()
def names(own, answer):
    u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind((own, 53)); print('ready', flush=True)
    while True:
        q, peer = u.recvfrom(9999)
        end = q.index(b'\0', 12) + 5
        kind, = struct.unpack('>H', q[end - 4:end - 2])
        a = b'\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04' + socket.inet_aton(answer) if kind == 1 else b''
        u.sendto(q[:2] + b'\x81\x80\0\x01\0' + bytes([len(a) > 0]) + b'\0\0\0\0' + q[12:end] + a, peer)
for port in [80, 443]: threading.Thread(target=serve, args=[port], daemon=True).start()
threading.Thread(target=names, args=['192.0.2.54', '192.0.2.9'], daemon=True).start()
names('192.0.2.53', '192.0.2.1')
"#;

/// Runs a command on a machine whose network has nothing but what `FAR` serves.
const MACHINE: &str = r#"
set -e
echo 'nameserver 192.0.2.53' > $DIR/resolv.conf
mount --bind $DIR/resolv.conf /etc/resolv.conf
mkfifo $DIR/started $DIR/ready
unshare -n sh -c 'echo $$ > $DIR/started; read go < $DIR/ready; exec python3 -c "$FAR"' > $DIR/far &
far=$(cat $DIR/started)
trap "kill $far" EXIT
: > $DIR/out
ip link set lo up
ip link add hm0 type veth peer name hm1 netns $far
ip addr add 198.51.100.1/24 dev hm0
ip link set hm0 up
ip route add default via 198.51.100.2
nsenter -t $far -n sh -ec 'ip link set lo up; ip addr add 192.0.2.1 dev lo; ip addr add 192.0.2.53 dev lo
  ip addr add 192.0.2.54 dev lo
  echo 0 > /proc/sys/net/ipv4/ip_forward
  ip addr add 198.51.100.2/24 dev hm1; ip link set hm1 up'
echo go > $DIR/ready
until [ $(grep -o ready $DIR/far | wc -l) = 2 ]; do kill -0 $far; sleep 0.05; done
# The machine's resolver changes as soon as the step has seen the first one.
(until grep -q 'first 192.0.2.1' $DIR/out; do sleep 0.05; done; echo 'nameserver 192.0.2.54' > $DIR/resolv.conf) &
change=$!
trap "kill $far $change" EXIT
set +e
"$@" > $DIR/out
code=$?
cat $DIR/out
exit $code
"#;

/// What a step sees of the two names that share an address.
const ASKS: &str = r#"
import ssl
def hello(name):
    o = ssl.MemoryBIO(); t = ssl.create_default_context()
    t.check_hostname = False
    t = t.wrap_bio(ssl.MemoryBIO(), o, server_hostname=name)
    try: t.do_handshake()
    except ssl.SSLWantReadError: return o.read()
def to(label, host, port, first):
    try:
        c = socket.create_connection((host, port), 10); c.sendall(first); print(label, c.recv(9) or b'end')
    except OSError as e: print(label, type(e).__name__)
to('listed', 'good.example', 443, hello('good.example'))
to('neighbour', 'good.example', 443, hello('evil.example'))
to('nameless', 'good.example', 443, hello(None))
to('plain', 'good.example', 443, b'GET / HTTP/1.1\r\n\r\n')
to('port', 'good.example', 80, b'GET / HTTP/1.1\r\n\r\n')
to('below', 'a.sub.example', 443, hello('a.sub.example'))
to('unlisted', 'evil.example', 443, hello('evil.example'))
to('literal', '192.0.2.53', 443, hello('good.example'))
to('resolver', '192.0.2.53', 53, b'x')
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.settimeout(10); u.connect(('192.0.2.1', 443))
try: u.send(b'quic'); print('quic', u.recv(9))
except OSError as e: print('quic', type(e).__name__)
"#;

/// Runs the project's pipeline on a machine whose network has nothing but what `FAR` serves.
fn run_far(project: &Project) -> Ended {
    let scratch = tempfile::tempdir().unwrap();
    let hm = project.hm(&["run", "--trust"]);
    let mut machine = Command::new("unshare");
    machine.args(["-n", "-m", "sh", "-c", MACHINE, "sh"]).arg(hm.get_program()).args(hm.get_args());
    machine.envs(hm.get_envs().filter_map(|(name, value)| Some((name, value?))));
    machine.env("DIR", scratch.path()).env("FAR", FAR);
    Ended::of(machine.current_dir(&project.dir))
}

/// Returns what steps printed after a label.
fn seen(ended: &Ended) -> Vec<(&str, &str)> {
    ended.stdout.lines().filter_map(|line| line.split_once("| ")?.1.split_once(' ')).collect()
}

#[test]
fn a_list_lets_through_what_it_names_and_nothing_else() {
    if !is_root() {
        // An ordinary user cannot make a machine with a network of its own.
        return;
    }
    let project = python(ASKS, json!({ "egress": ["good.example:443", "*.sub.example"] }));
    let ended = run_far(&project).expect(0);
    let seen = seen(&ended);
    let refused = "ConnectionRefusedError";
    for (label, expected) in [
        ("listed", "b'far'"),
        ("below", "b'far'"),
        ("neighbour", "ConnectionResetError"),
        ("nameless", "ConnectionResetError"),
        ("plain", "ConnectionResetError"),
        ("port", refused),
        ("unlisted", "gaierror"),
        ("literal", refused),
        ("resolver", refused),
        ("quic", refused),
    ] {
        assert!(seen.contains(&(label, expected)), "{label}: {}\n{}", ended.stdout, ended.stderr);
    }
    let all = connections(&project);
    let reasons: Vec<_> = all.iter().filter_map(|it| it["reason"].as_str()).collect();
    for reason in [
        "`egress` has no entry for evil.example:443, the server of the TLS handshake",
        "names no server",
        "only TLS",
        "`egress` has no entry for good.example:80",
        "`egress` has no entry for evil.example",
        "`egress` has no entry for 192.0.2.53:443",
        "QUIC",
    ] {
        assert!(reasons.iter().any(|it| it.contains(reason)), "{reason}: {reasons:#?}");
    }
    let listed = all.iter().find(|it| it["host"] == "good.example" && it["end"] == "closed").unwrap();
    assert_eq!((&listed["address"], &listed["received"]), (&json!("192.0.2.1"), &json!(3)));
}

#[test]
fn a_resolver_that_changes_and_a_destination_that_never_answers_stop_nothing() {
    if !is_root() {
        return;
    }
    // Nothing answers for the address: the machine behind the router drops what is not for it.
    let code = "import threading, time\n\
        def hole():\n\
        \x20   try: socket.create_connection(('192.0.2.200', 80), 3)\n\
        \x20   except OSError as e: print('hole', type(e).__name__, flush=True)\n\
        all = [threading.Thread(target=hole) for _ in range(50)]; [t.start() for t in all]\n\
        print('first', socket.gethostbyname('one.example'), flush=True)\n\
        c = socket.create_connection(('192.0.2.1', 80), 10); c.sendall(b'x'); print('beside', c.recv(9), flush=True)\n\
        for at in range(200):\n\
        \x20   found = socket.gethostbyname('two%d.example' % at)\n\
        \x20   if found == '192.0.2.9': print('second', found); break\n\
        \x20   time.sleep(.05)\n\
        [t.join() for t in all]";
    let project = python(code, json!({}));
    let ended = run_far(&project).expect(0);
    let seen = seen(&ended);
    for expected in [("first", "192.0.2.1"), ("second", "192.0.2.9"), ("beside", "b'far'")] {
        assert!(seen.contains(&expected), "{expected:?}: {}\n{}", ended.stdout, ended.stderr);
    }
    assert_eq!(seen.iter().filter(|it| **it == ("hole", "TimeoutError")).count(), 50, "{}", ended.stdout);
}
