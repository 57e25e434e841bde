//! `hm cache`: shows what the store contains, removes it, and moves it to other machines.

mod background;
mod clean;
mod du;
mod gc;
mod limits;
mod restore;
mod save;

use std::process::ExitCode;

pub(crate) use background::collect_if_due;
use hm_exec::{
    image::ImageError,
    saved_cache::SavedCacheError,
    store::{GcReport, GcRequest, Store, StoreError},
};

use crate::{
    exit_code,
    failure::{Failure, Outcome},
    runtime::runtime,
    signals::Interrupts,
};

/// Inspect, clean, save and restore the cache
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
    Save(save::Args),
    Restore(restore::Args),
    Export(super::step_files::export::Args),
}

pub(crate) fn run(args: &Args) -> Outcome<ExitCode> {
    match &args.command {
        Command::Du(args) => du::run(args),
        Command::Gc(args) => gc::run(args),
        Command::Clean(args) => clean::run(args),
        Command::Save(args) => save::run(args),
        Command::Restore(args) => restore::run(args),
        Command::Export(args) => super::step_files::export::run(args),
    }
}

/// Collects garbage.
fn collect(store: &Store, request: &GcRequest) -> Outcome<Option<GcReport>> {
    store.gc(request).map_err(|error| Failure::infrastructure("failed to collect garbage").because(error))
}

/// Runs work on the files of a saved cache, until it ends or the user interrupts it.
fn until_interrupted<T>(
    work: impl Future<Output = Result<T, SavedCacheError>>,
    what: &str,
) -> Outcome<Result<T, ExitCode>> {
    let runtime = runtime()?;
    let done = runtime.block_on(async {
        let mut interrupts = Interrupts::listen()?;
        Outcome::Ok(tokio::select! {
            done = work => Some(done),
            () = interrupts.next() => None,
        })
    })?;
    match done {
        Some(Ok(done)) => Ok(Ok(done)),
        Some(Err(error @ SavedCacheError::Foreign { .. })) => {
            Err(Failure::input(what).because(error).hint("use an empty directory, or one that `hm cache save` wrote"))
        }
        Some(Err(error @ SavedCacheError::Scope { .. })) => Err(Failure::input(what).because(error)),
        Some(Err(
            SavedCacheError::Store(StoreError::Full { .. })
            | SavedCacheError::Image(ImageError::Store(StoreError::Full { .. })),
        )) => Err(Failure::full_store()),
        Some(Err(error @ SavedCacheError::Full { .. })) => Err(Failure::infrastructure(what)
            .because(error)
            .hint("use a directory on another disk, or save less with --max-size")),
        Some(Err(error @ SavedCacheError::Userns(_))) => {
            Err(Failure::infrastructure(what).because(error).hint("run `hm doctor`: it names what the sandbox lacks"))
        }
        Some(Err(error @ SavedCacheError::Io { .. })) => Err(Failure::infrastructure(what)
            .because(error)
            .hint("use a directory that you own; it is a cache, and may be removed")),
        Some(Err(error)) => Err(Failure::infrastructure(what).because(error)),
        None => {
            // Whatever is unfinished is removed by the next one.
            runtime.shutdown_background();
            Ok(Err(ExitCode::from(exit_code::INTERRUPTED)))
        }
    }
}

/// Compresses logs. Returns how many bytes that frees.
fn compress_logs(store: &Store) -> Outcome<u64> {
    store.compress_logs().map_err(|error| Failure::infrastructure("failed to compress logs").because(error))
}
