//! `hm cache save`.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use hm_exec::{
    saved_cache::{SaveLimits, Saved, save},
    size::{self, show},
    userns::{UsernsHelper, UsernsOptions},
};

use super::until_interrupted;
use crate::{
    args::parse_duration,
    commands::{AnswerFormat, print, print_json},
    failure::Outcome,
    store,
};

/// The default of `--max-age`.
const MAX_AGE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

const LONG_HELP: &str = "\
DIR is created, or updated: only what is new is written, and what was not used for --max-age is removed. Copy it to
another machine, or let a CI service cache it; `hm cache restore` takes the results in.

Images are named in DIR, not contained: a restore pulls them. Results of steps on image `host`, on `rootfs:DIR` and
on images from files are left out, because they are valid on this machine only.";

/// Save cached results to a directory, for another machine
#[derive(Debug, clap::Args)]
#[command(after_long_help = LONG_HELP, after_help = "Run `hm cache save --help` for what is saved.")]
pub(super) struct Args {
    /// The directory: empty, missing, or written by an earlier `hm cache save`
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// Maximum size, such as 500M or 10G; what was used last comes first [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    max_size: Option<u64>,

    /// Leave out what was not used for this time, such as 12h or 14d [default: 30d]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    max_age: Option<Duration>,

    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: AnswerFormat,
}

pub(super) fn run(args: &Args) -> Outcome<ExitCode> {
    let store = store::open()?;
    let userns = UsernsHelper::new(UsernsOptions::default());
    let limits = SaveLimits { max_bytes: args.max_size.unwrap_or(u64::MAX), max_age: args.max_age.unwrap_or(MAX_AGE) };
    let saved = match until_interrupted(save(&store, &userns, &args.dir, limits), "failed to save the cache")? {
        Ok(saved) => saved,
        Err(code) => return Ok(code),
    };
    match args.format {
        AnswerFormat::Text => print(&as_text(&saved)),
        AnswerFormat::Json => print_json(&saved),
    }
}

fn as_text(saved: &Saved) -> String {
    let mut out = format!(
        "saved {} results ({}): {} new ({} written), {} removed\n",
        saved.results,
        show(saved.bytes),
        saved.new,
        show(saved.written_bytes),
        saved.dropped
    );
    let left_out = [
        (saved.left_out.size, "beyond --max-size"),
        (saved.left_out.age, "not used for --max-age"),
        (saved.left_out.machine, "valid on this machine only (image `host`, or from a file)"),
        (saved.left_out.damaged, "damaged, or made by another user"),
    ];
    for (count, why) in left_out.iter().filter(|(count, _)| *count > 0) {
        out.push_str(&format!("left out: {count}, {why}\n"));
    }
    out
}
