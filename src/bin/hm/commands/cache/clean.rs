//! `hm cache clean`.

use std::process::ExitCode;

use hm_exec::store::{Forget, GcRequest};

use super::{collect, gc::show_report, limits::LimitArgs, open_store};
use crate::{
    commands::AnswerFormat,
    failure::{Failure, Outcome},
};

/// Forgets cached steps, and what failed ones left
///
/// What a live run uses stays until it has ended.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only these steps, by their keys, in all pipelines
    #[arg(value_name = "STEP")]
    steps: Vec<String>,

    /// Forget sources, images, journals and logs, too
    #[arg(long, conflicts_with = "steps")]
    all: bool,

    /// Only say what would go
    #[arg(short = 'n', long)]
    dry_run: bool,

    /// How to print the report
    #[arg(long, value_enum, default_value_t)]
    format: AnswerFormat,
}

pub(super) fn run(args: &Args) -> Outcome<ExitCode> {
    let store = open_store()?;
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
