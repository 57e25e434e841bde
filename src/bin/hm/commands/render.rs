//! `hm render`.

use std::process::ExitCode;

use hm_exec::plan::BindOptions;
use serde_json::value::RawValue;

use super::{note_ignored, print};
use crate::{
    args::SourceArgs,
    failure::Outcome,
    pipelines::{self, RenderCache, parse},
    reporter::to_stderr,
};

/// Print a pipeline's v0 IR
///
/// The output can be run elsewhere: `hm render ci | hm run -f -`. Exits with code 2 if it is not valid IR.
/// Images and the arguments of runners are checked by `hm plan`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: SourceArgs,

    /// Render the pipeline again, also if everything that it was rendered from is as it was
    #[arg(long, alias = "refresh")]
    no_cache: bool,
}

pub(crate) fn run(args: &Args) -> Outcome<ExitCode> {
    args.source.check_one_pipeline()?;
    let found = pipelines::find_with(&args.source, RenderCache { mode: None, renews: args.no_cache })?;
    let definition = &found.definition;
    // If it is not JSON at all, the decoder below reports a better error.
    if serde_json::from_str::<&RawValue>(&definition.ir_json).is_ok() {
        print(&format!("{}\n", definition.ir_json.trim_end()))?;
    }
    let plan = parse(definition)?;
    // The pipeline is shown even if the project's `hm.toml` is invalid.
    if let Err(failure) = note_ignored(&found.project, found.permissions(&plan, &BindOptions::default())) {
        to_stderr(&format!("warning: {failure}"));
    }
    Ok(ExitCode::SUCCESS)
}
