//! `hm pipelines` and `hm ls`.

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
    process::ExitCode,
};

use hm_exec::{Plan, plan::BindOptions};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{AnswerFormat, note_ignored, print, table};
use crate::{
    failure::{Failure, Outcome},
    pipelines::{Definition, Source},
    reporter::{text, to_stderr},
    trust,
};

/// Print all pipelines and their IR, for programs
///
/// Pipelines are defined in `.hm/`: by files `NAME.json` (v0 IR), and by files `*.py`, `*.ts` and `*.mts`
/// that use harmont. The output is the discovery envelope, a JSON document. It has no pipelines if there is
/// no `.hm/`. `hm ls` lists pipelines for people.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The source directory [default: the nearest directory with `.hm/`, searched upwards]
    #[arg(short, long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Download no package to render pipelines with
    #[arg(long)]
    offline: bool,

    /// Output format [default: text on a terminal, otherwise json]
    #[arg(long, value_enum)]
    format: Option<AnswerFormat>,
}

/// List the pipelines of a source directory
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// The source directory [default: the nearest directory with `.hm/`, searched upwards]
    #[arg(short, long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Download no package to render pipelines with
    #[arg(long)]
    offline: bool,
}

/// The discovery envelope, which services read.
#[derive(Debug, Serialize)]
struct Envelope<'a> {
    schema_version: &'static str,
    pipelines: Vec<Discovered<'a>>,
}

#[derive(Debug, Serialize)]
struct Discovered<'a> {
    slug: &'a str,
    name: Option<&'a str>,
    allow_manual: bool,
    triggers: &'a RawValue,
    definition: &'a RawValue,
}

pub(crate) fn run(args: &Args) -> Outcome<ExitCode> {
    let default = if io::stdout().is_terminal() { AnswerFormat::Text } else { AnswerFormat::Json };
    let source = Source { offline: args.offline, ..Source::locate(args.dir.as_deref())? };
    match args.format.unwrap_or(default) {
        AnswerFormat::Text => show(&source),
        AnswerFormat::Json => {
            let found = if source.hm_dir.is_some() { discover(&source)? } else { Vec::new() };
            let pipelines = found.iter().map(discovered).collect::<Outcome<_>>()?;
            let envelope = Envelope { schema_version: "1", pipelines };
            let json = serde_json::to_string(&envelope)
                .map_err(|error| Failure::infrastructure("failed to write JSON").because(error))?;
            print(&(json + "\n"))
        }
    }
}

pub(crate) fn list(args: &ListArgs) -> Outcome<ExitCode> {
    show(&Source { offline: args.offline, ..Source::locate(args.dir.as_deref())? })
}

fn show(source: &Source) -> Outcome<ExitCode> {
    let rows = discover(source)?.into_iter().map(|definition| {
        let title = definition.title.as_deref().unwrap_or_default();
        vec![text::clean(&definition.name), text::clean(&definition.origin.to_string()), text::clean(title)]
    });
    print(&table(&rows.collect::<Vec<_>>()))
}

/// Returns the pipelines. Prints a line about requests of the project that are ignored here.
fn discover(source: &Source) -> Outcome<Vec<Definition>> {
    let found = source.list()?;
    let project = source.project()?;
    // An invalid pipeline requests nothing, but is listed nevertheless.
    let plans = found.iter().filter_map(|definition| Plan::parse(&*definition.ir_json).ok());
    let permissions = plans.flat_map(|plan| trust::of_plan(&plan, &BindOptions::default(), project.path()));
    if let Err(failure) = note_ignored(&project, permissions) {
        to_stderr(&format!("warning: {failure}"));
    }
    Ok(found)
}

fn discovered(definition: &Definition) -> Outcome<Discovered<'_>> {
    let raw = |json| {
        serde_json::from_str(json).map_err(|error| {
            Failure::input(format_args!("pipeline `{}` ({}) is not JSON", definition.name, definition.origin))
                .because(error)
        })
    };
    let discovery = &definition.discovery;
    Ok(Discovered {
        slug: &definition.name,
        name: discovery.name.as_deref(),
        allow_manual: discovery.allow_manual,
        triggers: raw(&discovery.triggers)?,
        definition: raw(&definition.ir_json)?,
    })
}
