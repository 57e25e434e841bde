//! Live output of steps on BuildGrid: each line once and in order, whatever the log service does.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
};

use serde_json::Value;

use super::{
    super::{
        cloud::{
            buildgrid::{BuildGrid, until},
            engine::step_program,
            log_service::{Liar, SAID},
        },
        images::fixture::Image,
    },
    hm::{Project, ir},
};

/// The lines of the output, each with its stream, as events report them.
type Lines = Arc<Mutex<Vec<(String, String)>>>;

/// A run whose step waits in the middle until the test lets it continue.
pub(crate) struct Waiting {
    hm: Child,
    lines: Lines,
    reader: JoinHandle<()>,
    gate: TcpListener,
}

impl Waiting {
    pub(crate) fn start(project: &Project, arguments: &[&str]) -> Self {
        let gate = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = gate.local_addr().unwrap().port();
        let command = format!(
            "b=/bin/busybox; $b seq 1 300; echo first >&2; $b nc 127.0.0.1 {port}; $b seq 301 20000; echo last >&2"
        );
        project.file(".hm/ci.json", &ir(&[("step", &command, None)]));
        let mut hm = project.hm(&["run", "--runner", "cloud", "--format", "json"]);
        let mut hm = hm.args(arguments).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let (lines, stdout) = (Lines::default(), BufReader::new(hm.stdout.take().unwrap()));
        let seen = Arc::clone(&lines);
        let reader = thread::spawn(move || {
            for line in stdout.lines() {
                let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
                if event["kind"] == "step_log" {
                    let text = |name: &str| event[name].as_str().unwrap().to_owned();
                    seen.lock().unwrap().push((text("stream"), text("line")));
                }
            }
        });
        Self { hm, lines, reader, gate }
    }

    /// Waits until the run has printed these lines.
    pub(crate) fn shows(&mut self, lines: &[&str]) {
        assert!(until(|| {
            assert_eq!(self.hm.try_wait().unwrap(), None, "the run waits for its step");
            let shown = self.lines.lock().unwrap();
            lines.iter().all(|line| shown.iter().any(|(_, shown)| shown == line))
        }));
    }

    /// Waits until the step has reached its middle. Returns the connection that lets it continue.
    pub(crate) fn middle(&mut self) -> TcpStream {
        self.gate.set_nonblocking(true).unwrap();
        let mut middle = None;
        assert!(until(|| {
            assert_eq!(self.hm.try_wait().unwrap(), None, "the run waits for its step");
            middle = self.gate.accept().ok();
            middle.is_some()
        }));
        middle.unwrap().0
    }

    /// Lets the step continue. Returns the lines of its stdout and of its stderr.
    pub(crate) fn go_on(mut self, mut middle: TcpStream) -> (Vec<String>, Vec<String>) {
        middle.write_all(b"go on\n").unwrap();
        drop(middle);
        assert!(self.hm.wait().unwrap().success());
        self.reader.join().unwrap();
        let lines = std::mem::take(&mut *self.lines.lock().unwrap());
        let of = |stream: &str| lines.iter().filter(|it| it.0 == stream).map(|it| it.1.clone()).collect::<Vec<_>>();
        // The messages about the image are not the step's output.
        (of("stdout"), of("stderr").into_iter().filter(|line| !line.starts_with("unpack")).collect())
    }
}

/// Returns the lines that the step prints on stdout.
pub(crate) fn printed() -> Vec<String> {
    let numbers = |from: u32, to: u32| (from..=to).map(|number| number.to_string());
    numbers(1, 300).chain(["go on".into()]).chain(numbers(301, 20_000)).collect()
}

#[test]
fn output_on_buildgrid_is_seen_while_the_step_runs_and_each_line_once_whatever_the_log_service_does() {
    if step_program().is_none() {
        return;
    }
    let Some(mut engine) = BuildGrid::start() else { return };
    let _worker = engine.worker("first");
    let project = Project::new();
    Image::shell().write_oci(&project.dir.with_file_name("image"), "it");
    let image = format!("host=oci:{}:it", project.dir.with_file_name("image").display());
    let (remote, logs) = (engine.url(), engine.logstream_url());
    let arguments =
        |logs: &str| ["--remote", &remote, "--remote-logs", logs, "--image", &image].map(ToOwned::to_owned).to_vec();
    let start = |logs: &str| {
        let arguments = arguments(logs);
        Waiting::start(&project, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };

    // The step cannot continue before its first lines were seen.
    let mut run = start(&logs);
    run.shows(&["300", "first"]);
    let middle = run.middle();
    assert_eq!(run.go_on(middle), (printed(), vec!["first".into(), "last".into()]));

    // A log service that sends wrong output is detected, and all of the step's own output follows.
    let liar = Liar::start();
    let mut run = start(&liar.url());
    let middle = run.middle();
    run.shows(&[SAID]);
    let (stdout, stderr) = run.go_on(middle);
    let (lies, truth) = stdout.split_at(stdout.len() - printed().len());
    assert!(lies.iter().all(|line| line == SAID) && truth == printed(), "{lies:?}");
    let told = "hm: the output shown so far was incomplete; the complete output follows:";
    assert!(stderr.iter().filter(|line| *line == told).count() == 2, "{stderr:?}");
    assert!(stderr.ends_with(&["first".into(), "last".into()]), "{stderr:?}");

    // A log service that never answers costs nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut run = start(&format!("grpc://{}", silent.local_addr().unwrap()));
    let middle = run.middle();
    assert_eq!(run.go_on(middle), (printed(), vec!["first".into(), "last".into()]));

    // A log service that dies in the middle of a step loses no line and repeats none.
    let mut run = start(&logs);
    run.shows(&["300", "first"]);
    let middle = run.middle();
    engine.kill_logstream();
    assert_eq!(run.go_on(middle), (printed(), vec!["first".into(), "last".into()]));
}
