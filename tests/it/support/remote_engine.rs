//! An engine to test against: `buildbox-casd` on a free port, or the one that `HM_REAPI_ENDPOINT` names.

use std::{
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use hm_exec::remote::{Cas, Endpoint, EndpointOptions};

use super::{backends::usable, images::has_busybox};

/// Returns the static `hm-step`, or `None` if a test of steps is skipped because `hm-step` or a shell for
/// steps is missing.
pub(crate) fn step_program() -> Option<PathBuf> {
    let program = std::env::var_os("HM_STEP").map(PathBuf::from).filter(|path| path.exists());
    let found = usable("hm-step", program.is_some(), "`just hm-step` builds it; HM_STEP names it");
    program.filter(|_| found && has_busybox())
}

/// An engine that runs until it is dropped.
pub(crate) struct TestEngine {
    casd: Option<(Child, tempfile::TempDir)>,
    url: String,
}

impl TestEngine {
    /// Starts or finds the engine. Returns `None` if the test is skipped because there is none.
    pub(crate) fn start() -> Option<Self> {
        if let Ok(url) = std::env::var("HM_REAPI_ENDPOINT") {
            return Some(Self { casd: None, url });
        }
        let dir = std::env::var_os("HM_TEST_BUILDBOX").map(PathBuf::from);
        let found = dir.as_ref().is_some_and(|dir| dir.join("buildbox-casd").exists());
        if !usable("buildbox-casd", found, "set HM_TEST_BUILDBOX to the directory that has it: see .ci/run") {
            return None;
        }
        let dir = dir?;
        // The port is free at the time of the check; another process may take it first.
        let started = (0..5).find_map(|_| Self::casd(&dir));
        Some(started.expect("buildbox-casd starts"))
    }

    fn casd(dir: &Path) -> Option<Self> {
        let state = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut child = Command::new(dir.join("buildbox-casd"))
            .arg(format!("--bind=127.0.0.1:{port}"))
            .arg(format!("--buildbox-run={}", dir.join("buildbox-run").display()))
            .args(["--jobs=2", "--log-level=warning"])
            .arg(state.path().join("cas"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(state.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if child.try_wait().unwrap().is_some() {
                return None;
            }
            assert!(Instant::now() < deadline, "buildbox-casd does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(Self { casd: Some((child, state)), url: format!("grpc://127.0.0.1:{port}") })
    }

    pub(crate) fn options(&self) -> EndpointOptions {
        let mut options = EndpointOptions::new(self.url.clone());
        options.instance = std::env::var("HM_REAPI_INSTANCE").unwrap_or_default();
        options
    }

    /// Returns the platform properties that a step must ask for so that the engine's workers let it create
    /// namespaces.
    pub(crate) fn platform(&self) -> Vec<(String, String)> {
        match &self.casd {
            Some(_) => [("unixUID", "1000"), ("unixGID", "1000")].map(|(a, b)| (a.into(), b.into())).to_vec(),
            None => Vec::new(),
        }
    }

    /// Returns the same as arguments of `hm`.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let options = self.options();
        let platform = self.platform().into_iter().map(|(name, value)| format!("--remote-platform={name}={value}"));
        platform
            .chain([format!("--remote={}", options.url), format!("--remote-instance={}", options.instance)])
            .collect()
    }

    /// Returns the directory of the engine's data, if it is known.
    pub(crate) fn dir(&self) -> Option<&Path> {
        self.casd.as_ref().map(|(_, dir)| dir.path())
    }

    pub(crate) fn cas(&self) -> Cas {
        Cas::new(Endpoint::new(self.options()).unwrap())
    }
}

impl Drop for TestEngine {
    fn drop(&mut self) {
        if let Some((child, _)) = &mut self.casd {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
