//! `hm config`.

use std::{path::PathBuf, process::ExitCode};

use serde_json::Value;

use super::{AnswerFormat, print, print_json, table};
use crate::{
    config::{Row, RowState, Shown, schema},
    exit_code,
    failure::Outcome,
    pipelines::Source,
    reporter::text,
};

/// Show the configuration, and where each value came from
///
/// Values come from environment variables, from hm.toml and config.toml in the project's .hm/ and in your own
/// configuration directory, or are defaults, in this order of precedence. Options of `hm run` are above all
/// of them. Shows values that have no effect with the reason. Exits with code 2 if a file is invalid.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Show only this key, or the keys of this table, such as `cloud`
    #[arg(value_name = "KEY", conflicts_with = "schema")]
    key: Option<String>,

    /// Print the JSON schema of the files
    #[arg(long)]
    schema: bool,

    /// The source directory [default: the nearest directory with `.hm/`, searched upwards]
    #[arg(short, long, value_name = "DIR", conflicts_with = "schema")]
    dir: Option<PathBuf>,

    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: AnswerFormat,
}

pub(crate) fn run(args: &Args) -> Outcome<ExitCode> {
    if args.schema {
        return print_json(&schema());
    }
    let mut shown = Shown::read(&Source::locate(args.dir.as_deref())?.project()?);
    if let Some(key) = &args.key {
        shown.select(key)?;
    }
    for mistake in &shown.mistakes {
        mistake.report();
    }
    let printed = match args.format {
        AnswerFormat::Text => print(&as_text(&shown.rows)),
        AnswerFormat::Json => print_json(&shown.rows),
    }?;
    Ok(if shown.mistakes.is_empty() { printed } else { ExitCode::from(exit_code::INVALID) })
}

/// Returns a row for each value. What another one overrides is named there.
fn as_text(rows: &[Row]) -> String {
    let shown = rows.iter().filter(|row| row.state != RowState::Overridden).map(|row| {
        let overridden = rows.iter().filter(|other| other.key == row.key && other.state == RowState::Overridden);
        let overridden: Vec<String> = overridden.map(|other| other.source.to_string()).collect();
        let note = match &row.state {
            RowState::Ignored { reason } => format!("ignored: {reason}"),
            _ if overridden.is_empty() => String::new(),
            _ => format!("overrides {}", overridden.join(", ")),
        };
        [row.key.clone(), value(row), row.source.to_string(), note].map(|cell| text::clean(&cell)).to_vec()
    });
    table(&shown.collect::<Vec<_>>())
}

fn value(row: &Row) -> String {
    match &row.value {
        None => "(set)".into(),
        Some(Value::String(value)) => value.clone(),
        Some(value) => value.to_string(),
    }
}
