//! `hm cloud pipeline`.

use std::process::ExitCode;

use super::{FormatArgs, OrgArgs, Session, checked};
use crate::{
    commands::{AnswerFormat, print, print_json, table},
    failure::Outcome,
    reporter::text,
};

/// Pipelines that the service knows
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List an organization's pipelines
    List {
        #[command(flatten)]
        org: OrgArgs,
        #[command(flatten)]
        format: FormatArgs,
    },
    /// Print a pipeline as JSON
    Show {
        /// The pipeline
        #[arg(value_name = "SLUG")]
        slug: String,
        #[command(flatten)]
        org: OrgArgs,
    },
}

pub(super) fn run(command: &Command) -> Outcome<ExitCode> {
    let session = Session::open()?;
    match command {
        Command::List { org, format } => {
            let org = session.org(org)?;
            let all = session.ask("list the pipelines", session.service.pipelines(&org))?;
            if format.format == AnswerFormat::Json {
                return print_json(&all);
            }
            let rows = all.iter().map(|it| {
                vec![text::clean(&it.slug), text::clean(&it.name), text::clean(it.repo_name.as_deref().unwrap_or(""))]
            });
            print(&table(&rows.collect::<Vec<_>>()))
        }
        Command::Show { slug, org } => {
            let (org, slug) = (session.org(org)?, checked(slug.clone(), "pipeline")?);
            print_json(&session.ask("look up the pipeline", session.service.pipeline(&org, &slug))?)
        }
    }
}
