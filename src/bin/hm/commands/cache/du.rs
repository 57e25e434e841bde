//! `hm cache du`.

use std::process::ExitCode;

use hm_exec::{
    size::show,
    store::{Usage, UsageKind},
};

use crate::{
    commands::{AnswerFormat, print, print_json, table},
    failure::{Failure, Outcome},
    reporter::text,
    store,
};

/// Show the cache's disk usage by kind and by pipeline
///
/// Sizes are those of allocated blocks. Files with several hard links count once.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: AnswerFormat,
}

pub(super) fn run(args: &Args) -> Outcome<ExitCode> {
    let store = store::open()?;
    let usage = store.usage().map_err(|error| Failure::infrastructure("failed to measure the store").because(error))?;
    match args.format {
        AnswerFormat::Text => print(&as_text(&usage)),
        AnswerFormat::Json => print_json(&usage),
    }
}

fn as_text(usage: &Usage) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    for (kind, bytes) in usage.kinds.iter().filter(|(_, bytes)| **bytes > 0) {
        rows.push(vec![name(*kind).into(), show(*bytes)]);
    }
    rows.push(vec!["total".into(), show(usage.bytes)]);
    let of = &usage.filesystem;
    rows.push(vec!["free on the filesystem".into(), format!("{} of {}", show(of.free_bytes), show(of.bytes))]);
    let mut out = table(&rows);
    if !usage.pipelines.is_empty() {
        let title = ["pipeline", "cached steps", "own size", "shared size"];
        let mut rows = vec![title.map(String::from).to_vec()];
        rows.extend(usage.pipelines.iter().map(|of| {
            vec![text::clean(&of.pipeline), of.steps.to_string(), show(of.unique_bytes), show(of.shared_bytes)]
        }));
        out.push('\n');
        out.push_str(&table(&rows));
    }
    out
}

fn name(kind: UsageKind) -> &'static str {
    match kind {
        UsageKind::Steps => "cached steps",
        UsageKind::Sources => "sources",
        UsageKind::Images => "images",
        UsageKind::CacheDirs => "cache directories",
        UsageKind::Leftovers => "files of failed steps",
        UsageKind::Machines => "booted machines",
        UsageKind::Packages => "packages to render pipelines with",
        UsageKind::Journals => "journals and logs",
        UsageKind::Traces => "records of what steps read",
        UsageKind::Index => "index",
        UsageKind::Waiting => "to be removed after running builds",
        UsageKind::Temporary => "temporary files",
        _ => "other",
    }
}
