//! `hm cache restore`.

use std::{path::PathBuf, process::ExitCode};

use hm_exec::{
    image::{ImageOptions, Images, Notes, PullPolicy},
    saved_cache::{Restored, restore},
    userns::{UsernsHelper, UsernsOptions},
};

use super::until_interrupted;
use crate::{
    commands::{AnswerFormat, print, print_json},
    failure::{Failure, Outcome},
    reporter::{text, to_stderr},
    store,
};

const LONG_HELP: &str = "\
A directory that does not exist is no error: there is nothing to restore then. A result that is damaged, or whose
image cannot be pulled, is skipped with a warning, and its step runs.

Later steps boot from what is restored, so restore only what you would run.";

/// Take in results that `hm cache save` wrote
#[derive(Debug, clap::Args)]
#[command(after_long_help = LONG_HELP, after_help = "Run `hm cache restore --help` for more.")]
pub(super) struct Args {
    /// The directory
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// Pull no images: results on images that are not in the store are skipped
    #[arg(long)]
    offline: bool,

    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: AnswerFormat,
}

/// Prints progress on stderr.
struct Lines;

impl Notes for Lines {
    async fn note(&self, line: String) {
        to_stderr(&line);
    }
}

pub(super) fn run(args: &Args) -> Outcome<ExitCode> {
    let store = store::open()?;
    let userns = UsernsHelper::new(UsernsOptions::default());
    let mut options = ImageOptions::from_env().map_err(Failure::input)?;
    if args.offline {
        options.pull = PullPolicy::Never;
    }
    let images = Images::new(options);
    let work = restore(&store, &userns, &images, &args.dir, &Lines);
    let restored = match until_interrupted(work, "failed to restore the cache")? {
        Ok(restored) => restored,
        Err(code) => return Ok(code),
    };
    if restored.is_none() {
        to_stderr(&format!("nothing to restore: {} does not exist", text::clean(&args.dir.display().to_string())));
        if args.format == AnswerFormat::Text {
            return Ok(ExitCode::SUCCESS);
        }
    }
    let restored = restored.unwrap_or_default();
    for skipped in &restored.skipped {
        to_stderr(&format!("warning: skipping {} results: {}", skipped.results, text::clean(&skipped.reason)));
    }
    match args.format {
        AnswerFormat::Text => print(&as_text(&restored)),
        AnswerFormat::Json => print_json(&restored),
    }
}

fn as_text(restored: &Restored) -> String {
    let Restored { results, present, .. } = restored;
    format!("restored {results} results; the store has {present} already\n")
}
