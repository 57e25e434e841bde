//! `--format progress`: running steps with their elapsed time at the bottom, finished steps above. Draws on
//! stderr.

use std::{
    collections::{HashMap, VecDeque},
    io::{self, Write},
    time::{Duration, Instant},
};

use hm_exec::{BuildEvent, BuildStatus, StepStatus, event::LogLines};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use uuid::Uuid;

use super::{
    BufferedWriter, Reporter, StdWriter,
    activities::Activities,
    last_screen::{self, Canvas},
    live_lines::{self, BeginAnew},
    plan_view::PlanView,
    steps::{Steps, accepted, ending, is_failure},
    style::Style,
    terminal_size, text,
};

/// The maximum number of running steps that are shown at once; the others are counted. They take no more than
/// half the rows.
const MAX_BARS: usize = 16;

/// The maximum number of characters about a failed step before the last screen.
const ENDING_CHARS: usize = 160;

/// The columns that the last line leaves free, so that it never wraps.
const FREE_COLUMNS: usize = 4;

pub(super) struct Progress {
    bars: MultiProgress,
    total: ProgressBar,
    bar_style: ProgressStyle,
    out: BufferedWriter<Above>,
    style: Style,
    show_logs: bool,
    steps: Steps,
    activities: Activities,
    running: HashMap<Uuid, Running>,
    /// Running steps in the order in which they started; some may have ended since.
    unshown: VecDeque<Uuid>,
    /// The steps that have bars, from top to bottom.
    shown: Vec<Uuid>,
    started: Instant,
    max_bars: usize,
    has_ended: bool,
    begin_anew: BeginAnew,
}

/// A running step. It gets a bar at the first tick that finds it running, so that many short steps draw none.
#[derive(Debug)]
struct Running {
    since: Instant,
    bar: Option<ProgressBar>,
    /// The number of the attempt, and why the one before it failed.
    attempt: u32,
    failure: Option<String>,
    /// When the next attempt starts, until it does.
    next_attempt: Option<Instant>,
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
    pub(super) fn new(style: Style, show_logs: bool, plan: PlanView) -> Self {
        let template = |text| ProgressStyle::with_template(text).unwrap_or_else(|_| ProgressStyle::default_spinner());
        let begin_anew = BeginAnew::default();
        let bars = MultiProgress::with_draw_target(live_lines::draw_target(&begin_anew));
        let total = bars.add(ProgressBar::new_spinner().with_style(template("{msg}")));
        // Not in indicatif's notation, which asks another stream whether it is a terminal.
        let spinner = format!("{} {{prefix}} {}", style.name("{spinner}"), style.dim("{wide_msg}"));
        Self {
            out: BufferedWriter::new(Above {
                bars: bars.clone(),
                total: total.clone(),
                stream: StdWriter::new(io::stderr()),
            }),
            bars,
            total,
            bar_style: live_lines::with_ticks(template(&spinner)),
            style,
            show_logs,
            steps: Steps::new(plan),
            activities: Activities::default(),
            running: HashMap::new(),
            unshown: VecDeque::new(),
            shown: Vec::new(),
            started: Instant::now(),
            max_bars: 1,
            has_ended: false,
            begin_anew,
        }
    }

    /// Prints a line of `hm` itself.
    fn say(&mut self, line: &str) {
        self.print(&text::symbols(line));
    }

    fn print(&mut self, line: &str) {
        self.out.push(|buffer| {
            buffer.extend_from_slice(line.as_bytes());
            buffer.push(b'\n');
        });
    }

    fn log(&mut self, step_id: Uuid, line: &str) {
        let mut shown = format!("{} | ", self.steps.name(step_id));
        text::push_clean(&mut shown, line, self.style.colors);
        self.print(&shown);
    }

    fn end(&mut self, step_id: Uuid, mark: &str, ending: &str) {
        self.say(&format!("{mark} {} {ending}", self.steps.title(step_id)));
        let Some(running) = self.running.remove(&step_id) else { return };
        if let Some(bar) = running.bar {
            self.bars.remove(&bar);
            self.shown.retain(|shown| *shown != step_id);
        }
    }

    /// Returns what is shown beside a running step: what it waits for, or else its last line, or why its last
    /// attempt failed.
    fn message(&self, step_id: Uuid, running: &Running) -> Option<String> {
        if let (Some(failure), Some(next)) = (&running.failure, running.next_attempt) {
            let wait = text::duration(next.saturating_duration_since(Instant::now()));
            return Some(format!("next attempt in {wait}: {failure}"));
        }
        let activity = self.activities.text(Some(step_id), self.steps.runner(step_id));
        activity.or_else(|| {
            let line = self.steps.last_line(step_id).or(running.failure.as_deref());
            line.map(|line| text::clean(line).replace('\t', " "))
        })
    }

    fn clear_bars(&self) {
        self.total.finish_and_clear();
        for running in self.running.values() {
            if let Some(bar) = &running.bar {
                bar.finish_and_clear();
            }
        }
    }

    /// Prints the last screen.
    fn end_build(&mut self, status: Option<BuildStatus>, duration_ms: u64) {
        self.has_ended = true;
        let canvas = Canvas { style: self.style, columns: terminal_size(io::stderr()).map(|size| size.1) };
        for line in last_screen::lines(&self.steps, status, duration_ms, canvas) {
            self.say(&line);
        }
    }

    /// Creates bars for steps that still run, or removes some if the terminal has become smaller.
    fn show_running(&mut self) {
        while self.shown.len() > self.max_bars
            && let Some(step_id) = self.shown.pop()
        {
            if let Some(bar) = self.running.get_mut(&step_id).and_then(|running| running.bar.take()) {
                self.bars.remove(&bar);
                self.unshown.push_front(step_id);
            }
        }
        while self.shown.len() < self.max_bars
            && let Some(step_id) = self.unshown.pop_front()
        {
            if let Some(running) = self.running.get_mut(&step_id)
                && running.bar.is_none()
            {
                let bar = self.bars.insert_before(&self.total, ProgressBar::new_spinner());
                bar.set_style(self.bar_style.clone());
                running.bar = Some(bar);
                self.shown.push(step_id);
            }
        }
    }
}

impl Reporter for Progress {
    fn event(&mut self, event: &BuildEvent) {
        let style = self.style;
        self.steps.learn(event, style);
        self.activities.learn(event);
        match event {
            BuildEvent::StepStart { step_id, attempt, .. } => {
                let fresh = Running { since: Instant::now(), bar: None, attempt: 1, failure: None, next_attempt: None };
                let running = self.running.entry(*step_id).or_insert(fresh);
                running.attempt = *attempt;
                running.next_attempt = None;
                if running.bar.is_none() {
                    self.unshown.push_back(*step_id);
                }
            }
            BuildEvent::StepLog { step_id, line, .. } if self.show_logs => self.log(*step_id, line),
            BuildEvent::BuildAccepted { build, watch_url: Some(url), .. } => self.say(&accepted(build, url)),
            BuildEvent::StepCacheMiss { step_id, message: Some(message), .. } => {
                let (mark, title) = (style.odd("!"), self.steps.title(*step_id));
                self.say(&format!("{mark} {title} cache miss: {}", text::clean(message)));
            }
            BuildEvent::StepRetry { step_id, attempt, message, backoff_ms, .. } => {
                let (title, message) = (self.steps.title(*step_id), text::clean(message));
                self.say(&format!("{} {title} attempt {attempt} failed: {message}", style.odd("!")));
                if let Some(running) = self.running.get_mut(step_id) {
                    running.failure = Some(message);
                    running.next_attempt = Instant::now().checked_add(Duration::from_millis(*backoff_ms));
                }
            }
            BuildEvent::StepEnd { step_id, status, attempt, exit_code, duration_ms, message, .. } => {
                let ending = ending(*status, *attempt, *exit_code, *duration_ms, message.as_deref());
                // The last screen has the whole message of a failure.
                let ending = if is_failure(*status) { text::cut(&ending, ENDING_CHARS).into_owned() } else { ending };
                let (mark, ending) = match status {
                    StepStatus::Flaky | StepStatus::FailedAllowed => (style.odd("!"), style.odd(&ending)),
                    status if status.is_success() => (style.good("✓"), ending),
                    status if is_failure(*status) => (style.bad("✗"), style.bad(&ending)),
                    _ => (style.odd("-"), style.odd(&ending)),
                };
                self.end(*step_id, &mark, &ending);
            }
            BuildEvent::BuildEnd { status, duration_ms, .. } => {
                self.total.finish_and_clear();
                self.end_build(Some(*status), *duration_ms);
            }
            _ => {}
        }
    }

    fn lines(&mut self, lines: &LogLines<'_>) {
        self.steps.learn_lines(lines);
        if self.show_logs {
            lines.lines().for_each(|line| self.log(lines.step_id, line));
        }
    }

    fn notice(&mut self, text: &str) {
        let text = self.style.odd(text);
        self.say(&text);
    }

    fn tick(&mut self) {
        if self.total.is_finished() {
            return;
        }
        let (rows, columns) = terminal_size(io::stderr()).unwrap_or((24, 80));
        self.max_bars = (rows / 2).saturating_sub(1).clamp(1, MAX_BARS);
        self.show_running();
        for (step_id, running) in &self.running {
            let Some(bar) = &running.bar else { continue };
            let title = self.steps.title(*step_id);
            // What the step does has more than half of the line.
            let is_short = text::columns(&title) < columns / 2;
            let title = if is_short { title } else { self.steps.name(*step_id) };
            let attempt = if running.attempt > 1 { format!(" (attempt {})", running.attempt) } else { String::new() };
            bar.set_prefix(format!("{title}{attempt} {}", text::duration(running.since.elapsed())));
            if let Some(message) = self.message(*step_id, running) {
                bar.set_message(message);
            }
            bar.tick();
        }
        let mut total = format!("{}/{} steps", self.steps.ended(), self.steps.len());
        if self.running.len() > self.shown.len() {
            total.push_str(&format!(" · … {} more running", self.running.len() - self.shown.len()));
        }
        if let Some(activity) = self.activities.text(None, "") {
            total.push_str(&format!(" · {activity}"));
        }
        total.push_str(&format!(" · {}", text::duration(self.started.elapsed())));
        let total = text::symbols(&text::cut(&total, columns.saturating_sub(FREE_COLUMNS))).into_owned();
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

    fn continued(&mut self) {
        self.begin_anew.request();
    }

    fn killed(&mut self) {
        self.clear_bars();
        if !self.has_ended {
            self.end_build(None, self.steps.age_ms());
        }
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        self.clear_bars();
        self.out.finish()
    }
}
