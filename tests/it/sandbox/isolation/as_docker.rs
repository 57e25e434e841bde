//! Everything that a default container denies, the sandbox denies: about 300 probes, run in both.
//!
//! The probes are a Python program, because they are system calls with odd arguments. The default container
//! gets the machine's `/usr` to run it. Each place is one process, so that the whole test takes seconds. If
//! the test runs as root, it runs itself again as an ordinary user, who has no daemon and is given the
//! container's answers.

use std::{
    collections::BTreeMap,
    fs,
    net::TcpListener,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::MetadataExt,
            net::{SocketAddr, UnixListener},
        },
    },
    path::Path,
    process::Command,
};

use bollard::{
    models::{ContainerCreateBody, HostConfig},
    query_parameters::{LogsOptionsBuilder, RemoveContainerOptionsBuilder},
};
use futures_util::{StreamExt, TryStreamExt};
use serde_json::json;

use crate::support::{
    backends::{skip_optional, usable},
    docker_daemon::{Daemon, IMAGE},
    sandbox::{Ask, Bench},
    users::{is_root, run_again},
};

const PROBES: &str = include_str!("../../../fixtures/isolation/probes.py");
const PYTHON: &str = "/usr/bin/python3";
/// The variable that names a file with the container's answers and the bait of its probes.
const ANSWERED: &str = "HM_TEST_CONTAINER_ANSWERED";

/// The results of a probe that was denied: it was refused, or its target did not exist. All other results
/// (success, a wrong argument, a bad address) mean that the probe reached its target.
const DENIALS: [&str; 13] = [
    "EPERM",
    "EACCES",
    "EROFS",
    "ENOSYS",
    "ENOENT",
    "ENODATA",
    "ENXIO",
    "ENODEV",
    "ENOTDIR",
    "EISDIR",
    "EAFNOSUPPORT",
    "ECONNREFUSED",
    "ESRCH",
];

/// What the sandbox allows although some daemon's default denies it, on which networks, and why.
const DEVIATIONS: &[(&str, Network, &str)] = &[
    (
        "port of the machine's loopback",
        Network::Machine,
        "that is what it means to be on the machine's network, where a default container is not",
    ),
    (
        "syscall process_vm_writev of pid 1",
        Network::Any,
        "later daemons allow it: it takes the rights that ptrace takes, which they allow as well",
    ),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Network {
    Any,
    Machine,
}

const ABSTRACT_SOCKET: &str = "abstract socket of the machine";

type Answers = BTreeMap<String, String>;

/// The bait of the probes: objects that a probe finds if it can reach them.
#[derive(Debug)]
struct Bait {
    env: Vec<(String, String)>,
    _held: (UnixListener, TcpListener),
}

impl Bait {
    fn set() -> Self {
        let name = format!("hm-test-{}", uuid::Uuid::new_v4());
        let address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        let (unix, tcp) = (UnixListener::bind_addr(&address).unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let env = [
            ("PROBE_DISK", fs::metadata("/").unwrap().dev().to_string()),
            ("PROBE_SOCKET", name),
            ("PROBE_PORT", tcp.local_addr().unwrap().port().to_string()),
        ];
        Self { env: env.map(|(name, value)| (name.to_owned(), value)).into(), _held: (unix, tcp) }
    }
}

#[tokio::test]
async fn everything_that_a_default_container_denies_is_denied() {
    if !cfg!(target_arch = "x86_64") || !Path::new(PYTHON).exists() {
        usable("the table of probes", false, "it is for x86_64 machines with /usr/bin/python3");
        return;
    }
    let bait = Bait::set();
    if let Some(file) = std::env::var_os(ANSWERED) {
        let answered = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        return compare(&answered, &bait).await;
    }
    if !is_root() {
        skip_optional(
            "the table of probes",
            "only root starts a daemon; root's run of this test is as an ordinary user, too",
        );
        return;
    }
    let Some(daemon) = Daemon::get() else { return };
    let answered = in_container(&daemon, &bait).await;
    compare(&answered, &bait).await;

    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, serde_json::to_vec(&answered).unwrap()).unwrap();
    rustix::fs::chmod(file.path(), rustix::fs::Mode::from_raw_mode(0o644)).unwrap();
    let name = "sandbox::isolation::as_docker::everything_that_a_default_container_denies_is_denied";
    if let Some(passed) = run_again(&["--exact", name], &[(ANSWERED, file.path())]) {
        assert_eq!(passed, 1);
    }
}

/// Runs the probes in a container with the default settings and the machine's programs.
async fn in_container(daemon: &Daemon, bait: &Bait) -> Answers {
    let docker = daemon.client();
    let binds = ["/usr", "/lib", "/lib64"].map(|dir| format!("{dir}:{dir}:ro"));
    let body = ContainerCreateBody {
        image: Some(IMAGE.into()),
        cmd: Some(["/bin/sh", "-c", "\"$@\"; exit $?", "sh", PYTHON, "-c", PROBES].map(str::to_owned).into()),
        env: Some(bait.env.iter().map(|(name, value)| format!("{name}={value}")).collect()),
        host_config: Some(HostConfig {
            network_mode: Some("none".into()),
            binds: Some(binds.into()),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    };
    let id = docker.create_container(None, body).await.unwrap().id;
    docker.start_container(&id, None).await.unwrap();
    let ended: Vec<_> = docker.wait_container(&id, None).collect().await;
    let options = LogsOptionsBuilder::default().stdout(true).stderr(true).build();
    let logs: Vec<_> = docker.logs(&id, Some(options)).try_collect().await.unwrap();
    docker.remove_container(&id, Some(RemoveContainerOptionsBuilder::default().force(true).build())).await.unwrap();
    let output: String = logs.iter().map(|log| String::from_utf8_lossy(log.as_ref())).collect();
    assert!(matches!(&ended[..], [Ok(_)]), "{ended:?}: {output}");
    answers(&output)
}

/// Runs the probes in the sandbox, on the machine's network and without one.
async fn compare(answered: &Answers, bait: &Bait) {
    assert!(answered.len() > 250, "{answered:?}");
    let bench = Bench::new();
    let scopes = has_landlock_scopes();
    for (network, name) in [(Network::Machine, "host"), (Network::Any, "none")] {
        let mut run = bench.run();
        let cmd = format!("{PYTHON} -c \"$PROBES\"; exit $?");
        let ask = Ask::new(cmd).args(json!({ "network": name })).env("PROBES", PROBES);
        let ask = bait.env.iter().fold(ask, |ask, (name, value)| ask.env(name, value));
        let result = bench.step(&mut run, ask).await.unwrap();
        let output = run.output().await;
        assert_eq!(result.exit_code, 0, "{output}");
        let ours = answers(&output);
        let denied = |answers: &Answers, probe: &str| {
            answers.get(probe).is_some_and(|answer| DENIALS.contains(&answer.as_str()))
        };
        let excused = |probe: &str| {
            if probe == ABSTRACT_SOCKET && !scopes {
                skip_optional(
                    "the probe of abstract sockets",
                    "this kernel has no Landlock scopes: they are of Linux 6.12",
                );
                return true;
            }
            DEVIATIONS.iter().any(|(name, on, _)| *name == probe && (*on == Network::Any || *on == network))
        };
        let wrong: Vec<_> = answered
            .iter()
            .filter(|(probe, _)| denied(answered, probe) && !denied(&ours, probe) && !excused(probe))
            .map(|(probe, theirs)| format!("{probe}: {theirs} in the container, {:?} here", ours.get(probe)))
            .collect();
        assert!(wrong.is_empty(), "on network {name}, root {}:\n{}", is_root(), wrong.join("\n"));
    }
}

/// Returns whether this kernel can keep a step on the machine's network from the machine's abstract sockets.
fn has_landlock_scopes() -> bool {
    let ask = "import ctypes; print(ctypes.CDLL(None).syscall(444, None, 0, 1))";
    let version = Command::new(PYTHON).args(["-c", ask]).output().unwrap().stdout;
    String::from_utf8_lossy(&version).trim().parse::<i32>().unwrap() >= 6
}

fn answers(output: &str) -> Answers {
    let pair = |line: &str| line.split_once('\t').map(|(probe, answer)| (probe.to_owned(), answer.to_owned()));
    output.lines().filter_map(pair).collect()
}
