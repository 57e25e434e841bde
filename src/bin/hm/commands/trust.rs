//! `hm trust`.

use std::{path::Path, process::ExitCode};

use hm_exec::{Plan, plan::BindOptions};

use super::print;
use crate::{
    args::SourceArgs,
    consent::{self, Ask, grants},
    failure::{Failure, Outcome},
    pipelines::{self, Source},
    remote,
    render::{text, to_stderr},
};

const LONG_HELP: &str = "\
Examples:
  hm trust               allow what this project asks for, and show it
  hm trust ci            only what its hm.toml and the pipeline ci ask for
  hm trust --list        what is allowed, by project
  hm trust --revoke      ask again

A project asks when it names what lies beyond the sandbox: `runner: \"process\"`, an image in a file outside of it, and in its
.hm/hm.toml the daemon of [docker], the programs of [vm], and all of [remote] but `jobs`. What you name yourself, on the command
line, in the environment or in ~/.config/hm/hm.toml, needs no consent.

Consent is to these keys and their values, for this directory. A step that is edited asks for nothing new. For one run there is
`hm run --trust`, or HM_TRUST=1. Consent is recorded in $XDG_STATE_HOME/hm/trust (default: ~/.local/state/hm/trust).";

/// Allows what a project asks for beyond the sandbox
///
/// Until then, `hm run` asks or refuses, and other commands ignore it.
#[derive(Debug, clap::Args)]
#[command(after_long_help = LONG_HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    source: SourceArgs,

    /// Show what is allowed, by project
    #[arg(long, conflicts_with_all = ["revoke", "pipeline", "file", "dir"])]
    list: bool,

    /// Allow nothing any more
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
    let source = Source::of(&args.source)?;
    let project = source.project()?;
    let mut asks = remote::all_asks(&project)?;
    let options = BindOptions::default();
    if args.source.file.is_some() || args.source.pipeline.is_some() {
        let found = pipelines::find(&args.source)?;
        let plan = pipelines::parse(&found.definition)?;
        asks.extend(found.asks(&plan, &options));
    } else if source.hm_dir.is_some() {
        for definition in source.list()? {
            match Plan::parse(&*definition.ir_json) {
                Ok(plan) => asks.extend(consent::of_plan(&plan, &options, project.path())),
                Err(_) => to_stderr(&format!(
                    "warning: pipeline `{}` is invalid, and not looked at: `hm render` says why",
                    text::clean(&definition.name)
                )),
            }
        }
    }
    let mut shown: Vec<&Ask> = Vec::new();
    for ask in &asks {
        if !shown.contains(&ask) {
            shown.push(ask);
        }
    }
    let place = text::clean(&project.path().to_string_lossy());
    if shown.is_empty() {
        return print(&format!("{place} asks for nothing beyond the sandbox\n"));
    }
    grants::grant(project.path(), &shown)?;
    let mut told = format!("{place} may do this from now on (`hm trust --revoke` takes it back):\n");
    for ask in shown {
        told.push_str(&format!("  - {}\n", text::clean(&ask.line())));
    }
    print(&told)
}

fn list() -> Outcome<ExitCode> {
    let mut told = String::new();
    for record in grants::all()? {
        told.push_str(&format!("{}\n", text::clean(&record.project)));
        for granted in &record.granted {
            told.push_str(&format!(
                "  - {} (since {})\n",
                text::clean(&granted.what),
                granted.since.format("%Y-%m-%d")
            ));
        }
    }
    print(&told)
}

fn revoke(dir: Option<&Path>) -> Outcome<ExitCode> {
    let dir = dir.unwrap_or(Path::new("."));
    // A directory that has been removed may still have recorded consent.
    let project = match Source::locate(Some(dir)) {
        Ok(source) => source.root().to_owned(),
        Err(_) => std::path::absolute(dir)
            .map_err(|error| Failure::input(format_args!("{} is no path", dir.display())).because(error))?,
    };
    let place = text::clean(&project.to_string_lossy());
    print(&match grants::revoke(&project)? {
        true => format!("{place} may do nothing beyond the sandbox any more\n"),
        false => format!("nothing was allowed to {place}\n"),
    })
}
