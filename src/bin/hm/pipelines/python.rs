//! Pipelines written in Python: `.hm/*.py`, rendered by the package `harmont` in the user's `python3`.
//!
//! The files run in a sandbox with the source directory as their working directory. Everything that they
//! print goes to stderr.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use hm_exec::quote::quote;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Definition, Origin, environment,
    interpreter::{self, Interpreter, Program},
    rendering::Rendering,
};
use crate::{
    failure::{Failure, Outcome},
    reporter::to_stderr,
};

/// The version of `harmont`'s envelope that this module supports.
const ENVELOPE_VERSION: &str = "1";

#[derive(Deserialize)]
struct Answer {
    envelope: Option<String>,
    /// Variables that the files tried to read and that were not set.
    #[serde(default)]
    missed: Vec<String>,
}

#[derive(Deserialize)]
struct Envelope {
    schema_version: String,
    pipelines: Vec<Registered>,
}

#[derive(Deserialize)]
struct Registered {
    slug: String,
    #[serde(default)]
    name: Option<String>,
    definition: Box<RawValue>,
}

/// The directories of a project.
#[derive(Debug)]
pub(super) struct Project<'a> {
    /// The directory that contains `.hm/`.
    pub(super) dir: &'a Path,
    /// The source directory.
    pub(super) source: &'a Path,
    /// The repository that contains the project.
    pub(super) checkout: &'a Path,
}

/// Runs `files` and collects the pipelines that they register.
pub(super) fn render(files: &[PathBuf], project: &Project<'_>) -> Outcome<Vec<Definition>> {
    for file in files {
        check(file, project.dir)?;
    }
    let name = interpreter::name();
    let shown = name.to_string_lossy().into_owned();
    let program =
        interpreter::find(&name, Some(project.checkout)).map_err(|error| cannot_start(&shown, files, error))?;
    let is_of_the_checkout = matches!(program, Program::OfTheCheckout(_));
    let python = Interpreter::of(program, project.checkout)?;
    let output = rendering(python, files, project, is_of_the_checkout).run()?;
    let answer: Answer = serde_json::from_slice(&output).map_err(|error| {
        Failure::input(format_args!("`{shown}` ended without printing its pipelines")).because(error)
    })?;
    let withheld = environment::withheld(&answer.missed);
    if !withheld.is_empty() {
        let names = withheld.join(",");
        to_stderr(&format!(
            "note: {} read variables that are hidden from pipelines: set {}={names} to show them",
            list(files),
            environment::MORE
        ));
    }
    let Some(envelope) = answer.envelope else {
        let what = format_args!("`{shown}` does not have the package `harmont`, which {} needs", list(files));
        return Err(Failure::input(what).hint(format_args!(
            "run `{} -m pip install harmont`, or set HM_PYTHON to a Python that has it",
            quote(&shown)
        )));
    };
    let envelope: Envelope = serde_json::from_str(&envelope).map_err(|error| {
        Failure::input("failed to read the output of harmont")
            .because(error)
            .hint("run `pip install --upgrade harmont`")
    })?;
    if envelope.schema_version != ENVELOPE_VERSION {
        return Err(Failure::input(format_args!(
            "harmont's envelope has version {}, but this hm supports version {ENVELOPE_VERSION}",
            envelope.schema_version
        ))
        .hint("install a version of harmont that fits this hm"));
    }
    let definitions = envelope.pipelines.into_iter().map(|registered| Definition {
        title: registered.name.filter(|name| *name != registered.slug),
        name: registered.slug,
        ir_json: registered.definition.get().to_owned(),
        origin: Origin::Python,
    });
    Ok(definitions.collect())
}

fn rendering<'a>(
    python: Interpreter,
    files: &[PathBuf],
    project: &Project<'a>,
    is_of_the_checkout: bool,
) -> Rendering<'a> {
    let Interpreter { program, mut places, user_base } = python;
    let mut env = environment::shown(&program);
    env.extend(user_base.map(|base| ("PYTHONUSERBASE".into(), base.into())));
    // The directories of the user's packages, and of the libraries of an interpreter that is not installed.
    for (name, only_shown) in [("PYTHONPATH", false), ("LD_LIBRARY_PATH", true)] {
        let dirs = env::var_os(name).unwrap_or_default();
        let dirs = environment::absolute(&dirs);
        let dirs = dirs.filter(|dir| !only_shown || places.iter().any(|place| dir.starts_with(place)));
        let (broad, dirs): (Vec<PathBuf>, Vec<PathBuf>) = dirs.partition(|dir| interpreter::is_broad(dir));
        for dir in broad {
            tracing::warn!(
                dir = %dir.display(),
                "hiding a directory of {name} from pipelines: it contains more than packages"
            );
        }
        if let Ok(value) = env::join_paths(&dirs)
            && !dirs.is_empty()
        {
            env.push((name.into(), value));
            places.extend(dirs);
        }
    }
    let mut argv = vec![program.into_os_string(), "-B".into(), "-c".into(), include_str!("render_pipelines.py").into()];
    argv.extend(files.iter().map(|file| file.clone().into_os_string()));
    Rendering {
        files: list(files),
        language: "python",
        argv,
        env,
        project: project.dir,
        dir: project.source,
        places,
        is_of_the_checkout,
    }
}

/// Refuses a path that is not a file of the project.
fn check(file: &Path, project: &Path) -> Outcome<()> {
    let shown = list(std::slice::from_ref(&file));
    let real = file.canonicalize();
    let real = real.map_err(|error| Failure::input(format_args!("failed to read {shown}")).because(error))?;
    if !real.starts_with(project) {
        return Err(Failure::input(format_args!(
            "{shown} is a link that leads out of the project, to {}",
            real.display()
        ))
        .hint("copy the file into .hm"));
    }
    if fs::metadata(&real).is_ok_and(|metadata| metadata.is_file()) {
        return Ok(());
    }
    Err(Failure::input(format_args!("{shown} is not a regular file"))
        .hint("replace it with a Python file, or remove it"))
}

fn cannot_start(python: &str, files: &[PathBuf], error: io::Error) -> Failure {
    let failure =
        Failure::input(format_args!("failed to start `{python}`, which {} needs", list(files))).because(error);
    failure.hint("install Python 3 and its package harmont (`pip install harmont`), or set HM_PYTHON to a Python")
}

fn list(files: &[impl AsRef<Path>]) -> String {
    let name = |file: &Path| file.file_name().unwrap_or(file.as_os_str()).to_string_lossy().into_owned();
    files.iter().map(|file| format!(".hm/{}", name(file.as_ref()))).collect::<Vec<_>>().join(", ")
}
