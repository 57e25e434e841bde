//! `hm cache clean`.

use std::process::ExitCode;

use hm_exec::store::{Forget, GcRequest};

use super::{collect, gc::show_report, limits::LimitArgs};
use crate::{
    commands::AnswerFormat,
    failure::{Failure, Outcome},
    store,
};

/// Remove cached results, cache directories, and the files of failed steps
///
/// Data that a running build uses is removed after that build.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Remove only the results of the steps with these keys, in all pipelines, and no cache directories
    #[arg(value_name = "STEP")]
    steps: Vec<String>,

    /// Remove sources, images, journals, logs and downloaded packages, too
    #[arg(long, conflicts_with = "steps")]
    all: bool,

    /// Show what would be removed, without removing it
    #[arg(short = 'n', long)]
    dry_run: bool,

    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: AnswerFormat,
}

pub(super) fn run(args: &Args) -> Outcome<ExitCode> {
    let store = store::open()?;
    let limits = LimitArgs::from_env().map_err(Failure::input)?;
    let mut request = GcRequest::new(limits.of(&store)?);
    request.dry_run = args.dry_run;
    request.forget = match (args.all, args.steps.is_empty()) {
        (true, _) => Forget::Everything,
        (false, true) => Forget::Cached,
        (false, false) => Forget::Steps(args.steps.clone()),
    };
    let report = collect(&store, &request)?.unwrap_or_default();
    show_report(&report, args.format, args.dry_run)
}
