//! `hm runners`.

use std::process::ExitCode;

use hm_exec::{
    RunnerSet,
    runner::{Probe, RunnerDescriptor},
};
use serde_json::json;

use super::{AnswerFormat, print, print_json, table};
use crate::{
    failure::{Failure, Outcome},
    pipelines,
    remote::{Remote, RemoteArgs},
    render::text,
    runners::Runners,
};

/// Lists the runners, and whether they work here
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How to print the list
    #[arg(long, value_enum, default_value_t)]
    format: AnswerFormat,

    #[command(flatten)]
    remote: RemoteArgs,
}

pub(crate) fn run(args: &Args) -> Outcome<ExitCode> {
    let runners = probe_all(resolve(&args.remote)?)?;
    match args.format {
        AnswerFormat::Text => {
            let rows = runners.iter().map(|(runner, probe)| {
                let (state, why) = match probe {
                    Probe::Usable { note } => ("works here", note.clone().unwrap_or_default()),
                    Probe::Unusable { reason, hint } => ("can't work here", format!("{reason}; {hint}")),
                };
                let default = if runner.is_default { "default" } else { "" };
                vec![runner.name.to_string(), default.into(), state.into(), text::clean(&why)]
            });
            print(&table(&rows.collect::<Vec<_>>()))
        }
        AnswerFormat::Json => {
            let list: Vec<_> = runners
                .iter()
                .map(|(runner, probe)| {
                    json!({
                        "name": runner.name,
                        "default": runner.is_default,
                        "probe": probe,
                        "capabilities": runner.capabilities,
                        "pool": runner.pool,
                        "args_schema": runner.args.json_schema(),
                    })
                })
                .collect();
            print_json(&list)
        }
    }
}

/// The engine that steps would run on, where we are.
pub(super) fn resolve(args: &RemoteArgs) -> Outcome<Remote> {
    args.resolve(pipelines::Source::locate(None)?.hm_dir.as_deref())
}

/// Every runner, and whether it works here.
pub(super) fn probe_all(remote: Remote) -> Outcome<Vec<(RunnerDescriptor, Probe)>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::infrastructure("failed to start the runtime").because(error))?;
    let runners = Runners::new(remote)?;
    let probes = runtime.block_on(runners.probe_all());
    Ok(runners.descriptors().into_iter().zip(probes).collect())
}
