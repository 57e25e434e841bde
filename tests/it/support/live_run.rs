//! A run whose live output is read while its step waits.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
};

use serde_json::Value;

use super::{
    buildgrid::until,
    project::{Project, ir},
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
