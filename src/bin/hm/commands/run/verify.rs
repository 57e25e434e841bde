//! `hm verify`, and `HM_VERIFY` of runs: steps that are found by what they read run, and are compared.

use std::{collections::BTreeSet, env, num::NonZeroUsize, path::PathBuf, process::ExitCode};

use hm_exec::{BuildOutcome, BuildStatus, Plan, cache::Verify, outcome::VerifiedStep};

use super::{Args as RunArgs, Pull, Reuse, start};
use crate::{
    args::{BindArgs, SourceArgs, parse_count},
    backend::BackendArgs,
    commands::print,
    config::{ConfigArgs, variables::VERIFY},
    exit_code,
    failure::{Failure, Outcome},
    part::{self, PartArgs},
    reporter::{Format, text, to_stderr},
};

const LONG_HELP: &str = "\
Examples:
  hm verify                  compare all steps that `hm run --cache auto` would find
  hm verify build            compare this step
  hm verify -p ci build lint compare two steps of pipeline ci

Exit codes:
  0    no step differs, or none was compared
  1    a step differs
  2    wrong usage or an invalid pipeline; no step was started
  3    a step could not run, or could not be compared
  130  interrupted";

/// Run steps that would be found by what they read, and compare what they leave with their results
///
/// Steps run over the results that they would build in. Nothing is kept: neither results nor a record of the
/// run. Steps that would not be found do not run. `HM_VERIFY=1 hm run --cache auto` does the same in a run.
#[derive(Debug, clap::Args)]
#[command(after_long_help = LONG_HELP, after_help = "Run `hm verify --help` for examples and exit codes.")]
pub(crate) struct Args {
    /// Compare only these steps, by key or label [default: all steps]
    #[arg(value_name = "STEP")]
    steps: Vec<String>,

    /// The pipeline; optional if there is only one, or one named `ci` or `default`
    #[arg(short, long, value_name = "PIPELINE", conflicts_with = "file")]
    pipeline: Option<String>,

    /// Read the pipeline from a v0 IR JSON file (`-` for stdin) instead of `.hm/`
    #[arg(short, long, value_name = "IR.json")]
    file: Option<PathBuf>,

    /// The source directory [default: the nearest directory with `.hm/`, searched upwards]
    #[arg(short, long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Download nothing: no package to render pipelines with, and no images
    #[arg(long)]
    offline: bool,

    #[command(flatten)]
    bind: BindArgs,

    /// Maximum number of steps that run at once [default: the number of CPUs]
    #[arg(short, long, value_name = "N", value_parser = parse_count)]
    jobs: Option<NonZeroUsize>,

    /// Mount a directory of this machine, read-only, in steps on image `host` (repeatable)
    #[arg(long = "host-dir", value_name = "DIR")]
    host_dirs: Vec<PathBuf>,

    /// How to show the steps that run [default: progress on a terminal, otherwise quiet]
    #[arg(long, value_enum)]
    format: Option<Format>,

    /// Allow what the project requests beyond the sandbox in this run [env: HM_TRUST=1]
    #[arg(long)]
    trust: bool,
}

/// What a run compares with results that are found by what steps read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verified {
    Nothing,
    /// `HM_VERIFY`.
    InPlace,
    /// `hm verify`, with the names of steps.
    Only(Vec<String>),
}

impl Verified {
    /// Reads the variable. An empty one counts as unset.
    pub(super) fn from_env() -> Outcome<Self> {
        match env::var_os(VERIFY).unwrap_or_default().to_str() {
            Some("" | "0") => Ok(Self::Nothing),
            Some("1") => Ok(Self::InPlace),
            _ => Err(Failure::input(format_args!("{VERIFY} has no such value"))
                .hint("set it to `1`, which compares what steps leave with results that are found, or unset it")),
        }
    }

    /// Returns what a request says, for a plan that has the named steps.
    pub(super) fn of_plan(&self, plan: &Plan) -> Outcome<Verify> {
        Ok(match self {
            Self::Nothing => Verify::Off,
            Self::InPlace => Verify::InPlace,
            Self::Only(names) => {
                let keys: Outcome<BTreeSet<String>> = names.iter().map(|name| part::key_of(plan, name)).collect();
                Verify::Only(keys?)
            }
        })
    }

    pub(super) fn is_alone(&self) -> bool {
        matches!(self, Self::Only(_))
    }
}

pub(crate) fn run(args: Args) -> Outcome<ExitCode> {
    let Args { steps, pipeline, file, dir, offline, bind, jobs, host_dirs, format, trust } = args;
    let format = format.unwrap_or_else(|| match Format::preferred_here(None) {
        Format::Progress => Format::Progress,
        _ => Format::Quiet,
    });
    let verified = Verified::Only(steps.clone());
    let args = RunArgs {
        source: SourceArgs { pipeline, file, dir, offline },
        part: PartArgs::of_steps(steps),
        dry_run: false,
        watch: false,
        open: false,
        bind,
        jobs,
        parallelism: None,
        memory: None,
        // A difference of one step says nothing of the others.
        keep_going: true,
        keep: false,
        cache: Some(Reuse::Auto),
        no_cache: false,
        no_caches: false,
        refresh: Vec::new(),
        check_inputs: false,
        host_dirs,
        pull: Pull::Missing,
        timeout: None,
        format: Some(format),
        quiet: false,
        logs: false,
        trust,
        backend: BackendArgs::default(),
        config: ConfigArgs::default(),
    };
    start(&args, &verified)
}

/// Prints what `hm verify` has compared. Returns its exit code.
pub(super) fn report(outcome: &BuildOutcome, format: Format) -> Outcome<ExitCode> {
    let mut lines = String::new();
    for step in &outcome.verified {
        for line in verdict(step) {
            lines += &text::clean(&line);
            lines.push('\n');
        }
    }
    let verified = &outcome.verified;
    let compared = verified.iter().filter(|it| it.not_compared.is_none()).count();
    let differ = verified.iter().filter(|it| it.difference.is_some()).count();
    let count = |count| text::count(count, "step");
    lines += &match (compared, differ) {
        (0, _) => "no step was compared\n".to_owned(),
        (_, 0) => format!("{}: the same as before\n", count(compared)),
        _ => format!("{}: {differ} not the same as before\n", count(compared)),
    };
    if format.is_json() {
        to_stderr(lines.trim_end());
    } else {
        print(&lines)?;
    }
    match outcome.status {
        _ if differ > 0 => Ok(exit_code::of_build(BuildStatus::Failed)),
        BuildStatus::Passed if outcome.shadow_failures > 0 => {
            Err(Failure::infrastructure("some steps could not be compared").hint("the warnings above say why"))
        }
        status => Ok(exit_code::of_build(status)),
    }
}

/// Returns what came of a step, in lines.
fn verdict(step: &VerifiedStep) -> Vec<String> {
    let VerifiedStep { step: key, compared, difference, files, not_compared, .. } = step;
    let first = match (not_compared, difference) {
        (Some(why), _) => format!("not compared: {why}"),
        (None, None) => format!("the same ({})", text::count(*compared, "path")),
        (None, Some(difference)) if files.is_empty() => difference.clone(),
        (None, Some(_)) => "it wrote other files".to_owned(),
    };
    let mut lines = vec![format!("{key}: {first}")];
    lines.extend(files.iter().map(|file| format!("  {file}")));
    let more = step.differences.saturating_sub(files.len());
    lines.extend((more > 0).then(|| format!("  and {more} more")));
    lines
}
