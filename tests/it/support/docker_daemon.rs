//! A Docker daemon for tests: the one that `HM_TEST_DOCKER` names, or a new one.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use bollard::{
    API_DEFAULT_VERSION, Docker, body_full,
    query_parameters::{
        CreateImageOptionsBuilder, ListContainersOptionsBuilder, ListImagesOptionsBuilder, ListVolumesOptionsBuilder,
    },
};
use futures_util::TryStreamExt;
use rustix::{
    mount::{UnmountFlags, unmount},
    process::{Pid, Signal, kill_process},
};
use tempfile::TempDir;

use super::backends::usable;

/// The name of the tests' base image at the daemon.
pub(crate) const IMAGE: &str = "hm-exec-test/busybox:latest";

/// A daemon that has the base image. A daemon that was started for the tests ends with its last user.
pub(crate) struct Daemon {
    pub(crate) host: String,
    /// The process, which ends before its directory is removed.
    started: Option<Child>,
    dir: Option<TempDir>,
    /// The bridge of its containers, which goes with it.
    bridge: Option<Bridge>,
}

/// The daemon that concurrent tests share.
static SHARED: Mutex<Weak<Daemon>> = Mutex::new(Weak::new());

impl Daemon {
    /// Returns the daemon. `None` if there is none and none can be started: the test is then skipped.
    pub(crate) fn get() -> Option<Arc<Self>> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(daemon) = shared.upgrade() {
            return Some(daemon);
        }
        let daemon = match std::env::var("HM_TEST_DOCKER") {
            Ok(host) => Ok(Self { host, started: None, dir: None, bridge: None }),
            Err(_) => Bridge::make().and_then(|bridge| Self::start(Some(bridge))),
        };
        let daemon = match daemon {
            Ok(daemon) => Arc::new(daemon),
            Err(why) => {
                usable("docker", false, &why);
                return None;
            }
        };
        // On its own thread, because the caller may be on a runtime.
        std::thread::scope(|scope| scope.spawn(|| daemon.import()).join().unwrap());
        *shared = Arc::downgrade(&daemon);
        Some(daemon)
    }

    /// Starts a daemon that has no bridge, and so no networks of containers' own.
    pub(crate) fn without_bridge() -> Option<Self> {
        let daemon = Self::start(None);
        usable("docker", daemon.is_ok(), daemon.as_ref().err().map_or("", |why| why));
        let daemon = daemon.ok()?;
        std::thread::scope(|scope| scope.spawn(|| daemon.import()).join().unwrap());
        Some(daemon)
    }

    fn start(bridge: Option<Bridge>) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("HM_TEST_DOCKER names no daemon, and this is not root, who could start one".into());
        }
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let path = |name: &str| dir.path().join(name).display().to_string();
        let host = format!("unix://{}", path("docker.sock"));
        let log = fs::File::create(path("log")).map_err(|error| error.to_string())?;
        let mut started = Command::new("dockerd")
            .args(["--host", &host, "--data-root", &path("data"), "--exec-root", &path("exec")])
            .args(["--pidfile", &path("pid"), "--iptables=false", "--ip6tables=false"])
            .args(["--bridge", bridge.as_ref().map_or("none", |bridge| &bridge.name)])
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(|error| error.to_string())?)
            .stderr(log)
            .spawn()
            .map_err(|error| format!("dockerd does not start ({error}): install docker.io"))?;
        let patience = Instant::now() + Duration::from_secs(60);
        while Instant::now() < patience && started.try_wait().is_ok_and(|ended| ended.is_none()) {
            if Path::new(&path("docker.sock")).exists() && Self::answers(&host) {
                return Ok(Self { host, started: Some(started), dir: Some(dir), bridge });
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        end(&mut started, dir.path());
        Err(format!("dockerd does not come up: {}", fs::read_to_string(path("log")).unwrap_or_default()))
    }

    fn answers(host: &str) -> bool {
        // On its own thread, because the caller may be on a runtime.
        let asked = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let docker = Docker::connect_with_unix(host, 10, API_DEFAULT_VERSION);
            docker.is_ok_and(|docker| runtime.block_on(docker.negotiate_version()).is_ok())
        };
        std::thread::scope(|scope| scope.spawn(asked).join().unwrap())
    }

    /// Returns a new client.
    pub(crate) fn client(&self) -> Docker {
        Docker::connect_with_unix(&self.host, 120, API_DEFAULT_VERSION).unwrap()
    }

    /// Imports the base image, which has busybox and nothing else.
    fn import(&self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut archive = tar::Builder::new(Vec::new());
        archive.append_path_with_name("/bin/busybox", "bin/busybox").unwrap();
        let list = Command::new("/bin/busybox").arg("--list").output().unwrap().stdout;
        for name in String::from_utf8(list).unwrap().lines().filter(|name| *name != "busybox") {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            header.set_mode(0o777);
            archive.append_link(&mut header, format!("bin/{name}"), "busybox").unwrap();
        }
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        header.set_mode(0o1777);
        archive.append_data(&mut header, "tmp", std::io::empty()).unwrap();
        let archive = archive.into_inner().unwrap();
        let (repo, tag) = IMAGE.rsplit_once(':').unwrap();
        runtime.block_on(async {
            let docker = self.client().negotiate_version().await.unwrap();
            let options = CreateImageOptionsBuilder::default().from_src("-").repo(repo).tag(tag).build();
            let imported = docker.create_image(Some(options), Some(body_full(archive.into())), None);
            imported.try_collect::<Vec<_>>().await.unwrap();
        });
    }

    /// Returns the names of all containers and volumes, and the ids of all images, that processes of the
    /// store in `dir` made.
    pub(crate) async fn ours(&self, dir: &Path) -> (Vec<String>, Vec<String>) {
        let docker = self.client().negotiate_version().await.unwrap();
        let secret = fs::read(dir.join("secret")).unwrap().try_into().unwrap();
        let name = blake3::Hasher::new_keyed(&secret).update(b"hm-exec docker 1").finalize().to_hex();
        let label = format!("hm-exec.store={}", &name[..32]);
        let filters = std::collections::HashMap::from([("label", vec![label.as_str()])]);
        let list = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let containers = docker.list_containers(Some(list)).await.unwrap();
        let list = ListImagesOptionsBuilder::default().all(true).filters(&filters).build();
        let images = docker.list_images(Some(list)).await.unwrap();
        let list = ListVolumesOptionsBuilder::default().filters(&filters).build();
        let volumes = docker.list_volumes(Some(list)).await.unwrap().volumes.unwrap_or_default();
        let names = containers.into_iter().map(|container| container.names.unwrap().concat());
        (
            names.chain(volumes.into_iter().map(|volume| volume.name)).collect(),
            images.into_iter().map(|image| image.id).collect(),
        )
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(dir) = &self.dir {
            if let Some(started) = &mut self.started {
                end(started, dir.path());
            }
            // The daemon leaves its own network namespace mounted if it had containers without a network.
            let _ = unmount(dir.path().join("exec/netns/default"), UnmountFlags::DETACH);
        }
        drop(self.bridge.take());
    }
}

/// A bridge for the containers of one daemon, so that daemons of concurrent tests do not meet. Without rules
/// of a firewall, it leads to this machine only.
struct Bridge {
    name: String,
}

impl Bridge {
    fn make() -> Result<Self, String> {
        // The last daemon of this process may still be ending, with its bridge.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (process, next) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        // A network for each bridge, of those that are kept for tests (RFC 2544).
        let number = process.wrapping_mul(7).wrapping_add(next) % (1 << 9);
        let bridge = Self { name: format!("hmt{process}-{next}") };
        let address = format!("198.{}.{}.1/24", 18 + (number >> 8), number & 0xff);
        for args in [
            &["link", "add", &bridge.name, "type", "bridge"][..],
            &["addr", "add", &address, "dev", &bridge.name],
            &["link", "set", &bridge.name, "up"],
        ] {
            let done = Command::new("ip").args(args).output().map_err(|error| format!("ip: {error}"))?;
            if !done.status.success() {
                return Err(format!("ip {args:?}: {}", String::from_utf8_lossy(&done.stderr)));
            }
        }
        Ok(bridge)
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", &self.name]).output();
    }
}

/// Ends a daemon and its containers.
///
/// A daemon of version 20.10 can deadlock when one container starts while another ends (moby#46661). It
/// then ends neither itself nor its containers, so it is killed after a while, and says before what its
/// threads wait for.
fn end(daemon: &mut Child, dir: &Path) {
    const PATIENCE: Duration = Duration::from_secs(60);
    let pid = Pid::from_child(daemon);
    let _ = kill_process(pid, Signal::TERM);
    if ends_within(daemon, PATIENCE) {
        return;
    }
    let _ = kill_process(pid, Signal::USR1);
    ends_within(daemon, Duration::from_secs(2));
    let mut said = format!("dockerd did not end in {PATIENCE:?}, and is killed; its last lines:\n");
    let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    said.extend(lines[lines.len().saturating_sub(20)..].iter().map(|line| format!("  {line}\n")));
    for entry in fs::read_dir(dir.join("exec")).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("goroutine-stacks") {
            said += &fs::read_to_string(entry.path()).unwrap_or_default();
        }
    }
    let _ = std::io::Write::write_all(&mut std::io::stderr(), said.as_bytes());
    let _ = daemon.kill();
    let _ = daemon.wait();
    // What the daemon started names its directory: containerd, and the shims that hold containers.
    let _ = Command::new("pkill").args(["-KILL", "-f", &dir.display().to_string()]).status();
}

fn ends_within(child: &mut Child, patience: Duration) -> bool {
    let until = Instant::now() + patience;
    while child.try_wait().is_ok_and(|ended| ended.is_none()) {
        if Instant::now() > until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}
