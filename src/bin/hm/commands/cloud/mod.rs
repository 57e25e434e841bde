//! `hm cloud`: the hosted service, one file per noun.

mod auth;
mod billing;
mod build;
mod job;
mod org;
mod pipeline;
mod run;

use std::{future::Future, process::ExitCode};

pub(super) use auth::described;
use hm_exec::service::{BuildPlace, Service, ServiceError};

use super::AnswerFormat;
use crate::{
    config::CloudConfig,
    failure::{Failure, Outcome},
    pipelines::Source,
    runtime::runtime,
    service,
};

const LONG_HELP: &str = "\
Examples:
  hm cloud login                    log in with the browser
  hm cloud org switch acme          choose the organization of builds
  hm run --backend cloud            send the build to the service, and watch it
  hm cloud build watch -p ci 42     watch a build that runs there

The service runs whole builds. Runner `cloud` (`--remote`) is something else: it sends single steps to an engine
of yours.

Exit codes:
  0  success; `build watch` and `run`: the build passed
  1  the build failed
  2  wrong usage, or no organization or pipeline is named
  3  not logged in, or the service does not accept the token
  4  the service cannot be reached
  5  the service does not have it, or could not answer
  7  the service refused the build

Environment variables:
  HM_API_TOKEN   token, instead of the one that `hm cloud login` has stored
  HM_API_URL     address of the service
  HM_APP_URL     address of its pages
  HM_ORG         organization";

/// Use the hosted service, which runs whole builds
#[derive(Debug, clap::Args)]
#[command(after_long_help = LONG_HELP)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Login(auth::LoginArgs),
    Logout(auth::LogoutArgs),
    Whoami(auth::WhoamiArgs),
    #[command(subcommand)]
    Org(org::Command),
    #[command(subcommand)]
    Pipeline(pipeline::Command),
    #[command(subcommand)]
    Build(build::Command),
    #[command(subcommand)]
    Job(job::Command),
    #[command(subcommand)]
    Billing(billing::Command),
    Run(run::Args),
}

pub(crate) fn run(args: &Args) -> Outcome<ExitCode> {
    match &args.command {
        Command::Login(args) => auth::login(args),
        Command::Logout(args) => auth::logout(args),
        Command::Whoami(args) => auth::whoami(args),
        Command::Org(command) => org::run(command),
        Command::Pipeline(command) => pipeline::run(command),
        Command::Build(command) => build::run(command),
        Command::Job(command) => job::run(command),
        Command::Billing(command) => billing::run(command),
        Command::Run(args) => run::run(args),
    }
}

/// How an answer is printed.
#[derive(Debug, clap::Args)]
struct FormatArgs {
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: AnswerFormat,
}

/// The organization.
#[derive(Debug, clap::Args)]
struct OrgArgs {
    /// Organization [default: the configured one]
    #[arg(long, value_name = "SLUG")]
    org: Option<String>,
}

/// The pipeline.
#[derive(Debug, clap::Args)]
struct PipelineArgs {
    #[command(flatten)]
    org: OrgArgs,

    /// Pipeline [default: `cloud.pipeline` of .hm/config.toml]
    #[arg(short, long, value_name = "SLUG")]
    pipeline: Option<String>,
}

/// A connection to the service, with the settings of this directory.
struct Session {
    config: CloudConfig,
    service: Service,
}

impl Session {
    fn open() -> Outcome<Self> {
        let config = config()?;
        Ok(Self { service: service::connect(&config)?, config })
    }

    /// Makes a request. `what` completes "failed to ...".
    fn ask<T>(&self, what: &str, request: impl Future<Output = Result<T, ServiceError>>) -> Outcome<T> {
        let answer = runtime()?.block_on(request);
        answer.map_err(|error| service::failure(&self.config, &format!("failed to {what}"), error))
    }

    fn org(&self, args: &OrgArgs) -> Outcome<String> {
        checked(service::org(args.org.as_deref(), &self.config)?, "organization")
    }

    /// Returns the organization and the pipeline.
    fn pipeline(&self, args: &PipelineArgs) -> Outcome<(String, String)> {
        let configured = self.config.pipeline.as_ref().map(|pipeline| pipeline.value.as_str());
        let pipeline = args.pipeline.as_deref().or(configured).ok_or_else(|| {
            Failure::input("no pipeline is named").hint("use `-p SLUG`; `hm cloud pipeline list` lists them")
        })?;
        Ok((self.org(&args.org)?, checked(pipeline.to_owned(), "pipeline")?))
    }

    fn build(&self, args: &PipelineArgs, number: i64) -> Outcome<BuildPlace> {
        let (org, pipeline) = self.pipeline(args)?;
        Ok(BuildPlace { org, pipeline, number })
    }
}

/// Returns the settings of this directory.
pub(super) fn config() -> Outcome<CloudConfig> {
    let source = Source::locate(None)?;
    let project = source.hm_dir.is_some().then(|| source.project()).transpose()?;
    CloudConfig::of_verbs(project.as_ref())
}

/// Returns a name that becomes a part of a URL, if it can be one.
fn checked(name: String, what: &str) -> Outcome<String> {
    if hm_exec::service::is_slug(&name) {
        return Ok(name);
    }
    Err(Failure::input(format_args!("`{name}` is not the slug of a {what}: expected letters, digits, `-`, `_` or `.`")))
}
