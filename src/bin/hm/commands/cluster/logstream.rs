//! `hm logstream`: shows the output of steps on an engine while they run.

use std::{net::SocketAddr, process::ExitCode};

use hm_exec::worker::{LogStreams, WorkerStop};

use crate::{
    failure::{Failure, Outcome},
    reporter::to_stderr,
    runtime::runtime,
    signals::Interrupts,
};

/// Serve log streams for an engine that has none, such as BuildGrid
///
/// Workers write log streams, and runs read them. Every client can create streams, so listen only on a
/// network of the engine, its workers and its users.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The address to listen on
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:50052")]
    listen: SocketAddr,
}

/// Serves until a signal stops it.
pub(crate) fn run(args: &Args) -> Outcome<ExitCode> {
    let runtime = runtime()?;
    runtime.block_on(async {
        let failed = |error| Failure::infrastructure("failed to serve log streams").because(error);
        let mut interrupts = Interrupts::listen()?;
        let streams = LogStreams::bind(args.listen).await.map_err(failed)?;
        to_stderr(&format!("log streams at grpc://{}", streams.address()));
        let stop = WorkerStop::default();
        tokio::select! {
            served = streams.serve(&stop) => served.map_err(failed)?,
            () = interrupts.next() => {}
        }
        Ok(ExitCode::SUCCESS)
    })
}
