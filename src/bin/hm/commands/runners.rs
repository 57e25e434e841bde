//! `hm runners`.

use std::process::ExitCode;

use hm_exec::{
    RunnerSet,
    runner::{Probe, RunnerDescriptor},
};
use serde_json::json;
use tokio::runtime::Runtime;

use super::{AnswerFormat, logs::connections::records_none, print, print_json, table};
use crate::{
    config::{Config, ConfigArgs},
    failure::Outcome,
    pipelines,
    reporter::text,
    runners::Runners,
    runtime::runtime,
    trust,
};

/// List the runners and whether they are available
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: AnswerFormat,

    #[command(flatten)]
    config: ConfigArgs,
}

/// Compatible with other versions of hm, in which runners are plugins
#[derive(Debug, clap::Args)]
pub(crate) struct PluginArgs {
    #[command(subcommand)]
    command: PluginCommand,
}

#[derive(Debug, clap::Subcommand)]
enum PluginCommand {
    /// List the runners, like `hm runners`
    List,
}

pub(crate) fn plugin(PluginArgs { command: PluginCommand::List }: &PluginArgs) -> Outcome<ExitCode> {
    run(&Args::default())
}

pub(crate) fn run(args: &Args) -> Outcome<ExitCode> {
    let runners = probe_all(resolve(&args.config)?)?;
    match args.format {
        AnswerFormat::Text => {
            let rows = runners.iter().map(|(runner, probe)| {
                let (state, why) = match probe {
                    Probe::Usable { note, .. } => {
                        let network = match runner.capabilities.private_network {
                            false => Some("steps have the network of their machine"),
                            true => records_none(&runner.name).then_some("connections of steps are not recorded"),
                        };
                        let notes: Vec<_> = note.as_deref().into_iter().chain(network).collect();
                        ("available", notes.join("; "))
                    }
                    Probe::Unusable { reason, hint, .. } => ("not available", format!("{reason}; {hint}")),
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

/// Returns the settings of the engine that steps would run on in the working directory.
pub(super) fn resolve(args: &ConfigArgs) -> Outcome<Config> {
    let source = pipelines::Source::locate(None)?;
    let project = source.hm_dir.is_some().then(|| source.project()).transpose()?;
    let mut settings = args.read(project.as_ref())?;
    if let Some(project) = &project
        && trust::report_ignored(project.path(), &settings.permissions(Some(project))?)?
    {
        settings.remove_unpermitted();
    }
    settings.resolve(project.as_ref())
}

/// Probes every runner.
pub(super) fn probe_all(config: Config) -> Outcome<Vec<(RunnerDescriptor, Probe)>> {
    probe(&Runners::new(config)?, &runtime()?)
}

/// Probes every runner like [`probe_all`], but also boots a virtual machine to find out whether that works,
/// and how.
pub(super) fn try_all(config: Config) -> Outcome<Vec<(RunnerDescriptor, Probe)>> {
    let (runtime, runners) = (runtime()?, Runners::new(config)?);
    let mut probes = probe(&runners, &runtime)?;
    for (_, probe) in
        probes.iter_mut().filter(|(runner, probe)| *runner.name == *"vm" && matches!(probe, Probe::Usable { .. }))
    {
        let booted = runtime.block_on(runners.boot_machine());
        *probe = match booted {
            Ok(accelerator) => Probe::usable().with_note(format!("a machine booted with {accelerator}")),
            Err(error) => {
                let hint = "see its output, or set `HM_LOG=debug` for details";
                Probe::unusable(error.to_line(), hint)
            }
        };
    }
    Ok(probes)
}

fn probe(runners: &Runners, runtime: &Runtime) -> Outcome<Vec<(RunnerDescriptor, Probe)>> {
    let probes = runtime.block_on(runners.probe_all());
    Ok(runners.descriptors().into_iter().zip(probes).collect())
}
