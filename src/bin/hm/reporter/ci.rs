//! `--format github` and `gitlab`: the output of each step as one foldable group, for logs of CI services.
//!
//! A group is printed when its step has ended, so that groups of steps that run side by side do not mix.
//! Until then, its lines are in memory, or in a temporary file if they are many. On GitHub, failures are
//! annotations, too, and a table of the steps is appended to the job's summary.

use std::{
    borrow::Cow,
    collections::HashMap,
    env,
    fs::OpenOptions,
    io::{self, Read, Seek, Write},
};

use chrono::Utc;
use hm_exec::{BuildEvent, BuildStatus, StepStatus, event::LogLines};
use tempfile::SpooledTempFile;
use uuid::Uuid;

use super::{
    BufferedWriter, Reporter,
    last_screen::{self, Canvas},
    plan_view::PlanView,
    steps::{Steps, accepted, ending, is_failure},
    style::Style,
    text,
};

/// The number of bytes of a step's output that are kept in memory.
const MEMORY_BYTES: usize = 256 << 10;

/// The number of bytes that are copied at a time.
const COPY_BYTES: usize = 64 << 10;

/// The maximum number of rows of the table. The service limits the size of a summary.
const MAX_ROWS: usize = 500;

/// The beginning of an old command of GitHub.
const OLD_COMMAND: &str = "##[";

/// A CI service whose logs have groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Service {
    GitHub,
    GitLab,
}

pub(super) struct Ci<W> {
    service: Service,
    out: BufferedWriter<W>,
    canvas: Canvas,
    steps: Steps,
    /// The output of the steps that run, by step.
    open: HashMap<Uuid, Group>,
    line: String,
    has_ended: bool,
}

/// The output of a step that runs.
struct Group {
    lines: SpooledTempFile,
    started_at: i64,
    /// Why the output is incomplete.
    error: Option<io::Error>,
}

impl Group {
    fn new() -> Self {
        Self { lines: SpooledTempFile::new(MEMORY_BYTES), started_at: Utc::now().timestamp(), error: None }
    }

    fn push(&mut self, line: &str) {
        if self.error.is_none()
            && let Err(error) = self.lines.write_all(line.as_bytes())
        {
            self.error = Some(error);
        }
    }
}

impl<W: Write> Ci<W> {
    pub(super) fn new(service: Service, sink: W, canvas: Canvas, plan: PlanView) -> Self {
        let (out, steps) = (BufferedWriter::new(sink), Steps::new(plan));
        Self { service, out, canvas, steps, open: HashMap::new(), line: String::new(), has_ended: false }
    }

    fn say(&mut self, text: &str) {
        let text = inert(self.service, text);
        self.out.push(|buffer| {
            buffer.extend_from_slice(text.as_bytes());
            buffer.push(b'\n');
        });
    }

    /// Adds a line to the output of a step.
    fn keep(&mut self, step_id: Uuid, line: &str) {
        self.line.clear();
        text::push_clean(&mut self.line, line, self.canvas.style.colors);
        if let Cow::Owned(inert) = inert(self.service, &self.line) {
            self.line = inert;
        }
        self.line.push('\n');
        self.open.entry(step_id).or_insert_with(Group::new).push(&self.line);
    }

    /// Prints the group of a step that has ended.
    fn print_group(&mut self, step_id: Uuid, is_failed: bool, head: &str) {
        let Some(mut group) = self.open.remove(&step_id) else { return self.say(head) };
        match self.service {
            Service::GitHub => {
                self.say(&format!("::group::{}", data(&text::clean(head))));
                // What the step prints is not for the service.
                let token = Uuid::new_v4();
                self.say(&format!("::stop-commands::{token}"));
                self.copy(&mut group);
                self.say(&format!("::{token}::"));
                self.say("::endgroup::");
            }
            Service::GitLab => {
                let name = format!("hm_{}", step_id.simple());
                let folded = if is_failed { "" } else { "[collapsed=true]" };
                let started_at = group.started_at;
                self.say(&format!("\x1b[0Ksection_start:{started_at}:{name}{folded}\r\x1b[0K{head}"));
                self.copy(&mut group);
                self.say(&format!("\x1b[0Ksection_end:{}:{name}\r\x1b[0K", Utc::now().timestamp()));
            }
        }
    }

    /// Prints the lines of a group.
    fn copy(&mut self, group: &mut Group) {
        let mut buffer = vec![0; COPY_BYTES];
        let mut copied = group.lines.rewind();
        while copied.is_ok() {
            match group.lines.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => self.out.push(|out| out.extend_from_slice(&buffer[..read])),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => copied = Err(error),
            }
        }
        if let Some(error) = group.error.take().or(copied.err()) {
            self.say(&format!("warning: the output is incomplete, because it could not be kept: {error}"));
        }
    }

    /// Prints what is left of a build.
    fn end(&mut self, status: Option<BuildStatus>, duration_ms: u64) {
        self.has_ended = true;
        let mut open: Vec<Uuid> = self.open.keys().copied().collect();
        open.sort_by_key(|step_id| self.steps.index(*step_id));
        for step_id in open {
            let title = self.steps.title(step_id);
            self.print_group(step_id, true, &format!("- {title} did not end"));
        }
        let lines = last_screen::lines(&self.steps, status, duration_ms, self.canvas);
        if self.service == Service::GitHub {
            self.annotate();
            self.append_summary(status, &lines);
        }
        // Indented lines of a step would be commands of the service, too.
        let token = (self.service == Service::GitHub).then(Uuid::new_v4);
        if let Some(token) = token {
            self.say(&format!("::stop-commands::{token}"));
        }
        for line in lines {
            self.say(&line);
        }
        if let Some(token) = token {
            self.say(&format!("::{token}::"));
        }
    }

    /// Prints an annotation for each failure.
    fn annotate(&mut self) {
        let plain = Canvas { style: Style::PLAIN, columns: None };
        let annotations: Vec<String> = self
            .steps
            .failures
            .iter()
            .map(|failure| {
                let block = last_screen::failure(&self.steps, failure, 1, plain);
                let how = ending(failure.status, failure.attempt, failure.exit_code, failure.duration_ms, None);
                let title = property(&format!("{} {how}", text::clean(&failure.title)));
                // Without the heading, which says the same as the title.
                let lines: Vec<&str> = block.iter().skip(1).map(|line| line.trim()).collect();
                format!("::error title={title}::{}", data(&lines.join("\n")))
            })
            .collect();
        for annotation in annotations {
            self.say(&annotation);
        }
    }

    /// Appends a table of the steps to the job's summary.
    fn append_summary(&self, status: Option<BuildStatus>, last_screen: &[String]) {
        let Some(path) = env::var_os("GITHUB_STEP_SUMMARY").filter(|path| !path.is_empty()) else { return };
        let summary = self.summary(status, last_screen);
        let file = OpenOptions::new().append(true).create(true).open(&path);
        if let Err(error) = file.and_then(|mut file| file.write_all(summary.as_bytes())) {
            super::to_stderr(&format!("warning: failed to write the job's summary: {error}"));
        }
    }

    fn summary(&self, status: Option<BuildStatus>, last_screen: &[String]) -> String {
        let verdict = last_screen.last().map(|line| text::clean(line)).unwrap_or_default();
        let mark = if status == Some(BuildStatus::Passed) { "✅" } else { "❌" };
        let verdict = html(verdict.trim_start_matches("── "));
        let mut summary = format!("### {mark} {verdict}\n\n| | step | result | time |\n|---|---|---|---:|\n");
        for step in self.steps.all().take(MAX_ROWS) {
            let mark = match step.status {
                Some(status) if status.is_success() => "✅",
                Some(status) if is_failure(status) => "❌",
                Some(StepStatus::FailedAllowed) => "⚠️",
                _ => "➖",
            };
            let result = step.status.map_or_else(|| "did not end".into(), result);
            let took = text::duration(std::time::Duration::from_millis(step.took_ms));
            let title = html(&text::clean(step.title)).replace('|', "\\|");
            summary.push_str(&format!("| {mark} | {title} | {result} | {took} |\n"));
        }
        if self.steps.len() > MAX_ROWS {
            summary.push_str(&format!("\n… and {}\n", text::count(self.steps.len() - MAX_ROWS, "more step")));
        }
        let plain = Canvas { style: Style::PLAIN, columns: None };
        for failure in &self.steps.failures {
            let block = last_screen::failure(&self.steps, failure, self.steps.failures.len(), plain);
            summary.push_str(&format!("\n<pre>{}</pre>\n", html(&block.join("\n"))));
        }
        // The results of tests with the failed ones, and where outputs are.
        let reports: Vec<_> = last_screen::reports(&self.steps).map(|line| html(&text::clean(&line))).collect();
        if !reports.is_empty() {
            summary.push_str(&format!("\n<pre>{}</pre>\n", reports.join("\n")));
        }
        summary.push('\n');
        summary
    }
}

impl<W: Write> Reporter for Ci<W> {
    fn event(&mut self, event: &BuildEvent) {
        let style = self.canvas.style;
        self.steps.learn(event, style);
        match event {
            BuildEvent::StepLog { step_id, line, .. } => self.keep(*step_id, line),
            BuildEvent::BuildAccepted { build, watch_url: Some(url), .. } => self.say(&accepted(build, url)),
            BuildEvent::StepStart { step_id, runner, attempt: 1, .. } => {
                let title = self.steps.title(*step_id);
                self.say(&format!("=> {title} started ({runner})"));
            }
            BuildEvent::StepRetry { step_id, attempt, message, .. } => {
                self.keep(*step_id, &format!("=> attempt {attempt} failed: {}", text::clean(message)));
            }
            BuildEvent::StepEnd { step_id, status, attempt, exit_code, duration_ms, message, .. } => {
                let ending = ending(*status, *attempt, *exit_code, *duration_ms, message.as_deref());
                let title = self.steps.title(*step_id);
                let head = match status {
                    StepStatus::Flaky | StepStatus::FailedAllowed => format!("{} {title} {ending}", style.odd("!")),
                    status if status.is_success() => format!("{} {title} {ending}", style.good("✓")),
                    status if is_failure(*status) => format!("{} {title} {ending}", style.bad("✗")),
                    _ => format!("{} {title} {ending}", style.odd("-")),
                };
                self.print_group(*step_id, is_failure(*status), &head);
            }
            BuildEvent::BuildEnd { status, duration_ms, .. } => self.end(Some(*status), *duration_ms),
            _ => {}
        }
    }

    fn lines(&mut self, lines: &LogLines<'_>) {
        self.steps.learn_lines(lines);
        lines.lines().for_each(|line| self.keep(lines.step_id, line));
    }

    fn notice(&mut self, text: &str) {
        self.out.flush();
        super::to_stderr(text);
    }

    fn is_dirty(&self) -> bool {
        self.out.is_dirty()
    }

    fn flush(&mut self) {
        self.out.flush();
    }

    fn killed(&mut self) {
        if !self.has_ended {
            self.end(None, self.steps.age_ms());
        }
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        self.out.finish()
    }
}

/// Describes a result in a table.
fn result(status: StepStatus) -> String {
    match status {
        StepStatus::Passed => "passed",
        StepStatus::Flaky => "flaky",
        StepStatus::CacheHit => "cached",
        StepStatus::Failed => "**failed**",
        StepStatus::FailedAllowed => "failed (allowed)",
        StepStatus::Skipped => "skipped",
        StepStatus::Canceled => "cancelled",
        StepStatus::TimedOut => "**timed out**",
        StepStatus::OutOfMemory => "**out of memory**",
        _ => "**could not run**",
    }
    .to_owned()
}

/// Returns text without the old commands of GitHub, `##[NAME]`, which count anywhere in a line.
fn inert(service: Service, text: &str) -> Cow<'_, str> {
    match service {
        Service::GitHub if text.contains(OLD_COMMAND) => text.replace(OLD_COMMAND, "## [").into(),
        _ => text.into(),
    }
}

/// Escapes the message of a workflow command.
fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// Escapes a property of a workflow command.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

/// Escapes text in Markdown or HTML.
fn html(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('`', "&#96;")
        .replace('[', "&#91;")
        .replace('\\', "&#92;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_and_tables_are_escaped() {
        assert_eq!(data("50%\r\n::error::x"), "50%25%0D%0A::error::x");
        assert_eq!(property("a: b, c%"), "a%3A b%2C c%25");
        assert_eq!(html("<script>&`"), "&lt;script&gt;&amp;&#96;");
        assert_eq!(html(r"[l](x)\|"), "&#91;l](x)&#92;|");
        assert_eq!(inert(Service::GitHub, "a ##[stop-commands]x"), "a ## [stop-commands]x");
        assert_eq!(inert(Service::GitLab, "a ##[b]"), "a ##[b]");
    }
}
