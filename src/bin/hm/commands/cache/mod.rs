//! `hm cache`: shows what the store contains, and removes it.

mod background;
mod clean;
mod du;
mod gc;
mod limits;

use std::process::ExitCode;

pub(crate) use background::collect_if_due;
use hm_exec::store::{GcReport, GcRequest, Store};

use crate::failure::{Failure, Outcome};

/// Inspect and clean the cache
///
/// The cache (HM_CACHE_DIR) contains the layers of cached steps, sources, images, and the journals of runs.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Du(du::Args),
    Gc(gc::Args),
    Clean(clean::Args),
    Export(super::step_files::export::Args),
}

pub(crate) fn run(args: &Args) -> Outcome<ExitCode> {
    match &args.command {
        Command::Du(args) => du::run(args),
        Command::Gc(args) => gc::run(args),
        Command::Clean(args) => clean::run(args),
        Command::Export(args) => super::step_files::export::run(args),
    }
}

/// Collects garbage.
fn collect(store: &Store, request: &GcRequest) -> Outcome<Option<GcReport>> {
    store.gc(request).map_err(|error| Failure::infrastructure("failed to collect garbage").because(error))
}

/// Compresses logs. Returns how many bytes that frees.
fn compress_logs(store: &Store) -> Outcome<u64> {
    store.compress_logs().map_err(|error| Failure::infrastructure("failed to compress logs").because(error))
}
