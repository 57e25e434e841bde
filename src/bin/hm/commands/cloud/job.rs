//! `hm cloud job`.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use hm_exec::{
    BuildEvent,
    service::{self, BuildPlace, api},
};
use tokio_util::sync::CancellationToken;

use super::{FormatArgs, PipelineArgs, Session};
use crate::{
    commands::{AnswerFormat, print, print_json, table},
    failure::{Failure, Outcome},
    pipelines::nearest,
    reporter::{text, to_stderr},
    runtime::runtime,
};

/// Jobs of a build on the service: its steps
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List the jobs of a build
    List {
        #[command(flatten)]
        build: OfBuild,
        #[command(flatten)]
        format: FormatArgs,
    },
    /// Print a job as JSON
    Show(OneJob),
    /// Print the output of a job, and of a running one also what follows
    Log(OneJob),
}

#[derive(Debug, clap::Args)]
pub(super) struct OfBuild {
    /// The build's number
    #[arg(short = 'b', long = "build", value_name = "N")]
    number: i64,
    #[command(flatten)]
    pipeline: PipelineArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct OneJob {
    /// The job: its id, or the key of its step
    #[arg(value_name = "JOB")]
    job: String,
    #[command(flatten)]
    build: OfBuild,
}

pub(super) fn run(command: &Command) -> Outcome<ExitCode> {
    let session = Session::open()?;
    match command {
        Command::List { build, format } => {
            let jobs = jobs(&session, &session.build(&build.pipeline, build.number)?)?;
            if format.format == AnswerFormat::Json {
                return print_json(&jobs);
            }
            let rows = jobs.iter().map(|job| vec![job.id.to_string(), job.state.to_string(), text::clean(name(job))]);
            print(&table(&rows.collect::<Vec<_>>()))
        }
        Command::Show(job) => print_json(&job.find(&session)?.1),
        Command::Log(job) => log(&session, job),
    }
}

fn jobs(session: &Session, place: &BuildPlace) -> Outcome<Vec<api::Job>> {
    session.ask(&format!("list the jobs of build #{}", place.number), session.service.jobs(place))
}

fn name(job: &api::Job) -> &str {
    job.name.as_deref().or(job.step_key.as_deref()).unwrap_or_default()
}

impl OneJob {
    fn find(&self, session: &Session) -> Outcome<(BuildPlace, api::Job)> {
        let place = session.build(&self.build.pipeline, self.build.number)?;
        if let Ok(id) = self.job.parse::<uuid::Uuid>() {
            let job = session.ask(&format!("look up job {id}"), session.service.job(&place, &id.to_string()))?;
            return Ok((place, job));
        }
        let mut jobs = jobs(session, &place)?;
        match jobs.iter().position(|job| job.step_key.as_deref() == Some(&*self.job)) {
            Some(at) => Ok((place, jobs.swap_remove(at))),
            None => {
                let known: Vec<String> = jobs.into_iter().filter_map(|job| job.step_key).collect();
                let failure = Failure::input(format_args!("build #{} has no step `{}`", self.build.number, self.job));
                Err(match nearest(&self.job, &known) {
                    Some(near) => failure.hint(format_args!("did you mean `{near}`?")),
                    None => failure.hint("run `hm cloud job list`"),
                })
            }
        }
    }
}

/// Prints the output of a job, whatever it ended with.
fn log(session: &Session, job: &OneJob) -> Outcome<ExitCode> {
    let (place, job) = job.find(session)?;
    let (service, pages) = (&session.service, &session.config.app_url.value);
    let failed = |error| crate::service::failure(&session.config, "failed to read the job's output", error);
    let unwritten = |error: io::Error| Failure::infrastructure("failed to write to stdout").because(error);
    runtime()?.block_on(async {
        let handle = service::watch(service, place, pages, Some(job.id), CancellationToken::new()).await;
        let (mut events, control) = handle.map_err(failed)?.into_parts();
        while let Some(event) = events.next().await {
            match event {
                BuildEvent::StepLog { line, .. } => {
                    // A step must not control the reader's terminal.
                    let written = writeln!(io::stdout(), "{}", text::clean(&line));
                    match written {
                        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
                        written => written.map_err(unwritten)?,
                    }
                }
                BuildEvent::StepEnd { message: Some(message), .. } if message.contains("incomplete") => {
                    to_stderr(&format!("warning: {}", text::clean(&message)));
                }
                _ => {}
            }
        }
        control.wait().await.map_err(|error| crate::service::unwatched(&session.config, error))?;
        Ok(ExitCode::SUCCESS)
    })
}
