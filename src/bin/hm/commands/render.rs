//! `hm render`.

use std::process::ExitCode;

use serde_json::value::RawValue;

use super::print;
use crate::{
    args::SourceArgs,
    failure::Outcome,
    pipelines::{self, parse},
};

/// Prints a pipeline's v0 IR, and says what is wrong with it
///
/// What it prints can be run elsewhere: `hm render ci | hm run -f -`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: SourceArgs,
}

pub(crate) fn run(args: &Args) -> Outcome<ExitCode> {
    let (definition, _) = pipelines::find(&args.source)?;
    // What is no JSON at all is better told by the decoder, below.
    if serde_json::from_str::<&RawValue>(&definition.ir_json).is_ok() {
        print(&format!("{}\n", definition.ir_json.trim_end()))?;
    }
    parse(&definition)?;
    Ok(ExitCode::SUCCESS)
}
