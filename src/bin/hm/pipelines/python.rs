//! Pipelines written in Python: `.hm/*.py`, rendered by the package `harmont` in the user's `python3`.
//!
//! The files run in a sandbox with the source directory as their working directory. Everything that they
//! print goes to stderr.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use hm_exec::quote::quote;

use super::{
    Definition, Origin,
    envelope::Answer,
    environment, harmont_wheel,
    interpreter::{self, Interpreter, Program},
    kept::Kept,
    rendering::Rendering,
};
use crate::failure::{Failure, Outcome};

/// The directories of a project.
#[derive(Debug)]
pub(super) struct Project<'a> {
    /// The directory that contains `.hm/`.
    pub(super) dir: &'a Path,
    /// The source directory.
    pub(super) source: &'a Path,
    /// The repository that contains the project.
    pub(super) checkout: &'a Path,
    /// Whether nothing may be downloaded.
    pub(super) offline: bool,
    /// Earlier renderings, if they are used.
    pub(super) kept: Option<&'a Kept>,
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
    let python = Interpreter::of(program, project.checkout, project.kept)?;
    let listed = list(files);
    let run = |wheel: Option<PathBuf>| {
        let output = rendering(python.clone(), files, project, (is_of_the_checkout, wheel)).run()?;
        Answer::parse(&output, &shown)?.definitions(&listed, &Origin::Python)
    };
    let stored = if python.harmont().is_some() { None } else { harmont_wheel::stored() };
    if let Some(definitions) = run(stored)? {
        return Ok(definitions);
    }
    let lacking = |cause: Failure| {
        Failure::input(format_args!("`{shown}` does not have the package `harmont`, which {listed} needs"))
            .because(anyhow::anyhow!("{cause}"))
            .hint(format_args!(
                "run `{} -m pip install harmont`, or set HM_PYTHON to a Python that has it",
                quote(&shown)
            ))
    };
    let own = (!is_of_the_checkout).then_some(&*python.program);
    let wheel = harmont_wheel::download(own, project.checkout, project.offline).map_err(lacking)?;
    run(Some(wheel))?.ok_or_else(|| lacking(Failure::input("the downloaded package cannot be imported")))
}

fn rendering<'a>(
    python: Interpreter,
    files: &[PathBuf],
    project: &Project<'a>,
    (is_of_the_checkout, wheel): (bool, Option<PathBuf>),
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
    argv.push(project.dir.into());
    argv.push(wheel.clone().unwrap_or_default().into());
    places.extend(wheel);
    argv.extend(files.iter().map(|file| file.clone().into_os_string()));
    Rendering {
        files: list(files),
        language: "python",
        variable: "HM_PYTHON",
        argv,
        env,
        project: project.dir,
        dir: project.source,
        places,
        is_of_the_checkout,
        kept: project.kept,
    }
}

/// Refuses a path that is not a file of the project.
pub(super) fn check(file: &Path, project: &Path) -> Outcome<()> {
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
    Err(Failure::input(format_args!("{shown} is not a regular file")).hint("replace it with a file, or remove it"))
}

fn cannot_start(python: &str, files: &[PathBuf], error: io::Error) -> Failure {
    let failure =
        Failure::input(format_args!("failed to start `{python}`, which {} needs", list(files))).because(error);
    failure.hint("install Python 3 and its package harmont (`pip install harmont`), or set HM_PYTHON to a Python")
}

pub(super) fn list(files: &[impl AsRef<Path>]) -> String {
    let name = |file: &Path| file.file_name().unwrap_or(file.as_os_str()).to_string_lossy().into_owned();
    files.iter().map(|file| format!(".hm/{}", name(file.as_ref()))).collect::<Vec<_>>().join(", ")
}
