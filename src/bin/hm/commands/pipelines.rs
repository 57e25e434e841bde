//! `hm pipelines`.

use std::{path::PathBuf, process::ExitCode};

use hm_exec::{Plan, plan::BindOptions};
use serde_json::json;

use super::{AnswerFormat, note_ignored, print, print_json, table};
use crate::{
    failure::Outcome,
    pipelines::Source,
    reporter::{text, to_stderr},
    trust,
};

/// List the pipelines of a source directory
///
/// Pipelines are defined in `.hm/`: by files `NAME.json` (v0 IR), and by files `*.py` that use the Python
/// package `harmont`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The source directory [default: the nearest directory with `.hm/`, searched upwards]
    #[arg(short, long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: AnswerFormat,
}

pub(crate) fn run(args: &Args) -> Outcome<ExitCode> {
    let source = Source::locate(args.dir.as_deref())?;
    let found = source.list()?;
    let project = source.project()?;
    // An invalid pipeline requests nothing, but is listed nevertheless.
    let plans = found.iter().filter_map(|definition| Plan::parse(&*definition.ir_json).ok());
    let permissions = plans.flat_map(|plan| trust::of_plan(&plan, &BindOptions::default(), project.path()));
    if let Err(failure) = note_ignored(&project, permissions) {
        to_stderr(&format!("warning: {failure}"));
    }
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
