//! `hm cloud org`.

use std::process::ExitCode;

use super::{FormatArgs, Session};
use crate::{
    commands::{AnswerFormat, print, print_json, table},
    config,
    failure::{Failure, Outcome},
    pipelines::nearest,
    reporter::text,
};

/// Organizations
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List your organizations; `*` marks the configured one
    List(FormatArgs),
    /// Choose the organization of builds, in your own configuration file
    Switch {
        /// The organization
        #[arg(value_name = "SLUG")]
        slug: String,
    },
}

pub(super) fn run(command: &Command) -> Outcome<ExitCode> {
    let session = Session::open()?;
    let all = session.ask("list your organizations", session.service.organizations())?;
    match command {
        Command::List(FormatArgs { format: AnswerFormat::Json }) => print_json(&all),
        Command::List(_) => {
            let configured = session.config.org.as_ref().map(|org| org.value.as_str());
            let mark = |slug: &str| if Some(slug) == configured { "*" } else { " " };
            let row = |slug: &str, name: &str| vec![format!("{} {}", mark(slug), text::clean(slug)), text::clean(name)];
            print(&table(&all.iter().map(|org| row(&org.slug, &org.name)).collect::<Vec<_>>()))
        }
        Command::Switch { slug } => {
            if !all.iter().any(|org| org.slug == *slug) {
                let known: Vec<String> = all.into_iter().map(|org| org.slug).collect();
                let failure = Failure::input(format_args!("you are in no organization `{slug}`"));
                return Err(match nearest(slug, &known) {
                    Some(near) => failure.hint(format_args!("did you mean `{near}`?")),
                    None => failure.hint("run `hm cloud org list`"),
                });
            }
            let file = config::set_users(&[("cloud.org", slug)])?;
            print(&format!("builds belong to {slug} from now on (recorded in {})\n", file.display()))
        }
    }
}
