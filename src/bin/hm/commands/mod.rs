//! The commands, one file each: an `Args` struct and a function.

pub(crate) mod cache;
pub(crate) mod cloud;
pub(crate) mod cluster;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod doctor;
pub(crate) mod flaky;
pub(crate) mod help;
pub(crate) mod init;
pub(crate) mod inputs;
pub(crate) mod logs;
pub(crate) mod man;
pub(crate) mod pipelines;
pub(crate) mod plan;
pub(crate) mod render;
pub(crate) mod report;
pub(crate) mod run;
pub(crate) mod runners;
pub(crate) mod runs;
pub(crate) mod schema;
pub(crate) mod step_files;
pub(crate) mod trust;
pub(crate) mod why;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::ValueEnum;
use hm_exec::project::ProjectDir;
use serde::Serialize;

use crate::{
    config::{ConfigArgs, ConfigSources},
    failure::{Failure, Outcome},
    reporter::text,
    trust::{Permission, missing, report_ignored},
};

/// How a command that answers at once prints its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum AnswerFormat {
    /// Human-readable text
    #[default]
    Text,
    /// A JSON document
    Json,
}

/// Prints a whole answer on stdout. It is no error if the reader closes the pipe early.
pub(crate) fn print(answer: &str) -> Outcome<ExitCode> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(answer.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::infrastructure("failed to write to stdout").because(error))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Prints one line about the requests of a project that are ignored here: `permissions`, which are those of
/// its pipelines, and those of its configuration. Returns the configuration without what is ignored.
fn note_ignored(project: &ProjectDir, permissions: impl IntoIterator<Item = Permission>) -> Outcome<ConfigSources> {
    let mut sources = ConfigArgs::default().read(Some(project))?;
    let mut all = sources.permissions(Some(project))?;
    if !missing(project.path(), &all, false)?.is_empty() {
        sources.remove_unpermitted();
    }
    for permission in permissions {
        if !all.contains(&permission) {
            all.push(permission);
        }
    }
    report_ignored(project.path(), &all)?;
    Ok(sources)
}

fn print_json(answer: &impl Serialize) -> Outcome<ExitCode> {
    let mut json = serde_json::to_string_pretty(answer)
        .map_err(|error| Failure::infrastructure("failed to write JSON").because(error))?;
    json.push('\n');
    print(&json)
}

/// Formats a table as text: each column is as wide as its widest cell, except for the last one.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| text::columns(cell)).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            line.push_str(cell);
            if column + 1 < row.len() {
                let shown = text::columns(cell);
                line.extend(std::iter::repeat_n(' ', widths[column] - shown + 2));
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}
