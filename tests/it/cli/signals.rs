//! Ctrl-C, SIGTERM, SIGHUP and SIGKILL of `hm`: no process of a step outlives it.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{
    backends::usable,
    project::{Ended, PATIENCE, Project, eventually, ir},
};

/// A step that ignores polite signals and has a background child, in its own session if there is `setsid`.
const STUBBORN: &str = "trap '' TERM INT HUP; (setsid sleep 4242 || sleep 4242) & echo up; while :; do sleep 1; done";
const POLITE: &str = "echo up; sleep 4242";

/// A running `hm` whose steps carry a mark in their environment.
struct Running {
    child: Child,
    mark: String,
}

impl Running {
    /// Starts `hm run` and waits until its step is up.
    fn start(project: &Project, runner: &str) -> Option<Self> {
        let mark = format!("HM_TEST_MARK={}", uuid::Uuid::new_v4());
        let mut hm = project.hm(&["run", "--runner", runner, "--format", "human", "-e", &mark]);
        let log = fs::File::create(project.dir.with_file_name("log")).unwrap();
        let child = hm.stdout(log).stderr(Stdio::piped()).spawn().unwrap();
        let mut running = Self { child, mark };
        let mut ended = false;
        eventually("the step to be up", || {
            ended = running.child.try_wait().unwrap().is_some();
            ended || running.log(project).contains("| up\n")
        });
        if ended {
            let ended = Ended::from(running.child.wait_with_output().unwrap());
            let usable = usable(&format!("runner {runner}"), ended.code != Some(3), &ended.stderr);
            assert!(!usable, "hm ended early: {ended:?}");
            return None;
        }
        assert!(!running.processes().is_empty(), "the mark is seen");
        Some(running)
    }

    fn log(&self, project: &Project) -> String {
        fs::read_to_string(project.dir.with_file_name("log")).unwrap()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Returns the processes that have the mark in their environment.
    fn processes(&self) -> Vec<String> {
        let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
        let marked = |pid: &String| {
            let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environ.split(|byte| *byte == 0).any(|variable| variable == self.mark.as_bytes())
        };
        pids.filter(marked).collect()
    }

    #[track_caller]
    fn expect_no_process(&self) {
        eventually("the step's processes to be gone", || self.processes().is_empty());
    }
}

#[track_caller]
fn for_each_runner(command: &str, test: impl Fn(&Project, Running)) {
    for runner in ["process", "sandbox"] {
        let project = Project::with_steps(&[("step", command, None), ("never", "echo ran", Some(0))]);
        if let Some(running) = Running::start(&project, runner) {
            test(&project, running);
            assert!(!fs::read_to_string(project.dir.with_file_name("log")).unwrap().contains("never | ran"));
        }
    }
}

#[test]
fn ctrl_c_cancels_the_build_and_exits_with_130() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        for_each_runner(POLITE, |project, mut running| {
            running.signal(signal);
            assert_eq!(running.child.wait().unwrap().code(), Some(130));
            running.expect_no_process();
            let log = running.log(project);
            assert!(log.contains("=> step cancelled after"), "{log}");
            assert!(log.contains("\n── cancelled: 2 cancelled · "), "{log}");
        });
    }
}

#[test]
fn a_second_ctrl_c_kills_steps_that_ignore_the_first() {
    for_each_runner(STUBBORN, |_, mut running| {
        running.signal(Signal::INT);
        // The message shows that hm has handled the first signal. Its stderr is a pipe, read byte by byte.
        let mut said = String::new();
        let mut stderr = running.child.stderr.take().unwrap();
        while !said.ends_with('\n') {
            let mut byte = [0];
            std::io::Read::read_exact(&mut stderr, &mut byte).unwrap();
            said.push(char::from(byte[0]));
        }
        assert!(said.starts_with("cancelling"), "{said}");
        let asked = Instant::now();
        running.signal(Signal::INT);
        assert_eq!(running.child.wait().unwrap().code(), Some(130));
        // Well below the 5 seconds that a step has between TERM and KILL.
        assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
        running.expect_no_process();
    });
}

#[test]
fn a_killed_hm_leaves_no_process_of_a_step() {
    for_each_runner(STUBBORN, |project, mut running| {
        running.signal(Signal::KILL);
        assert_eq!(running.child.wait().unwrap().signal(), Some(9));
        running.expect_no_process();
        // The store still works.
        project.file(".hm/after.json", &ir(&[("after", "true", None)]));
        project.run(&["after"]).expect(0);
    });
}

#[test]
fn the_timeout_of_a_step_ends_its_whole_process_tree() {
    for runner in ["process", "sandbox"] {
        let project = Project::with_steps(&[("step", STUBBORN, None)]);
        let mark = format!("HM_TEST_MARK={}", uuid::Uuid::new_v4());
        let mut hm: Command = project.hm(&["run", "--runner", runner, "-e", &mark, "--timeout", "1s"]);
        let asked = Instant::now();
        let ended = Ended::of(&mut hm);
        if !usable(&format!("runner {runner}"), ended.code != Some(3), &ended.stderr) {
            continue;
        }
        ended.expect(124);
        assert!(asked.elapsed() < PATIENCE);
        let child = Command::new("true").spawn().unwrap();
        let mut gone = Running { child, mark };
        gone.child.wait().unwrap();
        gone.expect_no_process();
    }
}
