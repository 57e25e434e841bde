//! `hm worker`: runs steps of other users for an engine.

use std::{num::NonZeroUsize, process::ExitCode};

use hm_exec::{
    image::ImageOptions,
    remote::Endpoint,
    store::StoreHandle,
    worker::{Worker, WorkerNote, WorkerNotes, WorkerOptions, WorkerStop},
};

use crate::{
    commands::cache,
    config::{EngineArgs, NamedEngine},
    failure::{Failure, Outcome},
    reporter::to_stderr,
    runners::set::sandbox,
    runtime::runtime,
    signals::Interrupts,
    store,
};

/// Run a worker for an engine that uses the Remote Workers API, such as BuildGrid
///
/// After the first SIGTERM, SIGHUP or Ctrl-C, the worker finishes running steps and accepts no more; a second
/// SIGTERM or Ctrl-C kills them.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    engine: EngineArgs,
    /// Maximum number of steps that run at once
    #[arg(long, value_name = "N", default_value = "1")]
    slots: NonZeroUsize,
    /// A platform property of this worker, such as `pool=large` (repeatable)
    #[arg(long = "platform", value_name = "K=V", value_parser = property)]
    platform: Vec<(String, String)>,
    /// A unique name for this worker [default: HOSTNAME-PID]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

fn property(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err("expected KEY=VALUE, as in `pool=large`".into()),
    }
}

/// Prints events, one a line, and collects garbage when a lease is over.
struct Lines<'a> {
    place: &'a str,
    store: &'a StoreHandle,
}

impl WorkerNotes for Lines<'_> {
    fn note(&self, note: WorkerNote) {
        match note {
            WorkerNote::Connected { slot } => to_stderr(&format!("slot {slot}: connected to {}", self.place)),
            WorkerNote::Disconnected { slot, reason } => {
                to_stderr(&format!("slot {slot}: not connected, retrying: {reason}"));
            }
            WorkerNote::Ended { slot, lease, how } => {
                to_stderr(&format!("slot {slot}: {lease}: {how}"));
                cache::collect_if_due(self.store, None);
            }
            _ => {}
        }
    }
}

/// Works until a signal stops it.
pub(crate) fn run(args: &Args) -> Outcome<ExitCode> {
    let Some(NamedEngine { engine, logs }) = args.engine.endpoint()? else {
        return Err(Failure::input("no engine is given").hint("pass `--remote grpc://HOST:PORT`, or set HM_REMOTE"));
    };
    let endpoint =
        |options| Endpoint::new(options).map_err(|error| Failure::input("invalid engine settings").because(error));
    let (engine, logs) = (endpoint(engine)?, logs.map(endpoint).transpose()?);
    let name = args.name.clone().unwrap_or_else(|| {
        let machine = rustix::system::uname();
        format!("{}-{}", machine.nodename().to_string_lossy(), std::process::id())
    });
    let place = engine.place().to_owned();
    let options = WorkerOptions { engine, logs, slots: args.slots, name, platform: args.platform.clone() };
    let store = store::handle()?;
    let runtime = runtime()?;
    runtime.block_on(async {
        let mut interrupts = Interrupts::listen()?;
        let sandbox = sandbox(&store, &[], ImageOptions::default());
        let worker = Worker::new(options, sandbox).await.map_err(|error| {
            Failure::infrastructure("the sandbox is not available").because(error).hint("run `hm doctor` for details")
        })?;
        let (stop, notes) = (WorkerStop::default(), Lines { place: &place, store: &store });
        let work = worker.run(&stop, &notes);
        tokio::pin!(work);
        let mut signals = 0;
        loop {
            tokio::select! {
                () = &mut work => break,
                () = interrupts.next() => {
                    signals += 1;
                    if signals == 1 {
                        to_stderr("stopping after running steps have finished; a second signal kills them");
                        stop.drain();
                    } else {
                        stop.cancel();
                    }
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}
