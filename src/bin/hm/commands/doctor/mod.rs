//! `hm doctor`.

mod checks;
mod hosted;

use std::process::ExitCode;

use checks::{Check, Finding};
use hm_exec::runner::Probe;

use super::{AnswerFormat, print, print_json};
use crate::{
    commands::runners,
    config::{Config, ConfigArgs},
    exit_code,
    failure::Outcome,
    reporter::{style::Style, text},
};

/// Check this machine and show how to fix problems
///
/// Exits with 0 if nothing is missing that a runner needs, otherwise with 3.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: AnswerFormat,

    #[command(flatten)]
    config: ConfigArgs,
}

pub(crate) fn run(args: &Args) -> Outcome<ExitCode> {
    let mut checks = checks::all();
    let resolved = runners::resolve(&args.config);
    let mode = resolved.as_ref().map(|config| config.cache_mode.clone()).unwrap_or_default();
    checks.push(Check { name: "traces".into(), finding: checks::traces(&mode) });
    match resolved {
        Ok(config) => checks.extend(runner_checks(config)?),
        // One of the checks says what is wrong.
        Err(_) if checks.iter().any(|check| check.name == checks::CONFIGURATION && is_bad(check)) => {
            checks.push(Check {
                name: "runners".into(),
                finding: Finding::Lacking {
                    what: "not checked, because the configuration is invalid".into(),
                    fix: "correct it, then run `hm doctor` again".into(),
                },
            });
        }
        Err(failure) => return Err(failure),
    }
    checks.extend(hosted::check().map(|finding| Check { name: "hosted service".into(), finding }));
    let works = !checks.iter().any(is_bad);
    match args.format {
        AnswerFormat::Text => print(&as_text(&checks))?,
        AnswerFormat::Json => print_json(&checks)?,
    };
    Ok(if works { ExitCode::SUCCESS } else { ExitCode::from(exit_code::COULD_NOT_RUN) })
}

fn is_bad(check: &Check) -> bool {
    matches!(check.finding, Finding::Bad { .. })
}

/// Tries each runner.
fn runner_checks(config: Config) -> Outcome<Vec<Check>> {
    let (has_engine, has_daemon) = (config.endpoint.is_some(), config.docker_host.is_some());
    let runners = runners::try_all(config)?;
    let checks = runners.into_iter().map(|(runner, probe)| Check {
        name: format!("runner {}", runner.name),
        finding: match probe {
            Probe::Usable { note, .. } => Finding::Good(note.unwrap_or_else(|| "available".into())),
            // A user who names no engine or daemon does not need one, and virtual machines are optional.
            Probe::Unusable { reason, hint, .. }
                if !has_engine && *runner.name == *"cloud"
                    || !has_daemon && *runner.name == *"docker"
                    || *runner.name == *"vm" =>
            {
                Finding::Lacking { what: reason, fix: hint }
            }
            Probe::Unusable { reason, hint, .. } => Finding::Bad { what: reason, fix: hint },
        },
    });
    Ok(checks.collect())
}

fn as_text(checks: &[Check]) -> String {
    let style = Style::of(&std::io::stdout());
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let mut out = String::new();
    for Check { name, finding } in checks {
        let (mark, what, fix) = match finding {
            Finding::Good(what) => (style.good("ok  "), what, None),
            Finding::Lacking { what, fix } => (style.odd("warn"), what, Some(fix)),
            Finding::Bad { what, fix } => (style.bad("FAIL"), what, Some(fix)),
        };
        out.push_str(&format!("{mark}  {name:width$}  {}\n", text::clean(what)));
        for line in fix.iter().flat_map(|fix| fix.lines()) {
            out.push_str(&format!("      {:width$}  -> {}\n", "", text::clean(line)));
        }
    }
    out
}
