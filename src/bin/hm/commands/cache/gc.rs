//! `hm cache gc`.

use std::{process::ExitCode, sync::Arc, time::Duration};

use hm_exec::{
    image::ImageOptions,
    runner::docker::Swept,
    runner::sandbox::reap_control_groups,
    size::show,
    store::{Forgotten, GcReport, GcRequest, Store},
};

use super::{background::detach, collect, compress_logs, limits::LimitArgs};
use crate::{
    commands::{AnswerFormat, print, print_json, table},
    failure::Outcome,
    runners, store,
};

/// How long a daemon may take to remove what killed runs left.
const PATIENCE: Duration = Duration::from_secs(60);

const LONG_HELP: &str = "\
Removed by size, least recently used first, until the limits are met: cached steps, sources, images, journals and
logs. Removed by age: the files of failed steps after 3 days, journals after 14 days or beyond the last 1,000
runs, and everything else that was not used for --max-age. Data that a running build may use is removed after that
build.

The logs of runs that have ended are compressed: `zstdcat` shows them.

`hm run` starts this in the background once a day, and when a limit is exceeded, and compresses logs after every
run; HM_CACHE_GC=off disables both.";

/// Remove data that is no longer needed or exceeds the limits
#[derive(Debug, clap::Args)]
#[command(after_long_help = LONG_HELP, after_help = "Run `hm cache gc --help` for what is removed, and when.")]
pub(super) struct Args {
    #[command(flatten)]
    limits: LimitArgs,

    /// Show what would be removed, without removing it
    #[arg(short = 'n', long)]
    dry_run: bool,

    /// Run quietly in the background, unless another process is collecting garbage
    #[arg(long, conflicts_with = "dry_run")]
    auto: bool,

    /// Only compress the logs of runs that have ended, and of cached steps
    #[arg(long, hide = true, conflicts_with = "dry_run")]
    only_logs: bool,

    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: AnswerFormat,
}

pub(super) fn run(args: &Args) -> Outcome<ExitCode> {
    if args.auto {
        detach();
    }
    let store = store::open()?;
    if args.only_logs {
        compress_logs(&store)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut request = GcRequest::new(args.limits.of(&store)?);
    request.dry_run = args.dry_run;
    request.wait = !args.auto;
    let report = collect(&store, &request)?;
    let reaped = if args.dry_run { Vec::new() } else { reap_outside(&store) };
    let Some(mut report) = report.filter(|_| !args.auto) else { return Ok(ExitCode::SUCCESS) };
    report.reaped.extend(reaped.into_iter().filter(|(_, count)| *count > 0).map(|(what, count)| (what.into(), count)));
    let code = show_report(&report, args.format, args.dry_run)?;
    if !args.dry_run
        && let Err(error) = store.mark_reaped_shown()
    {
        tracing::debug!(%error, "what was removed will be reported again");
    }
    Ok(code)
}

/// Removes what killed runs left outside of the store.
fn reap_outside(store: &Arc<Store>) -> Vec<(&'static str, u64)> {
    let swept = sweep_containers(store).unwrap_or_else(|error| {
        // Most machines have no daemon.
        tracing::debug!(%error, "failed to look for containers of killed runs");
        Swept::default()
    });
    vec![
        ("control groups", reap_control_groups() as u64),
        ("containers", swept.containers as u64),
        ("images of containers", swept.images as u64),
        ("volumes of containers", swept.volumes as u64),
    ]
}

/// Removes the containers and images that killed runs left in the daemon.
fn sweep_containers(store: &Arc<Store>) -> anyhow::Result<Swept> {
    let docker = runners::docker(ImageOptions::default(), None).build(Arc::clone(store));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let swept = runtime.block_on(async { tokio::time::timeout(PATIENCE, docker.backend().sweep(store)).await });
    Ok(swept??)
}

/// Prints the report.
pub(super) fn show_report(report: &GcReport, format: AnswerFormat, dry_run: bool) -> Outcome<ExitCode> {
    match format {
        AnswerFormat::Text => print(&as_text(report, dry_run)),
        AnswerFormat::Json => print_json(report),
    }
}

fn as_text(report: &GcReport, dry_run: bool) -> String {
    let mut out = String::new();
    if !report.reaped.is_empty() {
        let reaped = report.reaped.iter().map(|(what, count)| format!("{count} {what}"));
        out.push_str(&format!("removed leftovers of killed runs: {}\n", reaped.collect::<Vec<_>>().join(", ")));
    }
    let kinds = [
        ("cached steps", report.cached),
        ("files of failed steps", report.leftovers),
        ("sources", report.sources),
        ("images", report.images),
        ("cache directories", report.cache_dirs),
        ("journals and logs", report.runs),
    ];
    let forgotten = kinds.iter().filter(|(_, forgotten)| forgotten.count > 0);
    let rows: Vec<Vec<String>> = forgotten
        .map(|(name, Forgotten { count, bytes, .. })| {
            let verb = if dry_run { "would remove" } else { "removed" };
            vec![format!("{verb}: {name}"), count.to_string(), show(*bytes)]
        })
        .collect();
    if report.compressed_bytes > 0 {
        out.push_str(&format!("compressed: logs, by {}\n", show(report.compressed_bytes)));
    } else if rows.is_empty() {
        out.push_str("nothing to remove\n");
    }
    out.push_str(&table(&rows));
    if report.waiting_layers > 0 {
        out.push_str(&format!(
            "to be removed after running builds: {} in {} layers\n",
            show(report.waiting_bytes),
            report.waiting_layers
        ));
    }
    if !dry_run && report.freed_bytes > 0 {
        out.push_str(&format!("freed {}\n", show(report.freed_bytes)));
    }
    let verb = if dry_run { "would use" } else { "uses" };
    out.push_str(&format!("the store {verb} {}\n", show(report.bytes)));
    out
}
