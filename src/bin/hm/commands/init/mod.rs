//! `hm init`: writes the first pipeline of a project.

mod kind;

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use hm_exec::project::{CONFIG_BYTES, ProjectDir};
use kind::Kind;

use super::print;
use crate::{
    args::existing_dir,
    failure::{Failure, Outcome},
};

/// The directory of pipelines.
const DIR: &str = ".hm";

/// What interpreters write next to pipelines.
const IGNORED: [&str; 2] = ["__pycache__/", "node_modules/"];

/// Create a pipeline for a project
///
/// Writes `.hm/ci.py` or `.hm/ci.ts`, which test and check the project with the tools of its language, and
/// `.hm/.gitignore`. Other files are not changed.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The kind of project [default: recognised by files such as Cargo.toml]
    #[arg(short, long, value_enum, value_name = "KIND")]
    template: Option<Kind>,

    /// The directory of the project
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,

    /// Overwrite the file, or add it to the project's other pipelines
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(args: &Args) -> Outcome<ExitCode> {
    let dir = existing_dir(&args.dir)?;
    let project = ProjectDir::open(&dir)?;
    let kind = args.template.map_or_else(|| recognise(&dir), Ok)?;
    let has_dir = fs::symlink_metadata(dir.join(DIR)).is_ok();
    let existing = if has_dir { pipelines(&project)? } else { Vec::new() };
    check(&existing, kind, args.force)?;

    let path = Path::new(DIR).join(kind.file_name());
    let failed = |error: std::io::Error| {
        Failure::infrastructure(format_args!("failed to write {}", dir.join(&path).display())).because(error)
    };
    if !has_dir {
        fs::create_dir(dir.join(DIR)).map_err(failed)?;
    }
    let ignored = Path::new(DIR).join(".gitignore");
    let rules = project.read_text_if_any(&ignored, CONFIG_BYTES)?.unwrap_or_default();
    write(&dir.join(&path), kind.pipeline()).map_err(failed)?;
    if let Some(rules) = with_ignored(rules) {
        write(&dir.join(ignored), &rules).map_err(failed)?;
    }
    print(&format!(
        "created {}\nnext: `hm plan` shows its steps, and `hm run` runs them\n",
        args.dir.join(path).display()
    ))
}

/// Returns the kind of the project in `dir`.
fn recognise(dir: &Path) -> Outcome<Kind> {
    let failed = |error| Failure::input(format_args!("failed to list {}", dir.display())).because(error);
    let entries = fs::read_dir(dir).map_err(|error| failed(anyhow::Error::from(error)))?;
    let names: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    match *Kind::detect(&names) {
        [kind] => Ok(kind),
        [] => Err(Failure::input(format_args!("no known kind of project in {}", dir.display()))
            .hint(format_args!("name one with `-t KIND`: {}", kind::names()))),
        ref several => {
            let marks: Vec<&str> = several.iter().map(|kind| kind.mark()).collect();
            Err(Failure::input(format_args!("{} has {}", dir.display(), marks.join(" and ")))
                .hint(format_args!("name the kind of project with `-t KIND`: {}", kind::names())))
        }
    }
}

/// Returns the names of the pipelines' files.
fn pipelines(project: &ProjectDir) -> Outcome<Vec<String>> {
    let names = project.names(DIR)?.into_iter().filter_map(|name| name.into_string().ok());
    let is_pipeline = |name: &String| {
        let end = Path::new(name).extension().and_then(|end| end.to_str());
        !name.starts_with(['_', '.']) && matches!(end, Some("py" | "json" | "ts" | "mts"))
    };
    Ok(names.filter(is_pipeline).collect())
}

/// Returns an error if the pipeline must not be written next to the existing ones.
fn check(existing: &[String], kind: Kind, force: bool) -> Outcome<()> {
    let Some(first) = existing.first() else { return Ok(()) };
    let name = kind.file_name();
    let stem = |name: &str| Path::new(name).file_stem().map(ToOwned::to_owned);
    if !force {
        let what = if existing.iter().any(|existing| existing == name) { "overwrites it" } else { "adds another one" };
        return Err(Failure::input(format_args!("the project has a pipeline: {DIR}/{first}"))
            .hint(format_args!("`hm init --force` {what}: {DIR}/{name}")));
    }
    if let Some(same) = existing.iter().find(|existing| stem(existing) == stem(name) && *existing != name) {
        return Err(Failure::input(format_args!("{DIR}/{same} would have the name of the new pipeline"))
            .hint(format_args!("rename or remove {DIR}/{same}")));
    }
    Ok(())
}

/// Adds what interpreters write to ignore rules. Returns `None` if it is there.
fn with_ignored(mut rules: String) -> Option<String> {
    let missing: Vec<_> = IGNORED.into_iter().filter(|rule| !rules.lines().any(|line| line.trim() == *rule)).collect();
    if !rules.is_empty() && !rules.ends_with('\n') {
        rules.push('\n');
    }
    missing.iter().for_each(|rule| rules.extend([*rule, "\n"]));
    (!missing.is_empty()).then_some(rules)
}

/// Writes a file, whole or not at all. A link in its place is replaced, not followed.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;

    let dir = path.parent().unwrap_or(path);
    let readable = fs::Permissions::from_mode(0o666);
    let mut file = tempfile::Builder::new().permissions(readable).tempfile_in(dir)?;
    file.write_all(text.as_bytes())?;
    file.persist(path).map(drop).map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignore_rules_are_added_once_to_those_that_are_there() {
        assert_eq!(with_ignored(String::new()).unwrap(), "__pycache__/\nnode_modules/\n");
        assert_eq!(with_ignored("x\nnode_modules/".into()).unwrap(), "x\nnode_modules/\n__pycache__/\n");
        assert_eq!(with_ignored("node_modules/\n__pycache__/\n".into()), None);
    }
}
