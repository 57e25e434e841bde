//! The user's consent to what a project requests beyond the sandbox, similar to `direnv allow` and `mise
//! trust`.
//!
//! Code that knows what a project requests (from its `hm.toml`, from a pipeline) makes a list of
//! [`Permission`]s, and calls [`require`] before anything happens, or [`report_ignored`] in commands that
//! never ask. [`grants`] records consent for a directory and for each request separately: an edited step
//! requests nothing new, and only a new request is shown.

pub(crate) mod grants;
mod permission;
mod pipeline;

use std::{
    env,
    io::{self, IsTerminal, Write},
    path::Path,
};

use hm_exec::quote::quote;
pub(crate) use permission::Permission;
pub(crate) use pipeline::{of_image, of_plan, of_step_arg};

use crate::{
    args::SourceArgs,
    failure::{Failure, Outcome},
    reporter::{text, to_stderr},
};

/// The environment variable that gives consent as long as it is set.
pub(crate) const VARIABLE: &str = "HM_TRUST";

/// Returns an error unless the user consents to all of `permissions`: by `--trust` (`trusts`), by
/// [`VARIABLE`], by recorded consent, or by an answer on the terminal, which is recorded. `project` is the
/// directory that requests them, and `command` is the command that gives consent permanently.
pub(crate) fn require(project: &Path, permissions: &[Permission], trusts: bool, command: &str) -> Outcome<bool> {
    let missing = missing(project, permissions, trusts)?;
    if missing.is_empty() {
        return Ok(false);
    }
    let head = format!("{} requests access beyond the sandbox", project.display());
    let terminal = io::stdin().is_terminal() && io::stderr().is_terminal();
    if terminal && prompt(&head, &missing)? {
        if let Err(failure) = grants::grant(project, &missing) {
            to_stderr(&format!("warning: hm will ask again in the next run: {failure}"));
        }
        return Ok(true);
    }
    Err(Failure::input(format_args!("{head}, which you have not allowed"))
        .details(missing.iter().map(|permission| permission.line()))
        .hint(format_args!(
            "if you trust this project, run `{command}`; for a single run, use `hm run --trust` or {VARIABLE}=1"
        )))
}

/// Returns whether any of `permissions` lacks consent. If so, prints one line which says that they are
/// ignored.
pub(crate) fn report_ignored(project: &Path, permissions: &[Permission]) -> Outcome<bool> {
    let missing = missing(project, permissions, false)?;
    if missing.is_empty() {
        return Ok(false);
    }
    let names: Vec<String> = missing.iter().map(|permission| permission.name()).collect();
    to_stderr(&format!(
        "note: ignoring what you have not allowed (see `hm trust`): {}",
        text::clean(&names.join(", "))
    ));
    Ok(true)
}

/// Returns the requests that lack consent.
pub(crate) fn missing<'a>(project: &Path, permissions: &'a [Permission], trusts: bool) -> Outcome<Vec<&'a Permission>> {
    // If there is nothing to ask for, the records are not read.
    if permissions.is_empty() || trusts || variable_trusts()? {
        return Ok(Vec::new());
    }
    let granted = grants::of(project)?;
    Ok(permissions.iter().filter(|permission| !granted.contains(&permission.digest())).collect())
}

/// Returns whether [`VARIABLE`] consents to everything.
pub(crate) fn variable_trusts() -> Outcome<bool> {
    match env::var_os(VARIABLE).as_deref().map(|value| value.to_str()) {
        None | Some(Some("" | "0")) => Ok(false),
        Some(Some("1")) => Ok(true),
        Some(_) => Err(Failure::input(format_args!("invalid value of {VARIABLE}: expected 1 or 0"))
            .hint(format_args!("set {VARIABLE}=1 to allow what the project requests"))),
    }
}

/// Asks on the terminal.
fn prompt(head: &str, permissions: &[&Permission]) -> Outcome<bool> {
    let mut question = format!("{}:\n", text::clean(head));
    for permission in permissions {
        question.push_str(&format!("  - {}\n", text::clean(&permission.line())));
    }
    question.push_str("Allow this now and in the future? [y/N] ");
    let failed =
        |error| Failure::infrastructure("failed to prompt on the terminal").because(anyhow::Error::from(error));
    let mut stderr = io::stderr().lock();
    stderr.write_all(question.as_bytes()).and_then(|()| stderr.flush()).map_err(failed)?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(failed)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// Returns the command that gives consent to what these arguments name.
pub(crate) fn command(args: &SourceArgs) -> String {
    let mut line = "hm trust".to_owned();
    if let Some(dir) = &args.dir {
        line.push_str(&format!(" -d {}", path_word(dir)));
    }
    match (&args.file, &args.pipeline) {
        (Some(file), _) => line.push_str(&format!(" -f {}", path_word(file))),
        (None, Some(pipeline)) => line.push_str(&format!(" -- {}", quote(pipeline))),
        (None, None) => {}
    }
    line
}

/// Returns a path as the value of an option: a path that begins with `-` would be parsed as an option, even
/// if quoted. `-` alone is a value, and means standard input.
fn path_word(path: &Path) -> String {
    let path = path.to_string_lossy();
    if path.starts_with('-') && path != "-" {
        quote(&format!("./{path}")).into_owned()
    } else {
        quote(&path).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_to_type_can_be_pasted() {
        let args = |pipeline: Option<&str>, dir: Option<&str>, file: Option<&str>| SourceArgs {
            pipeline: pipeline.map(Into::into),
            dir: dir.map(Into::into),
            file: file.map(Into::into),
            offline: false,
        };
        assert_eq!(command(&args(None, None, None)), "hm trust");
        assert_eq!(command(&args(Some("ci"), Some("/a b"), None)), "hm trust -d '/a b' -- ci");
        assert_eq!(command(&args(None, None, Some("it's.json"))), r"hm trust -f 'it'\''s.json'");
        assert_eq!(command(&args(Some("-rf"), None, None)), "hm trust -- -rf");
        assert_eq!(command(&args(None, Some("-rf"), Some("-a b"))), "hm trust -d ./-rf -f './-a b'");
        assert_eq!(command(&args(None, None, Some("-"))), "hm trust -f -");
    }
}
