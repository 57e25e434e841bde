//! `hm run`.
//!
//! Over 500 lines because its options are one list, with their help.

mod after;
mod next_commands;
mod service;
mod shadow;
mod short_help;
pub(crate) mod verify;
mod watch;

use std::{
    future::Future,
    io,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    pin::pin,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use hm_exec::{
    BackendError, BackendHandle, BuildOutcome, BuildStatus, EventStream, Plan, RunRequest,
    cache::{CacheMode, check_traces},
    image::{ImageOptions, PullPolicy},
    plan::BindOptions,
    project::ProjectDir,
    runner::available_memory,
    size,
    source::EarlyFreeze,
    store::{Filesystem, StoreHandle},
};
use uuid::Uuid;

pub(crate) use self::short_help::shorten;
use self::{
    after::After,
    next_commands::{again, print_next_commands},
    service::Submission,
    shadow::Shadow,
    verify::Verified,
};
use crate::{
    args::{BindArgs, SourceArgs, existing_dir, parse_count, parse_duration},
    backend::BackendArgs,
    commands::{AnswerFormat, cache, inputs, plan},
    config::{
        BackendName, ConfigArgs, Sourced,
        variables::{CACHE_SHADOW, VERIFY},
    },
    exit_code,
    failure::{Failure, Outcome},
    part::PartArgs,
    pipelines::{self, RenderCache, nearest, parse},
    previous_runs, project_id,
    reporter::{Format, Screen, View, Waiting, text, to_stderr},
    runners::{self, Runners},
    runtime::runtime,
    signals::{Interrupt, Interrupts},
    store, trust, warnings,
};

const LONG_HELP: &str = "\
Examples:
  hm run                                 run the only pipeline of .hm/, or the one named ci
  hm run demo -j 4 -k                    run four steps at once, and continue after a failure
  hm run ci --image debian:bookworm=host run on this machine's system instead of an image
  hm run -f ir.json --format json        run a pipeline from a file, and print events as JSON lines
  hm render ci | hm run -f - -d ../src   run a pipeline from stdin on another source directory
  hm run ci unit lint                    run two steps of pipeline ci, and what they need
  hm run ci --failed                     run what did not pass the last time
  hm run ci unit --watch                 run a step again after every edit
  hm run --refresh apt-base              run this step, and the steps that build in it, again
  hm run --secret TOKEN=file:token.txt   provide a secret at /run/secrets/TOKEN

Exit codes:
  0    the build passed
  1    a step failed
  2    wrong usage or an invalid pipeline; no step was started
  3    the build could not run: the runner is not available, the disk is full, ...
  124  the build timed out
  130  the build was cancelled (Ctrl-C, SIGTERM or SIGHUP; a second Ctrl-C or SIGTERM kills all steps)
With `--backend cloud` only:
  3    not logged in, or the service does not accept the token
  4    the service cannot be reached
  5    the service could not answer
  7    the service refused the build

`--backend cloud` sends the whole build to the hosted service; runner `cloud` (`--remote`) sends single steps to
an engine of yours.

Environment variables:
  HM_CACHE_DIR   directory of layers, images and journals (default: hm in the XDG cache directory)
  HM_CACHE_GC    off: do not collect garbage or compress logs after the run; for the limits, see `hm cache gc --help`
  HM_PYTHON, HM_NODE
                 Python that renders .hm/*.py (default: python3); Node or Bun for .hm/*.ts (default: node, bun)
  HM_HARMONT_TS  directory of the package @harmont/hm, for projects that do not have it
  HM_DSL         system: never download the package harmont for a Python that does not have it
  HM_RENDER_ENV, HM_RENDER_TIMEOUT
                 additional variables for them, separated by commas; its time limit in seconds (default: 60)
  HM_REGISTRY_MIRROR, HM_INSECURE_REGISTRIES, HM_MAX_IMAGE_BYTES
                 registry to try first for images of docker.io; registries to use without TLS, separated by
                 commas; size limit of an image
  DOCKER_CONFIG  directory of docker's registry credentials (default: ~/.docker)
  HM_REMOTE, HM_REMOTE_INSTANCE, HM_REMOTE_LOGS, HM_REMOTE_HEADER, HM_REMOTE_JOBS, HM_REMOTE_CACHE,
  HM_REMOTE_CACHE_SCOPE, HM_REMOTE_CACHE_KEYS, HM_REMOTE_CACHE_SIGNING_KEY,
  HM_REMOTE_CA, HM_REMOTE_CERT, HM_REMOTE_KEY
                 engine of runner cloud, like the options with these names; or set [remote] in .hm/hm.toml
  HM_TRUST       1: allow what the project requests beyond the sandbox, like --trust; see `hm trust --help`
  HM_API_TOKEN, HM_API_URL, HM_APP_URL, HM_ORG
                 token, addresses and organization for `--backend cloud`; see `hm cloud --help`
  HM_STEP        hm-step binary for remote steps (default: the one in hm)
  HM_LOG         level of hm's own log on stderr, such as debug (default: warn)
  OTEL_EXPORTER_OTLP_ENDPOINT
                 collector that receives the run as a trace when it has ended; see `hm report --help`
  BROWSER        browser for --open (default: that of the desktop)
  GITHUB_ACTIONS, GITLAB_CI
                 true: the default of --format is `github` or `gitlab`
  NO_COLOR, FORCE_COLOR, CLICOLOR_FORCE
                 disable or force colors";

/// Run a pipeline
///
/// Steps see a frozen copy of the source directory at /workspace. The steps that build in a step see its
/// changes; the source directory itself is never changed.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = LONG_HELP,
    after_help = "Run `hm run --help` for all options, examples, exit codes and environment variables."
)]
pub(crate) struct Args {
    #[command(flatten)]
    source: SourceArgs,

    #[command(flatten)]
    part: PartArgs,

    /// Print what would run, as `hm plan` does, and run nothing
    #[arg(long)]
    dry_run: bool,

    /// Run again after every edit of the source or the pipelines; a run in progress is stopped then
    #[arg(long, conflicts_with = "dry_run")]
    watch: bool,

    /// When the build has ended, show it as a page in your browser, as `hm report --open` does
    #[arg(long, conflicts_with_all = ["dry_run", "watch"])]
    open: bool,

    #[command(flatten)]
    bind: BindArgs,

    /// Maximum number of steps that run at once on this machine [default: the number of CPUs]
    #[arg(short, long, value_name = "N", value_parser = parse_count)]
    jobs: Option<NonZeroUsize>,

    /// Same as `--jobs`; 0 means 1
    #[arg(long, value_name = "N", conflicts_with = "jobs")]
    parallelism: Option<usize>,

    /// How much memory steps that run at once may need together, judged by their last runs, such as 16g
    /// [default: what this machine has available]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    memory: Option<u64>,

    /// After a failure, continue with the steps that do not depend on the failed one
    #[arg(short, long)]
    keep_going: bool,

    /// Keep the files of all steps for `hm shell` and `hm cp`, not only of failed and interrupted ones
    #[arg(long)]
    keep: bool,

    /// Which results to reuse [default: `mode` of [cache] in hm.toml, otherwise declared]
    #[arg(long, value_enum, value_name = "MODE")]
    cache: Option<Reuse>,

    /// Ignore cached results and overwrite them
    #[arg(long)]
    no_cache: bool,

    /// Start steps with empty cache directories, and keep none of them
    #[arg(long)]
    no_caches: bool,

    /// Ignore and overwrite the cached results of this step and of the steps that build in it (repeatable)
    #[arg(long, value_name = "STEP")]
    refresh: Vec<String>,

    /// Record what steps in the sandbox read, and compare it with their `on_change` (`hm inputs` prints it)
    #[arg(long)]
    check_inputs: bool,

    /// Mount a directory of this machine, read-only, in steps on image `host` (repeatable)
    #[arg(long = "host-dir", value_name = "DIR")]
    host_dirs: Vec<PathBuf>,

    /// When to look up image tags in their registries, at most once per run
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = Pull::Missing, conflicts_with = "offline")]
    pull: Pull,

    /// Time limit of the whole build, such as 90s, 15m or 1h30m
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    timeout: Option<Duration>,

    /// Output format [default: progress on a terminal, otherwise human]
    #[arg(long, value_enum)]
    format: Option<Format>,

    /// Print only what failed; same as `--format quiet`
    #[arg(short, long, conflicts_with_all = ["format", "logs"])]
    quiet: bool,

    /// Show all output of steps in `--format progress`, too
    #[arg(long)]
    logs: bool,

    /// Allow what the project requests beyond the sandbox in this run (`hm trust` allows it permanently)
    /// [env: HM_TRUST=1]
    #[arg(long)]
    trust: bool,

    #[command(flatten)]
    backend: BackendArgs,

    // Last, because its heading applies to all arguments that follow.
    #[command(flatten)]
    config: ConfigArgs,
}

impl Args {
    /// Returns the maximum number of steps at once, if one was given.
    fn jobs(&self) -> Option<NonZeroUsize> {
        self.jobs.or(self.parallelism.map(|jobs| NonZeroUsize::new(jobs).unwrap_or(NonZeroUsize::MIN)))
    }
}

/// Which results are reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Reuse {
    /// Those of all steps in the sandbox, found by what they read (experimental)
    Auto,
    /// Those of steps with a cache policy
    Declared,
    /// None
    Off,
}

impl From<Reuse> for CacheMode {
    fn from(reuse: Reuse) -> Self {
        match reuse {
            Reuse::Auto => Self::Auto,
            Reuse::Declared => Self::Declared,
            Reuse::Off => Self::Off,
        }
    }
}

/// When image tags are looked up in their registries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Pull {
    /// In every run
    Always,
    /// If the store does not have the image
    Missing,
    /// Never
    Never,
}

impl From<Pull> for PullPolicy {
    fn from(pull: Pull) -> Self {
        match pull {
            Pull::Always => Self::Always,
            Pull::Missing => Self::Missing,
            Pull::Never => Self::Never,
        }
    }
}

/// How long threads that still work for a killed build may delay the end of the process.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(1);

/// How a build ended.
#[derive(Debug)]
enum End {
    Ended(BuildOutcome),
    Killed(Option<Screen>),
}

impl Args {
    fn bind_options(&self) -> Outcome<BindOptions> {
        let refresh = self.refresh.iter().cloned().collect();
        Ok(BindOptions { no_cache: self.no_cache, refresh, ..self.bind.bind_options()? })
    }
}

pub(crate) fn run(args: &Args) -> Outcome<ExitCode> {
    start(args, &Verified::from_env()?)
}

/// Runs a pipeline, and compares what steps leave, if that is asked for.
fn start(args: &Args, verified: &Verified) -> Outcome<ExitCode> {
    let shadow = Shadow::from_env_beside(verified)?;
    if args.watch {
        return watch::run(args);
    }
    if args.dry_run {
        let is_json = args.format.is_some_and(Format::is_json);
        let format = if is_json { AnswerFormat::Json } else { AnswerFormat::Text };
        return plan::dry_run(&args.source, &args.part, args.bind_options()?, format);
    }
    let mut early = None;
    let mut waiting = None;
    let mode = if shadow.is_on() { Some(CacheMode::Off) } else { args.cache.map(CacheMode::from) };
    let rendered = RenderCache { mode, renews: args.no_cache };
    let found = pipelines::find_while(&args.source, rendered, |dir, project| {
        waiting = Some(Waiting::on("rendering the pipelines of .hm/"));
        early = begin_freeze(args, dir, project);
    });
    drop(waiting);
    let found = found?;
    let definition = &found.definition;
    let mut bind = args.bind_options()?;
    let sources = args.config.read(Some(&found.project))?.with_backend(args.backend.named());
    let backend = sources.backend()?;
    let is_remote = backend.value == BackendName::Cloud;
    if is_remote {
        service::check(args, shadow, verified)?;
    }
    let plan = parse(definition)?;
    let verify = verified.of_plan(&plan)?;
    let plan = args.part.of(plan, &args.source, &found.dir, &definition.name)?;
    let plan = args.backend.apply(plan, &mut bind, &backend)?;
    let secrets = args.bind.read_secrets()?;
    check_steps(&plan, &args.refresh)?;
    let mut permissions = sources.permissions(Some(&found.project))?;
    if !is_remote {
        permissions.extend(found.permissions(&plan, &bind));
    }
    if trust::require(found.project.path(), &permissions, args.trust, &trust::command(&args.source))? {
        // The user may have edited the source before the answer.
        early = None;
    }
    bind.step_tables = sources.step_tables()?;
    bind.services = sources.services();
    let after = After { open: args.open, collector: sources.collector() };
    let mut config = sources.resolve(Some(&found.project))?;
    let named = if args.quiet { Some(Format::Quiet) } else { args.format };
    let format = named.unwrap_or_else(|| Format::preferred_here(config.format));
    let (store, early) = match early {
        Some((store, freeze)) => (store, Some(Arc::new(freeze))),
        None => (store::handle()?, None),
    };
    warn_of_exposure(&store);
    if let Some(cloud) = config.cloud.as_ref().filter(|_| is_remote) {
        if let Some(table) = bind.step_tables.first() {
            to_stderr(&format!("note: {} has no effect on the service", table.source()));
        }
        if let Some(name) = bind.services.keys().next() {
            to_stderr(&format!("note: [service.{}] of hm.toml has no effect on the service", text::clean(name)));
        }
        return Submission {
            args,
            plan,
            dir: &found.dir,
            project: &found.project,
            pipeline: &definition.name,
            env: bind.env,
            config: cloud,
            source: &config.source,
            format,
            store,
            early,
            after,
        }
        .run();
    }

    let mut request = RunRequest::new(plan, &found.dir);
    request.pipeline_slug = definition.name.clone();
    request.project = Some(project_id::of_source(&request.repo_root, &config.projects, config.share.as_ref()));
    BindArgs::apply(bind, &mut request);
    request.secrets = secrets;
    request.run_id = Some(Uuid::new_v4());
    request.early_freeze = early;
    let previous = previous_runs::read(&store, &request.repo_root, &definition.name, &request.plan);
    request.durations = previous.durations;
    request.peaks = previous.peaks;
    request.options.memory = args.memory.or_else(available_memory);
    request.options.source_times = config.source.times;
    request.options.source_ignore.clone_from(&config.source.ignore);
    request.options.cache_mode = args.cache.map_or_else(|| mode_of_file(&config.cache_mode), CacheMode::from);
    request.options.no_caches = args.no_caches;
    let mut images = ImageOptions::from_env().map_err(Failure::input)?;
    images.pull = if args.source.offline { PullPolicy::Never } else { args.pull.into() };
    request.options.keep_going = args.keep_going;
    request.options.keep = args.keep;
    request.options.trace_inputs = args.check_inputs;
    request.options.shadow = shadow.is_on();
    if *verified == Verified::InPlace && request.options.cache_mode != CacheMode::Auto {
        to_stderr(&format!("note: {VERIFY} has no effect without `--cache auto`"));
    }
    request.options.verify = verify;
    request.options.timeout = args.timeout;
    request.options.watch = true;
    request.options.progress = format.shows_progress();

    let host_dirs = args.host_dirs.iter().map(|dir| existing_dir(dir)).collect::<Outcome<Vec<_>>>()?;
    let shared = runners::remote_cache(&images, &mut config)?;
    let engine = Runners::on(&store, &host_dirs, images, config).engine(&store, args.jobs(), shared)?;
    let bound = engine.bind(&request).map_err(|error| definition.refused(error))?;
    for image in &bound.unused_images {
        warnings::of_unused_image(&bound, image);
    }
    warnings::of_plan(&bound);
    if args.check_inputs || shadow.is_on() {
        warnings::of_untraced(&bound, if args.check_inputs { "--check-inputs" } else { CACHE_SHADOW });
    }
    if request.options.cache_mode == CacheMode::Auto && !shadow.is_on() {
        warnings::of_never_found(&bound);
    }
    warnings::of_tables(&bound, &request.options.step_tables);
    let run_id = request.run_id;
    let declared = args.check_inputs.then(|| inputs::declared(&request.plan));
    let view = View::new(format, args.logs, &bound, &request);
    // One thread for the build (a build is one task), blocking threads to freeze files, and one thread that
    // shows it.
    let runtime = runtime()?;
    let end = runtime.block_on(async {
        let mut interrupts = Interrupts::listen()?;
        tokio::select! {
            handle = bound.start() => {
                let handle = handle.map_err(|error| definition.refused(error))?;
                watch(handle, &mut interrupts, view, &LOCAL, Failure::from).await
            }
            () = interrupts.next() => Ok(End::Killed(None)),
        }
    });
    // Drops what still runs, which also kills its processes.
    runtime.shutdown_timeout(SHUTDOWN_LIMIT);
    match end? {
        End::Killed(screen) => {
            if let Some(screen) = screen {
                screen.close(SHUTDOWN_LIMIT);
            }
            // The killed build could not record its own end.
            let note =
                |run| store.get_opened().map_or(Ok(()), |store| store.runs().end(run, exit_code::INTERRUPTED.into()));
            if let Err(error) = run_id.map_or(Ok(()), note) {
                to_stderr(&format!("warning: failed to record the end of this run: {error}"));
            }
            Ok(ExitCode::from(exit_code::INTERRUPTED))
        }
        End::Ended(outcome) => {
            if verified.is_alone() {
                return verify::report(&outcome, format);
            }
            if !format.is_json() {
                print_next_commands(&store, &outcome, format, again(args))?;
            }
            if outcome.status == BuildStatus::Infrastructure && is_full(&store) {
                Failure::full_store().report();
            }
            if let (Some(declared), Some(store), Some(run)) = (&declared, store.get_opened(), run_id) {
                inputs::report((&store, run), declared, &outcome.steps, &request.repo_root)?;
            }
            after.run(&store, &outcome);
            cache::collect_if_due(&store, run_id);
            let checks = if *verified == Verified::InPlace { Shadow::Strict } else { shadow };
            checks.report(&outcome).map_or_else(|| Ok(exit_code::of_build(outcome.status)), Err)
        }
    }
}

/// The notices after interrupts.
struct Notices {
    first: &'static str,
    second: &'static str,
}

const LOCAL: Notices = Notices {
    first: "cancelling: waiting for running steps to stop; interrupt again to kill them",
    second: "killing all running steps",
};

/// Shows a build of the service that nothing of this process depends on, until it ends. An interrupt ends
/// only hm.
pub(super) fn show(
    start: impl Future<Output = Outcome<BackendHandle>>,
    view: View,
    failed: impl Fn(BackendError) -> Failure,
) -> Outcome<ExitCode> {
    let runtime = runtime()?;
    let outcome = runtime.block_on(async {
        let (events, control) = start.await?.into_parts();
        let mut screen = open(events, view)?;
        let outcome = control.wait().await.map_err(failed);
        let shown = screen.done().await;
        let outcome = outcome?;
        shown.map_err(|error| unwritten(&outcome, error))?;
        Ok::<_, Failure>(outcome)
    })?;
    Ok(exit_code::of_build(outcome.status))
}

/// Begins to freeze the source. Leaves errors to the code that runs after the pipeline was found.
fn begin_freeze(args: &Args, dir: &Path, project: &ProjectDir) -> Option<(StoreHandle, EarlyFreeze)> {
    let options = args.config.read(Some(project)).ok()?.source();
    let store = store::handle().ok()?;
    let freeze = EarlyFreeze::begin(&store, dir, options)?;
    Some((store, freeze))
}

/// Returns the mode that a file sets, or the next one if that is not possible here: files are written for
/// many machines.
fn mode_of_file(Sourced { value: mode, source }: &Sourced<CacheMode>) -> CacheMode {
    match mode {
        CacheMode::Auto => match check_traces() {
            Ok(()) => CacheMode::Auto,
            Err(why) => {
                to_stderr(&text::clean(&format!(
                    "note: results are reused as with `--cache declared`, not `auto` ({source}): what steps read cannot \
                     be recorded here: {why}"
                )));
                CacheMode::Declared
            }
        },
        mode => *mode,
    }
}

/// Prints one warning if other users can access the store, or could until now.
fn warn_of_exposure(store: &StoreHandle) {
    // Code that needs the store reports that it cannot be opened.
    let Ok(store) = store.get() else { return };
    if let Some(exposure) = store.exposure() {
        let fix = exposure.mended_by().map(|fix| format!("\nhint: {fix}")).unwrap_or_default();
        to_stderr(&format!("warning: {exposure}{fix}"));
    }
}

/// Returns whether the store's disk is full.
fn is_full(store: &StoreHandle) -> bool {
    /// Less than what a step's log, a layer and their rows take.
    const NOTHING: u64 = 256 << 10;
    let dir = store.get_opened().map(|store| store.dir().to_owned()).or_else(|| store::dir().ok());
    dir.is_some_and(|dir| Filesystem::of(&dir).is_ok_and(|of| of.free_bytes < NOTHING))
}

/// Returns an error if a name is not the key of any step.
fn check_steps(plan: &Plan, named: &[String]) -> Outcome<()> {
    let keys = || plan.pipeline().nodes.iter().map(|node| node.step.key.to_string());
    let Some(unknown) = named.iter().find(|name| !keys().any(|key| key == **name)) else { return Ok(()) };
    let failure = Failure::input(format_args!("no step named `{unknown}` in the pipeline"));
    let known: Vec<String> = keys().collect();
    Err(match nearest(unknown, &known) {
        Some(near) => failure.hint(format_args!("did you mean `{near}`?")),
        None => failure.hint("run `hm plan` to list the steps"),
    })
}

/// Shows a build until it ends, or until the user forces its end.
async fn watch(
    handle: BackendHandle,
    interrupts: &mut Interrupts,
    view: View,
    notices: &Notices,
    failed: impl Fn(BackendError) -> Failure,
) -> Outcome<End> {
    let (events, control) = handle.into_parts();
    let cancel = control.cancel_token();
    let mut screen = open(events, view)?;
    let mut wait = pin!(control.wait());
    let ended = loop {
        tokio::select! {
            ended = &mut wait => break ended,
            kind = interrupts.next_kind() => {
                if cancel.is_cancelled() {
                    screen.killing(notices.second);
                    return Ok(End::Killed(Some(screen)));
                }
                cancel.cancel();
                let edit = if kind == Interrupt::Request { watch::edit() } else { None };
                match edit {
                    Some(edit) => screen.notice(format!("{edit}: stopping this run")),
                    None => screen.notice(notices.first),
                }
            }
        }
    };
    let shown = tokio::select! {
        shown = screen.done() => shown,
        // The reader of the output has stopped, but the verdict is known.
        () = interrupts.next() => Ok(()),
    };
    let outcome = ended.map_err(failed)?;
    shown.map_err(|error| unwritten(&outcome, error))?;
    Ok(End::Ended(outcome))
}

/// Starts to show events.
fn open(events: EventStream, view: View) -> Outcome<Screen> {
    Screen::open(events, view)
        .map_err(|error| Failure::infrastructure("failed to start the output thread").because(error))
}

fn unwritten(outcome: &BuildOutcome, error: io::Error) -> Failure {
    let status = outcome.status;
    Failure::infrastructure(format_args!("the build ended ({status:?}), but its output could not be written"))
        .because(error)
}
