//! `hm cloud build`.

use std::process::ExitCode;

use hm_exec::service::{self, BuildPlace};
use tokio_util::sync::CancellationToken;

use super::{FormatArgs, PipelineArgs, Session};
use crate::{
    commands::{AnswerFormat, print, print_json, run, table},
    failure::Outcome,
    reporter::{Format, View, text},
};

/// Builds on the service
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List the newest builds of a pipeline
    List {
        #[command(flatten)]
        pipeline: PipelineArgs,
        /// The number of builds to list
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: u32,
        #[command(flatten)]
        format: FormatArgs,
    },
    /// Print a build as JSON
    Show(OneBuild),
    /// Cancel a build
    Cancel(OneBuild),
    /// Show a build until it ends, with the output of its steps from their start
    Watch {
        #[command(flatten)]
        build: OneBuild,
        /// Output format [default: progress on a terminal, otherwise human]
        #[arg(long, value_enum)]
        format: Option<Format>,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct OneBuild {
    /// The build's number
    #[arg(value_name = "N")]
    number: i64,
    #[command(flatten)]
    pipeline: PipelineArgs,
}

pub(super) fn run(command: &Command) -> Outcome<ExitCode> {
    let session = Session::open()?;
    match command {
        Command::List { pipeline, limit, format } => {
            let (org, pipeline) = session.pipeline(pipeline)?;
            let all = session.ask("list the builds", session.service.builds(&org, &pipeline, Some(*limit)))?;
            if format.format == AnswerFormat::Json {
                return print_json(&all);
            }
            let rows = all.iter().map(|build| {
                let message = build.message.as_deref().unwrap_or_default().lines().next().unwrap_or_default();
                vec![format!("#{}", build.number), build.state.to_string(), text::clean(message)]
            });
            print(&table(&rows.collect::<Vec<_>>()))
        }
        Command::Show(OneBuild { number, pipeline }) => {
            let place = session.build(pipeline, *number)?;
            print_json(&session.ask(&format!("look up build #{number}"), session.service.build(&place))?)
        }
        Command::Cancel(OneBuild { number, pipeline }) => {
            let place = session.build(pipeline, *number)?;
            session.ask(&format!("cancel build #{number}"), session.service.cancel(&place))?;
            print(&format!("build #{number} cancelled\n"))
        }
        Command::Watch { build: OneBuild { number, pipeline }, format } => {
            let place = session.build(pipeline, *number)?;
            watch(&session, place, format.unwrap_or_else(|| Format::preferred_here(None)))
        }
    }
}

/// Shows a build until it ends. Interrupting this leaves the build alone.
pub(super) fn watch(session: &Session, place: BuildPlace, format: Format) -> Outcome<ExitCode> {
    let what = format!("failed to watch build #{} of {}", place.number, place.pipeline);
    let pages = session.config.app_url.value.clone();
    let start = service::watch(&session.service, place, &pages, None, CancellationToken::new());
    let failed = |error| crate::service::failure(&session.config, &what, error);
    let unwatched = |error| crate::service::unwatched(&session.config, error);
    run::show(async { start.await.map_err(failed) }, View::observed(format, false, None), unwatched)
}
