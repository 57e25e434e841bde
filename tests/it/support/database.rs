//! PostgreSQL clusters with the tables of BuildGrid. They are copies of one that is made once in a build
//! directory: to make the files of a cluster and its tables takes longer than most tests that need them.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

use rustix::process::Signal;

use super::{
    buildgrid::{Group, free_port, until},
    users::is_root,
};

/// A running cluster, which ends on drop.
pub(crate) struct Database {
    group: Group,
    port: u16,
}

impl Database {
    /// Starts a new cluster below `dir`.
    pub(crate) fn start(programs: &Path, bgd: &Path, dir: &Path) -> Self {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        copy(&template(programs, bgd), &dir.join("postgres"));
        Self::serve(programs, dir)
    }

    /// Starts the cluster whose files are below `dir`, and waits until it answers.
    fn serve(programs: &Path, dir: &Path) -> Self {
        let (data, log) = (dir.join("postgres"), dir.join("postgres.log"));
        let port = free_port();
        let mut server = command(programs, "postgres");
        server.arg("-D").arg(&data).arg("-p").arg(port.to_string()).arg("-k").arg(&data);
        for setting in ["listen_addresses=127.0.0.1", "fsync=off", "synchronous_commit=off", "full_page_writes=off"] {
            server.args(["-c", setting]);
        }
        let mut group = Group::start(&mut server, &log);
        let answers = until(|| {
            assert!(!group.has_ended(), "{}", fs::read_to_string(&log).unwrap_or_default());
            let asked =
                command(programs, "pg_isready").args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()]).status();
            asked.is_ok_and(|asked| asked.success())
        });
        assert!(answers, "PostgreSQL does not answer");
        Self { group, port }
    }

    /// Returns the connection string.
    pub(crate) fn url(&self) -> String {
        format!("postgresql+psycopg2://bgd@127.0.0.1:{}/bgd", self.port)
    }

    /// Ends the cluster so that its files are complete.
    fn stop(mut self) {
        self.group.signal(Signal::INT);
        assert_eq!(self.group.wait(), Some(0), "PostgreSQL does not stop");
    }
}

/// Returns the directory of PostgreSQL's programs.
pub(crate) fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    let mut found: Vec<PathBuf> =
        versions.map(|version| version.path().join("bin")).filter(|bin| bin.join("initdb").exists()).collect();
    found.sort();
    found.pop()
}

/// Returns one of PostgreSQL's programs, as a user that it accepts.
fn command(programs: &Path, program: &str) -> Command {
    let program = programs.join(program);
    let mut command = if is_root() {
        // PostgreSQL refuses to run as root.
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.current_dir("/");
    command
}

/// Returns the files of a cluster that has the tables of this BuildGrid.
fn template(programs: &Path, bgd: &Path) -> PathBuf {
    static MADE: Mutex<()> = Mutex::new(());
    let _one_at_a_time = MADE.lock();
    let mut made_for = blake3::Hasher::new();
    // Another version of either program has another file.
    for program in [programs.join("initdb"), bgd.to_owned()] {
        let metadata = fs::metadata(&program).unwrap();
        made_for.update(program.as_os_str().as_encoded_bytes());
        made_for.update(format!(" {} {}\n", metadata.mtime(), metadata.mtime_nsec()).as_bytes());
    }
    let builds = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let template = builds.join(format!("buildgrid-{}", &made_for.finalize().to_hex()[..16]));
    if !template.exists() {
        let dir = tempfile::Builder::new().prefix("hm-buildgrid-").tempdir().unwrap();
        make(programs, bgd, dir.path());
        let saved = tempfile::tempdir_in(builds).unwrap();
        copy(&dir.path().join("postgres"), &saved.path().join("postgres"));
        // Another process may have been faster.
        let renamed = fs::rename(saved.path().join("postgres"), &template);
        assert!(renamed.is_ok() || template.exists(), "{renamed:?}");
    }
    template
}

/// Makes the files of a cluster below `dir`.
fn make(programs: &Path, bgd: &Path, dir: &Path) {
    let data = dir.join("postgres");
    fs::create_dir(&data).unwrap();
    if is_root() {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        expect(Command::new("chown").arg("postgres:postgres").arg(&data));
    }
    let options = ["-U", "bgd", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8", "--wal-segsize=1", "-D"];
    expect(command(programs, "initdb").args(options).arg(&data));
    let database = Database::serve(programs, dir);
    let port = database.port.to_string();
    expect(command(programs, "createdb").args(["-h", "127.0.0.1", "-p", &port, "-U", "bgd", "bgd"]));
    expect(Command::new(bgd).args(["migrate", "apply", &database.url()]));
    database.stop();
}

/// Copies a directory with owners and permissions.
fn copy(from: &Path, to: &Path) {
    expect(Command::new("cp").args(["-a", "--"]).arg(from).arg(to));
}

#[track_caller]
fn expect(command: &mut Command) {
    let ended = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(ended.status.success(), "{command:?}: {}", String::from_utf8_lossy(&ended.stderr));
}
