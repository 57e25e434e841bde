//! `hm trust`.

use std::{path::Path, process::ExitCode};

use hm_exec::{Plan, plan::BindOptions};

use super::print;
use crate::{
    args::SourceArgs,
    config,
    failure::{Failure, Outcome},
    pipelines::{self, Source},
    reporter::{text, to_stderr},
    trust::{self, Permission, grants},
};

const LONG_HELP: &str = "\
Examples:
  hm trust               allow what this project requests, and list it
  hm trust ci            allow only what its hm.toml and the pipeline ci request
  hm trust --list        list what is allowed, by project
  hm trust --revoke      revoke what is allowed to this project

A project requests access beyond the sandbox by `runner: \"process\"`, by an image in a file outside of the
project, by `host_ports` of a step, and in its .hm/hm.toml or .hm/config.toml by `backend`, the URLs of [cloud],
`share` of [cache], the daemon of [docker], the programs of [vm], and all of [remote] except `jobs`. What you set
yourself, on the command line, in the environment or in ~/.config/hm/, is always allowed.

Consent applies to these keys and their values in this directory; an edited step needs no new consent. To allow
a single run, use `hm run --trust` or HM_TRUST=1. Consent is recorded in $XDG_STATE_HOME/hm/trust (default:
~/.local/state/hm/trust).";

/// Allow what a project requests beyond the sandbox
///
/// Until it is allowed, `hm run` asks for consent or fails, and other commands ignore the request.
#[derive(Debug, clap::Args)]
#[command(after_long_help = LONG_HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    source: SourceArgs,

    /// List what is allowed, by project
    #[arg(long, conflicts_with_all = ["revoke", "pipeline", "file", "dir"])]
    list: bool,

    /// Revoke what is allowed to this project
    #[arg(long, conflicts_with_all = ["pipeline", "file"])]
    revoke: bool,
}

pub(crate) fn run(args: &Args) -> Outcome<ExitCode> {
    if args.list {
        return list();
    }
    if args.revoke {
        return revoke(args.source.dir.as_deref());
    }
    args.source.check_one_pipeline()?;
    let source = Source::of(&args.source)?;
    let project = source.project()?;
    let mut permissions = config::all_permissions(&project)?;
    let options = BindOptions::default();
    if args.source.file.is_some() || args.source.pipeline.is_some() {
        let found = pipelines::find(&args.source)?;
        let plan = pipelines::parse(&found.definition)?;
        permissions.extend(found.permissions(&plan, &options));
    } else if source.hm_dir.is_some() {
        for definition in source.list()? {
            match Plan::parse(&*definition.ir_json) {
                Ok(plan) => permissions.extend(trust::of_plan(&plan, &options, project.path())),
                Err(_) => to_stderr(&format!(
                    "warning: skipping invalid pipeline `{}`: see `hm render` for the reason",
                    text::clean(&definition.name)
                )),
            }
        }
    }
    let mut shown: Vec<&Permission> = Vec::new();
    for permission in &permissions {
        if !shown.contains(&permission) {
            shown.push(permission);
        }
    }
    let place = text::clean(&project.path().to_string_lossy());
    if shown.is_empty() {
        return print(&format!("{place} requests nothing beyond the sandbox\n"));
    }
    grants::grant(project.path(), &shown)?;
    let mut out = format!("allowed to {place} from now on (revoke it with `hm trust --revoke`):\n");
    for permission in shown {
        out.push_str(&format!("  - {}\n", text::clean(&permission.line())));
    }
    print(&out)
}

fn list() -> Outcome<ExitCode> {
    let mut out = String::new();
    for record in grants::all()? {
        out.push_str(&format!("{}\n", text::clean(&record.project)));
        for granted in &record.granted {
            out.push_str(&format!("  - {} (since {})\n", text::clean(&granted.what), granted.since.format("%Y-%m-%d")));
        }
    }
    print(&out)
}

fn revoke(dir: Option<&Path>) -> Outcome<ExitCode> {
    let dir = dir.unwrap_or(Path::new("."));
    // A directory that has been removed may still have recorded consent.
    let project = match Source::locate(Some(dir)) {
        Ok(source) => source.root().to_owned(),
        Err(_) => std::path::absolute(dir)
            .map_err(|error| Failure::input(format_args!("invalid path {}", dir.display())).because(error))?,
    };
    let place = text::clean(&project.to_string_lossy());
    print(&match grants::revoke(&project)? {
        true => format!("revoked all that was allowed to {place}\n"),
        false => format!("nothing was allowed to {place}\n"),
    })
}
