//! The directory of an action, and the result of running it.

use std::{
    fs,
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    os::unix::{
        fs::{PermissionsExt, lchown},
        process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::OnceLock,
};

use hm_exec::{
    step::{Exit, LAYER_CACHE_VARIABLE, Limits, Lower, StepInput, StepOutput, VERSION},
    store::ImageDigest,
};
use tempfile::TempDir;

use super::{
    backends::usable,
    images::{Image, gzip, has_busybox},
};

/// The user that runs steps in addition to root, if the tests run as root.
const ORDINARY: u32 = 1000;

/// The user that runs `hm-step`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    /// The user of the test.
    Tester,
    /// A user without privileges.
    Ordinary,
}

/// Returns the users that can run steps here. If a user cannot, the test prints a note.
pub(crate) fn everybody() -> Vec<Who> {
    static TRIALS: OnceLock<Vec<(Who, Result<(), String>)>> = OnceLock::new();
    if !has_busybox() {
        return Vec::new();
    }
    let is_root = rustix::process::geteuid().is_root();
    let trials = TRIALS.get_or_init(|| {
        let who = if is_root { vec![Who::Tester, Who::Ordinary] } else { vec![Who::Tester] };
        who.into_iter()
            .map(|who| {
                let ended = Action::new(who, "true").run();
                (who, if ended.code == Some(0) { Ok(()) } else { Err(ended.stderr()) })
            })
            .collect()
    });
    let usable = |(who, trial): &(Who, Result<(), String>)| {
        let (works, why) = (trial.is_ok(), trial.as_ref().err().map_or("", String::as_str));
        usable("hm-step", works, why).then_some(*who)
    };
    trials.iter().filter_map(usable).collect()
}

/// Returns the program: the static one if the environment names it, otherwise the one that `cargo test
/// --workspace` builds beside `hm`.
pub(crate) fn program() -> PathBuf {
    let named = std::env::var_os(hm_exec::step::STEP_VARIABLE).filter(|path| !path.is_empty());
    named.map_or_else(|| Path::new(env!("CARGO_BIN_EXE_hm")).with_file_name("hm-step"), PathBuf::from)
}

/// A directory with everything that a step needs.
pub(crate) struct Action {
    top: TempDir,
    who: Who,
    pub(crate) input: StepInput,
    /// The directory for unpacked layers that outlive the step.
    pub(crate) cache: Option<PathBuf>,
    cache_top: Option<TempDir>,
}

/// The end of a run of `hm-step`, with its output.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    stderr: Vec<u8>,
    pub(crate) output: Option<StepOutput>,
}

impl Action {
    /// Returns a command over a small image, with an empty workspace.
    pub(crate) fn new(who: Who, command: &str) -> Self {
        let top = TempDir::new().unwrap();
        let dir = top.path();
        fs::create_dir_all(dir.join("source/workspace")).unwrap();
        fs::create_dir(dir.join("layers")).unwrap();
        // A copy, because a worker owns its files, and its user may not be able to read this machine's.
        fs::copy(program(), dir.join("hm-step")).unwrap();
        let mut action = Self {
            who,
            input: StepInput {
                version: VERSION,
                command: command.to_owned(),
                env: [("PATH".to_owned(), "/tools:/bin".to_owned())].into(),
                workdir: "/workspace".into(),
                stack: Vec::new(),
                commit: true,
                keep: false,
                timeout_ms: None,
                grace_ms: 5_000,
                limits: Limits::default(),
            },
            cache: None,
            cache_top: None,
            top,
        };
        // One layer in each of the supported compressions.
        let [base, tools, change] = <[Vec<u8>; 3]>::try_from(Image::shell().layers).unwrap();
        for (tar, compressed) in
            [(&base, zstd::encode_all(&base[..], 1).unwrap()), (&tools, gzip(&tools)), (&change, change.clone())]
        {
            action.add_layer(&compressed, &ImageDigest::of(tar).to_string());
        }
        action.input.stack.push(Lower::Workspace { path: "source".into() });
        action
    }

    pub(crate) fn dir(&self) -> &Path {
        self.top.path()
    }

    /// Returns the source tree.
    pub(crate) fn workspace(&self) -> PathBuf {
        self.dir().join("source/workspace")
    }

    /// Adds a layer on top of all others.
    pub(crate) fn add_layer(&mut self, blob: &[u8], diff_id: &str) {
        let path = format!("layers/{}", self.input.stack.len());
        fs::write(self.dir().join(&path), blob).unwrap();
        self.input.stack.push(Lower::Layer { path, diff_id: diff_id.into() });
    }

    /// Returns the step's layer, with its name.
    pub(crate) fn layer(&self, ended: &Ended) -> (Vec<u8>, String) {
        let layer = ended.output.as_ref().and_then(|output| output.layer.as_ref()).expect("the step left no layer");
        (fs::read(self.dir().join("layer.tar.zst")).unwrap(), layer.diff_id.clone())
    }

    /// Uses a new cache of unpacked layers. Returns its directory.
    pub(crate) fn use_cache(&mut self) -> PathBuf {
        let top = self.cache_top.insert(TempDir::new().unwrap()).path();
        let cache = top.canonicalize().unwrap().join("cache");
        fs::create_dir(&cache).unwrap();
        if self.who == Who::Ordinary {
            give(top, ORDINARY);
        }
        self.cache = Some(cache.clone());
        cache
    }

    /// Returns a step on top of this step's layer.
    pub(crate) fn child(&self, ended: &Ended, command: &str) -> Self {
        let mut child = Self::new(self.who, command);
        let (blob, diff_id) = self.layer(ended);
        child.add_layer(&blob, &diff_id);
        child
    }

    /// Runs the step as a worker does.
    pub(crate) fn run(&self) -> Ended {
        self.run_with(&serde_json::to_vec(&self.input).unwrap())
    }

    /// Runs the step with the given `input.json`.
    pub(crate) fn run_with(&self, json: &[u8]) -> Ended {
        self.prepare(json);
        self.finish(start(self.command()))
    }

    /// Starts the step.
    pub(crate) fn spawn(&self) -> Child {
        self.prepare(&serde_json::to_vec(&self.input).unwrap());
        start(self.command())
    }

    /// Starts the step, and waits for the command's first line.
    pub(crate) fn start(&self) -> Started<'_> {
        self.start_by(self.command())
    }

    /// Starts the step from a shell's script.
    pub(crate) fn start_with(&self, script: &str) -> Started<'_> {
        self.start_by(self.command_of(&["/bin/sh", "-c", script]))
    }

    fn start_by(&self, mut command: Command) -> Started<'_> {
        self.prepare(&serde_json::to_vec(&self.input).unwrap());
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut first = String::new();
        stdout.read_line(&mut first).unwrap();
        assert_eq!(first, "ready\n");
        Started { action: self, child, stdout }
    }

    /// Runs the step through another program, which gets `arguments` and then the command.
    pub(crate) fn run_by(&self, program: &str, arguments: &[&str]) -> Ended {
        self.prepare(&serde_json::to_vec(&self.input).unwrap());
        let mut command = Command::new(program);
        command.args(arguments).args(["./hm-step", "input.json"]).env_clear().env("PATH", "/usr/bin:/bin");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.finish(command.spawn().unwrap())
    }

    fn prepare(&self, json: &[u8]) {
        fs::write(self.dir().join("input.json"), json).unwrap();
        if self.who == Who::Ordinary {
            give(self.dir(), ORDINARY);
        }
    }

    fn command(&self) -> Command {
        self.command_of(&["./hm-step", "input.json"])
    }

    fn command_of(&self, argv: &[&str]) -> Command {
        let mut command = Command::new(argv[0]);
        command.args(&argv[1..]).current_dir(self.dir()).env_clear();
        command.envs(self.cache.iter().map(|cache| (LAYER_CACHE_VARIABLE, cache)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if self.who == Who::Ordinary {
            command.uid(ORDINARY).gid(ORDINARY);
        }
        command
    }

    fn finish(&self, child: Child) -> Ended {
        let output = child.wait_with_output().unwrap();
        let result = fs::read(self.dir().join("result.json")).ok();
        Ended {
            code: output.status.code(),
            signal: output.status.signal(),
            stdout: output.stdout,
            stderr: output.stderr,
            output: result.map(|json| StepOutput::decode(&json).unwrap()),
        }
    }

    /// Returns the names of the entries in the action's directory.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir()).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// A step whose command is running.
pub(crate) struct Started<'a> {
    action: &'a Action,
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Started<'_> {
    /// Returns a path to the file that `hm-step` runs from, on its mount.
    pub(crate) fn exe(&self) -> PathBuf {
        format!("/proc/{}/exe", self.child.id()).into()
    }

    /// Sends a signal to `hm-step`.
    pub(crate) fn send(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Sends a signal to `hm-step`, and waits until it ends.
    pub(crate) fn signal(mut self, signal: rustix::process::Signal) -> Ended {
        self.send(signal);
        let mut stdout = Vec::new();
        self.stdout.read_to_end(&mut stdout).unwrap();
        Ended { stdout, ..self.action.finish(self.child) }
    }
}

impl Ended {
    pub(crate) fn stdout(&self) -> String {
        String::from_utf8(self.stdout.clone()).unwrap()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Returns how the step ended according to the result.
    #[track_caller]
    pub(crate) fn exit(&self) -> &Exit {
        match &self.output {
            Some(output) => &output.exit,
            None => panic!("there is no result: {self:?}"),
        }
    }

    /// Returns why the step could not be run according to the result, and whether to try again.
    #[track_caller]
    pub(crate) fn failure(&self) -> (&str, bool) {
        assert_eq!(self.code, Some(125), "{self:?}");
        match self.exit() {
            Exit::Failed { message, retry } => {
                assert!(self.stderr().contains(message), "{self:?}");
                (message, *retry)
            }
            other => panic!("it ended as {other:?}: {self:?}"),
        }
    }
}

/// Changes the owner of a tree to a user.
fn give(path: &Path, id: u32) {
    lchown(path, Some(id), Some(id)).unwrap();
    if path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path(), id);
        }
    }
}

/// Writes an executable file that only its owner may change.
pub(crate) fn write_script(path: &Path, text: &str) {
    fs::File::create(path).unwrap().write_all(text.as_bytes()).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Returns whether a process has `word` in its command line.
pub(crate) fn runs(word: &str) -> bool {
    let lines = fs::read_dir("/proc").unwrap().flatten().filter_map(|it| fs::read(it.path().join("cmdline")).ok());
    lines.into_iter().any(|line| line.windows(word.len()).any(|part| part == word.as_bytes()))
}

/// Starts a program that was just written. It is busy while another test, which forked meanwhile, has not
/// executed its own program.
fn start(mut command: Command) -> Child {
    loop {
        match command.spawn() {
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
            started => return started.unwrap(),
        }
    }
}
