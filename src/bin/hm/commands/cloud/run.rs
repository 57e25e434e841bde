//! `hm cloud run`: submits a plan that was rendered before, without a source.

use std::{collections::HashMap, env, path::PathBuf, process::ExitCode};

use hm_exec::{
    Plan,
    service::{BuildPlace, api},
};

use super::{OrgArgs, Session, build, checked};
use crate::{
    commands::print,
    failure::{Failure, Outcome},
    reporter::Format,
    service,
};

/// Variables with this prefix are variables of the build.
const PREFIX: &str = "HM_RUN_ENV_";

/// Submit a rendered pipeline without a source, and watch the build
///
/// Environment variables HM_RUN_ENV_NAME are passed on to its steps as NAME. To build the source of this
/// directory, use `hm run --backend cloud`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The pipeline
    #[arg(value_name = "PIPELINE")]
    pipeline: String,

    /// File with the rendered pipeline (see `hm render`)
    #[arg(long, value_name = "FILE", default_value = "plan.json")]
    plan_file: PathBuf,

    /// Branch to record
    #[arg(short, long, value_name = "NAME", default_value = "main")]
    branch: String,

    /// Commit to record
    #[arg(short, long, value_name = "ID", default_value = service::NO_COMMIT)]
    commit: String,

    /// Message to record
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,

    /// Return when the build has been submitted
    #[arg(long)]
    no_watch: bool,

    /// Output format [default: progress on a terminal, otherwise human]
    #[arg(long, value_enum)]
    format: Option<Format>,

    #[command(flatten)]
    org: OrgArgs,
}

pub(super) fn run(args: &Args) -> Outcome<ExitCode> {
    let path = args.plan_file.display();
    let text = std::fs::read_to_string(&args.plan_file).map_err(|error| {
        Failure::input(format_args!("failed to read {path}")).because(error).hint("write it with `hm render`")
    })?;
    let plan = Plan::parse(text).map_err(|invalid| {
        Failure::input(format_args!("the pipeline in {path} is invalid")).details(invalid.problems())
    })?;
    let session = Session::open()?;
    let (org, pipeline) = (session.org(&args.org)?, checked(args.pipeline.clone(), "pipeline")?);
    let of_build = |(name, value): (String, String)| Some((name.strip_prefix(PREFIX)?.to_owned(), value));
    let env: HashMap<String, String> = env::vars_os()
        .filter_map(|(name, value)| of_build((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| !name.is_empty())
        .collect();
    let body = api::CreateBuildRequest {
        branch: args.branch.clone(),
        commit: args.commit.clone(),
        env: Some(env),
        message: args.message.clone(),
        pipeline_ir: Some(plan.ir_json().to_owned()),
        source: Some("api".into()),
        source_b64: Some(String::new()),
        source_sha256: None,
        source_url: None,
    };
    let created = crate::runtime::runtime()?.block_on(session.service.create_build(&org, &pipeline, &body));
    let build = created.map_err(|error| service::refused(&session.config, &org, error.of_submission()))?;
    let place = BuildPlace { org, pipeline: build.pipeline_slug, number: build.number };
    if args.no_watch {
        return print(&format!("submitted build #{}\n", build.number));
    }
    build::watch(&session, place, args.format.unwrap_or_else(|| Format::preferred_here(None)))
}
