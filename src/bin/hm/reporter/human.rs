//! `--format human`: plain lines, each prefixed with its step's key, for logs and pipes. With `--format
//! quiet`, only its last lines, of a build that has not passed.

use std::io::{self, Write};

use hm_exec::{BuildEvent, BuildStatus, StepStatus, event::LogLines};

use super::{
    BufferedWriter, Reporter,
    last_screen::{self, Canvas},
    plan_view::PlanView,
    steps::{Steps, accepted, ending, is_failure},
    style::Style,
    text,
};

pub(super) struct Human<W> {
    out: BufferedWriter<W>,
    canvas: Canvas,
    steps: Steps,
    line: String,
    has_ended: bool,
    /// Whether to print the last screen alone, and that only if the build has not passed.
    is_quiet: bool,
}

impl<W: Write> Human<W> {
    pub(super) fn new(sink: W, canvas: Canvas, plan: PlanView) -> Self {
        let (out, steps) = (BufferedWriter::new(sink), Steps::new(plan));
        Self { out, canvas, steps, line: String::new(), has_ended: false, is_quiet: false }
    }

    /// Prints nothing but how a build ended that did not pass.
    pub(super) fn quiet(self) -> Self {
        Self { is_quiet: true, ..self }
    }

    fn style(&self) -> Style {
        self.canvas.style
    }

    /// Prints the last screen.
    fn end(&mut self, status: Option<BuildStatus>, duration_ms: u64) {
        self.has_ended = true;
        if self.is_quiet && status == Some(BuildStatus::Passed) {
            return;
        }
        for line in last_screen::lines(&self.steps, status, duration_ms, self.canvas) {
            self.say(&line);
        }
    }

    fn say(&mut self, text: &str) {
        let text = text::symbols(text);
        self.out.push(|buffer| {
            buffer.extend_from_slice(text.as_bytes());
            buffer.push(b'\n');
        });
    }
}

impl<W: Write> Reporter for Human<W> {
    fn event(&mut self, event: &BuildEvent) {
        let style = self.style();
        self.steps.learn(event, style);
        if self.is_quiet && !matches!(event, BuildEvent::BuildEnd { .. }) {
            return;
        }
        match event {
            BuildEvent::StepLog { step_id, line, .. } => {
                self.line.clear();
                self.line.push_str(&self.steps.name(*step_id));
                self.line.push_str(" | ");
                text::push_clean(&mut self.line, line, style.colors);
                self.line.push('\n');
                self.out.push(|buffer| buffer.extend_from_slice(self.line.as_bytes()));
            }
            BuildEvent::BuildAccepted { build, watch_url: Some(url), .. } => self.say(&accepted(build, url)),
            BuildEvent::StepStart { step_id, runner, image, attempt, .. } => {
                let title = self.steps.title(*step_id);
                let image = image.as_ref().map(|image| format!(", image {}", text::clean(image))).unwrap_or_default();
                let attempt = if *attempt > 1 { format!(", attempt {attempt}") } else { String::new() };
                self.say(&format!("=> {title} started ({runner}{image}{attempt})"));
            }
            BuildEvent::StepCacheMiss { step_id, message: Some(message), .. } => {
                let (title, message) = (self.steps.title(*step_id), text::clean(message));
                self.say(&format!("=> {title} {} {message}", style.odd("cache miss:")));
            }
            BuildEvent::StepRetry { step_id, attempt, backoff_ms, message, .. } => {
                let title = self.steps.title(*step_id);
                let mut message = text::clean(message);
                if *backoff_ms > 0 {
                    let wait = text::duration(std::time::Duration::from_millis(*backoff_ms));
                    message.push_str(&format!("; retrying in {wait}"));
                }
                self.say(&format!("=> {title} {} {message}", style.odd(&format!("attempt {attempt} failed:"))));
            }
            BuildEvent::StepEnd { step_id, status, attempt, exit_code, duration_ms, message, .. } => {
                let title = self.steps.title(*step_id);
                let ending = ending(*status, *attempt, *exit_code, *duration_ms, message.as_deref());
                let ending = match status {
                    StepStatus::Flaky => style.odd(&ending),
                    status if status.is_success() => style.good(&ending),
                    status if is_failure(*status) => style.bad(&ending),
                    _ => style.odd(&ending),
                };
                self.say(&format!("=> {title} {ending}"));
            }
            BuildEvent::BuildEnd { status, duration_ms, .. } => {
                self.end(Some(*status), *duration_ms);
            }
            _ => {}
        }
    }

    fn lines(&mut self, lines: &LogLines<'_>) {
        self.steps.learn_lines(lines);
        if self.is_quiet {
            return;
        }
        let prefix = format!("{} | ", self.steps.name(lines.step_id));
        let is_plain = text::is_plain(&lines.text);
        for line in lines.lines() {
            self.out.push(|buffer| {
                buffer.extend_from_slice(prefix.as_bytes());
                if is_plain {
                    buffer.extend_from_slice(line.as_bytes());
                } else {
                    self.line.clear();
                    text::push_clean(&mut self.line, line, self.canvas.style.colors);
                    buffer.extend_from_slice(self.line.as_bytes());
                }
                buffer.push(b'\n');
            });
        }
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
