//! `--format progress`: running steps with their elapsed time at the bottom, finished steps above. Draws on
//! stderr.

use std::{
    collections::{HashMap, VecDeque},
    io::{self, Write},
    time::{Duration, Instant},
};

use hm_exec::{BuildEvent, StepStatus, event::LogLines};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use uuid::Uuid;

use super::{
    BufferedWriter, Reporter, StdWriter,
    style::Style,
    summary::{Steps, accepted, ending, is_failure},
    text,
};

/// The maximum number of lines of a failed step's output that are shown.
const TAIL_LINES: usize = 20;
/// The maximum number of bytes that are kept of such a line.
const TAIL_LINE_BYTES: usize = 2000;
/// The maximum number of running steps that are shown at once; the others are counted.
const MAX_BARS: usize = 16;

pub(super) struct Progress {
    bars: MultiProgress,
    total: ProgressBar,
    bar_style: ProgressStyle,
    out: BufferedWriter<Above>,
    style: Style,
    show_logs: bool,
    steps: Steps,
    running: HashMap<Uuid, Running>,
    /// Running steps in the order in which they started; some may have ended since.
    unshown: VecDeque<Uuid>,
    shown: usize,
    started: Instant,
}

/// A running step. It gets a bar at the first tick that finds it running, so that many short steps draw none.
#[derive(Debug)]
struct Running {
    since: Instant,
    bar: Option<ProgressBar>,
    tail: VecDeque<String>,
    dropped: usize,
}

/// Writes above the bars.
#[derive(Debug)]
struct Above {
    bars: MultiProgress,
    total: ProgressBar,
    stream: StdWriter<io::Stderr>,
}

impl Above {
    /// Writes like `MultiProgress::suspend`, which panics when the terminal is gone.
    fn write_between<T>(&mut self, write: impl FnOnce(&mut StdWriter<io::Stderr>) -> io::Result<T>) -> io::Result<T> {
        let cleared = self.bars.clear();
        self.stream.judge(cleared)?;
        let written = write(&mut self.stream)?;
        self.total.force_draw();
        Ok(written)
    }
}

impl Write for Above {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_between(|stream| stream.write(bytes))
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_between(|stream| stream.write_all(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Progress {
    pub(super) fn new(style: Style, show_logs: bool) -> Self {
        let template = |text| ProgressStyle::with_template(text).unwrap_or_else(|_| ProgressStyle::default_spinner());
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10));
        let total = bars.add(ProgressBar::new_spinner().with_style(template("{wide_msg}")));
        let spinner =
            if style.colors { "{spinner:.cyan} {prefix} {wide_msg:.dim}" } else { "{spinner} {prefix} {wide_msg}" };
        Self {
            out: BufferedWriter::new(Above {
                bars: bars.clone(),
                total: total.clone(),
                stream: StdWriter::new(io::stderr()),
            }),
            bars,
            total,
            bar_style: template(spinner),
            style,
            show_logs,
            steps: Steps::default(),
            running: HashMap::new(),
            unshown: VecDeque::new(),
            shown: 0,
            started: Instant::now(),
        }
    }

    fn say(&mut self, line: &str) {
        self.out.push(|buffer| {
            buffer.extend_from_slice(line.as_bytes());
            buffer.push(b'\n');
        });
    }

    fn log(&mut self, step_id: Uuid, line: &str) {
        if self.show_logs {
            let mut shown = format!("{} | ", self.steps.name(step_id));
            text::push_clean(&mut shown, line, self.style.colors);
            self.say(&shown);
        } else if let Some(running) = self.running.get_mut(&step_id) {
            if running.tail.len() == TAIL_LINES {
                running.tail.pop_front();
                running.dropped += 1;
            }
            running.tail.push_back(line[..line.floor_char_boundary(TAIL_LINE_BYTES)].to_owned());
        }
    }

    fn end(&mut self, step_id: Uuid, key: &str, mark: &str, ending: &str, show_tail: bool) {
        self.say(&format!("{mark} {key} {ending}"));
        let Some(running) = self.running.remove(&step_id) else { return };
        if let Some(bar) = running.bar {
            self.bars.remove(&bar);
            self.shown -= 1;
        }
        if show_tail {
            if running.dropped > 0 {
                self.say(&self.style.dim(&format!("  | ... {} omitted", text::count(running.dropped, "line"))));
            }
            for line in &running.tail {
                let mut shown = String::from("  | ");
                text::push_clean(&mut shown, line, self.style.colors);
                self.say(&shown);
            }
        }
    }

    /// Creates bars for steps that still run.
    fn show_running(&mut self) {
        while self.shown < MAX_BARS
            && let Some(step_id) = self.unshown.pop_front()
        {
            if let Some(running) = self.running.get_mut(&step_id)
                && running.bar.is_none()
            {
                let bar = self.bars.insert_before(&self.total, ProgressBar::new_spinner());
                bar.set_style(self.bar_style.clone());
                running.bar = Some(bar);
                self.shown += 1;
            }
        }
    }
}

impl Reporter for Progress {
    fn event(&mut self, event: &BuildEvent) {
        let style = self.style;
        self.steps.learn(event, style);
        match event {
            BuildEvent::StepStart { step_id, .. } => {
                let fresh = Running { since: Instant::now(), bar: None, tail: VecDeque::new(), dropped: 0 };
                let running = self.running.entry(*step_id).or_insert(fresh);
                if running.bar.is_none() {
                    self.unshown.push_back(*step_id);
                }
            }
            BuildEvent::StepLog { step_id, line, .. } => self.log(*step_id, line),
            BuildEvent::BuildAccepted { build, watch_url: Some(url), .. } => self.say(&accepted(build, url)),
            BuildEvent::StepCacheMiss { key, message: Some(message), .. } => {
                let (mark, key) = (style.odd("!"), style.name(&text::clean(key)));
                self.say(&format!("{mark} {key} cache miss: {}", text::clean(message)));
            }
            BuildEvent::StepRetry { step_id, attempt, message, .. } => {
                let key = self.steps.name(*step_id);
                self.say(&format!("{} {key} attempt {attempt} failed: {}", style.odd("!"), text::clean(message)));
            }
            BuildEvent::StepEnd { step_id, status, attempt, exit_code, duration_ms, message, .. } => {
                let key = self.steps.name(*step_id);
                let ending = ending(*status, *attempt, *exit_code, *duration_ms, message.as_deref());
                let (mark, ending) = match status {
                    StepStatus::Flaky | StepStatus::FailedAllowed => (style.odd("!"), style.odd(&ending)),
                    status if status.is_success() => (style.good("✓"), ending),
                    status if is_failure(*status) => (style.bad("✗"), style.bad(&ending)),
                    _ => (style.odd("-"), style.odd(&ending)),
                };
                let has_failed = is_failure(*status) || *status == StepStatus::FailedAllowed;
                self.end(*step_id, &key, &mark, &ending, has_failed && !self.show_logs);
            }
            BuildEvent::BuildEnd { status, duration_ms, .. } => {
                self.total.finish_and_clear();
                for line in self.steps.summary(*status, *duration_ms, style) {
                    self.say(&line);
                }
            }
            _ => {}
        }
    }

    fn lines(&mut self, lines: &LogLines<'_>) {
        if self.show_logs {
            lines.lines().for_each(|line| self.log(lines.step_id, line));
            return;
        }
        // Only the last ones can be shown.
        let count = usize::try_from(lines.count).unwrap_or(usize::MAX);
        let hidden = count.saturating_sub(TAIL_LINES);
        if hidden > 0
            && let Some(running) = self.running.get_mut(&lines.step_id)
        {
            running.dropped += hidden + running.tail.len();
            running.tail.clear();
        }
        let last: Vec<&str> = lines.text.lines().rev().take(TAIL_LINES).collect();
        last.into_iter().rev().for_each(|line| self.log(lines.step_id, line));
    }

    fn notice(&mut self, text: &str) {
        let text = self.style.odd(text);
        self.say(&text);
    }

    fn tick(&mut self) {
        if self.total.is_finished() {
            return;
        }
        self.show_running();
        for (step_id, running) in &self.running {
            let Some(bar) = &running.bar else { continue };
            let key = self.steps.name(*step_id);
            bar.set_prefix(format!("{key} {}", text::duration(running.since.elapsed())));
            if let Some(line) = running.tail.back() {
                bar.set_message(text::clean(line).replace('\t', " "));
            }
            bar.tick();
        }
        let mut total = format!("{}/{} steps", self.steps.ended(), self.steps.len());
        if self.running.len() > self.shown {
            total.push_str(&format!(", {} more running", self.running.len() - self.shown));
        }
        total.push_str(&format!(", {}", text::duration(self.started.elapsed())));
        self.total.set_message(total);
        self.total.tick();
    }

    fn tick_interval(&self) -> Duration {
        Duration::from_millis(100)
    }

    fn is_dirty(&self) -> bool {
        self.out.is_dirty()
    }

    fn flush(&mut self) {
        self.out.flush();
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        self.total.finish_and_clear();
        for running in self.running.values() {
            if let Some(bar) = &running.bar {
                bar.finish_and_clear();
            }
        }
        self.out.finish()
    }
}
