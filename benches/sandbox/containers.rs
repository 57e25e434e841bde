//! A step by `docker run` and `docker commit`.

use std::{
    cell::Cell,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::docker_daemon::Daemon;

pub(crate) struct Containers {
    daemon: Arc<Daemon>,
    /// The prefix of the names of the image, the containers and their commits, which a number follows.
    name: String,
    steps: Cell<usize>,
}

impl Containers {
    /// Imports the root filesystem as an image into a daemon. Returns `None` if there is no daemon.
    pub(crate) fn new(rootfs: &Path) -> Option<Self> {
        let daemon = Daemon::get()?;
        let made = Self { daemon, name: format!("hm-exec-bench-{}", std::process::id()), steps: Cell::new(0) };
        let mut tar = Command::new("tar").arg("-cC").arg(rootfs).arg(".").stdout(Stdio::piped()).spawn().unwrap();
        made.docker(Command::new("docker").args(["import", "-", &made.name]).stdin(tar.stdout.take().unwrap()));
        assert!(tar.wait().unwrap().success());
        Some(made)
    }

    /// Returns how long running and committing a step takes, without its removal.
    pub(crate) fn step(&self, cmd: &str) -> Duration {
        let step = self.steps.replace(self.steps.get() + 1);
        let name = format!("{}-{step}", self.name);
        let started = Instant::now();
        let run = ["run", "--network", "host", "--name", &name, "-w", "/workspace", &self.name, "/bin/sh", "-c", cmd];
        self.docker(Command::new("docker").args(run).stdin(Stdio::null()));
        self.docker(Command::new("docker").args(["commit", &name, &name]).stdin(Stdio::null()));
        let took = started.elapsed();
        self.docker(Command::new("docker").args(["rm", "--force", "--volumes", &name]));
        self.docker(Command::new("docker").args(["rmi", &name]));
        took
    }

    fn docker(&self, docker: &mut Command) {
        let output = docker.env("DOCKER_HOST", &self.daemon.host).output().unwrap();
        assert!(output.status.success(), "{docker:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Containers {
    fn drop(&mut self) {
        // The daemon may not have been started for the bench.
        let mut docker = Command::new("docker");
        let _ = docker.args(["rmi", "--force", &self.name]).env("DOCKER_HOST", &self.daemon.host).output();
    }
}
