//! A registry on this machine: Debian's `docker-registry` on a free port, filled by `skopeo`.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::{backends::usable, images::Image};

/// `ann` and `sesame`, in the format of `htpasswd -B`.
const USERS: &str = "ann:$2b$05$abcdefghijklmnopqrstuuKcS.CYWVYVaLiiCKrrc0A5s3mGesJ9O\n";

/// A registry that runs until this is dropped.
pub(crate) struct Registry {
    child: Child,
    dir: tempfile::TempDir,
    pub(crate) host: String,
}

impl Registry {
    pub(crate) fn start(is_private: bool) -> Option<Self> {
        for program in ["docker-registry", "skopeo"] {
            let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
            if !usable(program, found.is_ok(), "install the package of that name") {
                return None;
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let mut registry = None;
        // The port is free when it is chosen, but another process may take it first.
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let (data, users) = (dir.path().join("data"), dir.path().join("users"));
            fs::write(&users, USERS).unwrap();
            let auth = match is_private {
                true => format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", users.display()),
                false => String::new(),
            };
            let config = format!(
                "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n{auth}",
                data.display()
            );
            let path = dir.path().join("config.yml");
            fs::write(&path, config).unwrap();
            let child = Command::new("docker-registry")
                .args(["serve", path.to_str().unwrap()])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            registry = Self::wait(child, port);
            if registry.is_some() {
                break;
            }
        }
        let (child, host) = registry.expect("docker-registry starts");
        Some(Self { child, dir, host })
    }

    fn wait(mut child: Child, port: u16) -> Option<(Child, String)> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            if child.try_wait().unwrap().is_some() {
                return None;
            }
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Some((child, format!("127.0.0.1:{port}")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = child.kill();
        let _ = child.wait();
        None
    }

    /// Pushes an image; `auth` is `USER:PASSWORD`.
    pub(crate) fn push(&self, image: &Image, name: &str, auth: Option<&str>) {
        let layout = self.dir.path().join("layout");
        let _ = fs::remove_dir_all(&layout);
        image.write_oci(&layout, "it");
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["--insecure-policy", "copy", "-q", "--dest-tls-verify=false"]);
        if let Some(auth) = auth {
            skopeo.args(["--dest-creds", auth]);
        }
        let pushed = skopeo
            .arg(format!("oci:{}:it", layout.display()))
            .arg(format!("docker://{}/{name}", self.host))
            .env("HOME", self.dir.path())
            .env("TMPDIR", self.dir.path())
            .output()
            .unwrap();
        assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
    }

    /// Stops the registry; further requests get no answer.
    pub(crate) fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
    }
}
