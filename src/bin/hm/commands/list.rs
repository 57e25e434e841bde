//! `hm pipelines`.

use std::{path::PathBuf, process::ExitCode};

use serde_json::json;

use super::{AnswerFormat, print, print_json, table};
use crate::{failure::Outcome, pipelines::Source, render::text};

/// Lists the pipelines of a source directory
///
/// They are the files of `.hm/`: `NAME.json` is v0 IR, `*.py` register theirs through the Python package `harmont`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The source directory; without it, the nearest directory upwards that has `.hm/`
    #[arg(short, long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// How to print the list
    #[arg(long, value_enum, default_value_t)]
    format: AnswerFormat,
}

pub(crate) fn run(args: &Args) -> Outcome<ExitCode> {
    let found = Source::locate(args.dir.as_deref())?.list()?;
    match args.format {
        AnswerFormat::Text => {
            let rows = found.iter().map(|definition| {
                let title = definition.title.as_deref().unwrap_or_default();
                vec![text::clean(&definition.name), text::clean(&definition.origin.to_string()), text::clean(title)]
            });
            print(&table(&rows.collect::<Vec<_>>()))
        }
        AnswerFormat::Json => {
            let list: Vec<_> = found
                .iter()
                .map(|definition| {
                    json!({
                        "name": definition.name,
                        "title": definition.title,
                        "origin": definition.origin.to_string(),
                    })
                })
                .collect();
            print_json(&list)
        }
    }
}
