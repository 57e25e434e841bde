//! Pipelines written in TypeScript: `.hm/*.ts` and `.hm/*.mts`, rendered by the package `@harmont/hm` in the
//! user's Node or Bun.
//!
//! The files run in a sandbox with the source directory as their working directory. Nothing is written next
//! to them: types are removed in memory, and the package is found by a hook. Everything that they print goes
//! to stderr.

use std::{
    env,
    ffi::OsString,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{
    Definition, Origin, bundled,
    envelope::Answer,
    environment,
    interpreter::{self, Program},
    python::{Project, check, list},
    rendering::Rendering,
};
use crate::failure::{Failure, Outcome};

/// The directory of the package `@harmont/hm`, for projects that do not have it in `node_modules`.
const PACKAGE: &str = "HM_HARMONT_TS";

/// The variable that names the program.
const PROGRAM: &str = "HM_NODE";

/// The programs to try, if the user names none.
const PROGRAMS: [&str; 2] = ["node", "bun"];

/// The options of a program, before the script. Node reports errors at their place in the source with its
/// own; it refuses options that it does not know, so these are as old as the language. Bun must not install
/// packages, and must not read variables from files of the project, which Node does not do either.
fn options(program: &Path) -> &'static [&'static str] {
    match program.file_stem() {
        Some(name) if name == "bun" => &["--no-install", "--no-env-file", "--eval"],
        _ => &["--enable-source-maps", "--input-type=module", "--eval"],
    }
}

/// Runs `files` and collects the pipelines that they export.
pub(super) fn render(files: &[PathBuf], project: &Project<'_>) -> Outcome<Vec<Definition>> {
    for file in files {
        check(file, project.dir)?;
    }
    let listed = list(files);
    let names = match env::var_os(PROGRAM).filter(|name| !name.is_empty()) {
        Some(name) => vec![name],
        None => PROGRAMS.map(OsString::from).into(),
    };
    let named = env::var_os(PACKAGE).map(PathBuf::from).filter(|dir| dir.is_absolute());
    let own = if named.is_some() { None } else { bundled::unpack().map_err(|error| unwritten(&listed, error))? };
    let package = named.or_else(|| own.as_ref().map(|dir| dir.path().to_owned()));
    let mut unusable = None;
    for name in names {
        let shown = name.to_string_lossy().into_owned();
        let found = interpreter::find(&name, Some(project.checkout));
        let program = match found.and_then(|program| real_program(program, project.checkout)) {
            Ok(program) => program,
            Err(error) => {
                let what = format_args!("failed to start `{shown}`, which {listed} needs");
                unusable.get_or_insert(Failure::input(what).because(error));
                continue;
            }
        };
        let mut rendering = rendering(program, files, project, package.clone());
        if own.is_some() {
            // Its directory is another one each time, so nothing would be found.
            rendering.kept = None;
        }
        let output = rendering.run()?;
        let answer = Answer::parse(&output, &shown)?;
        if let Some(version) = &answer.too_old {
            let what = format_args!("`{shown}` is {version}, which is too old for {listed}");
            unusable.get_or_insert(Failure::input(what));
            continue;
        }
        return answer.definitions(&listed, &Origin::TypeScript)?.ok_or_else(|| lacking(&listed));
    }
    let unusable = unusable.unwrap_or_else(|| Failure::input(format_args!("there is no program for {listed}")));
    Err(unusable.hint(format_args!(
        "install Node 22.15 or later, or Bun, for example from npm's packages `node` and `bun`, or set {PROGRAM} to one"
    )))
}

fn unwritten(files: &str, error: io::Error) -> Failure {
    Failure::infrastructure(format_args!("failed to write the package `@harmont/hm`, which {files} needs"))
        .because(error)
}

/// Returns the failure for `files` without the package.
fn lacking(files: &str) -> Failure {
    let what = format!("the package `@harmont/hm`, which {files} needs");
    let failure = match env::var_os(PACKAGE).filter(|dir| !dir.is_empty()).map(PathBuf::from) {
        None => Failure::input(format_args!("the project does not have {what}")),
        Some(dir) if dir.is_absolute() => {
            Failure::input(format_args!("neither the project nor {PACKAGE}={} has {what}", dir.display()))
        }
        Some(dir) => Failure::input(format_args!("the project does not have {what}"))
            .because(anyhow::anyhow!("{PACKAGE}={} is no absolute path", dir.display())),
    };
    // npm does not have it yet.
    failure.hint(format_args!(
        "set {PACKAGE} to the directory `harmont-ts/src` of the crate hm-dsl-engine, use an `hm` with the feature \
         `bundled-dsl`, or write the pipeline in Python"
    ))
}

fn rendering<'a>(
    program: Program,
    files: &[PathBuf],
    project: &Project<'a>,
    package: Option<PathBuf>,
) -> Rendering<'a> {
    let (program, is_of_the_checkout) = match program {
        Program::OfTheUser(program) => (program, false),
        Program::OfTheCheckout(program) => (program, true),
    };
    let env = environment::shown(&program);
    // What the project names must not show anything else of the user's.
    let mut places = if is_of_the_checkout { Vec::new() } else { vec![program.clone()] };
    // The answer goes to descriptor 3, and everything else to stderr.
    let mut argv: Vec<OsString> = ["/bin/sh", "-c", r#"exec "$@" 3>&1 1>&2"#, "sh"].map(Into::into).into();
    let options = options(&program);
    argv.push(program.into());
    argv.extend(options.iter().map(OsString::from));
    argv.extend([include_str!("render_pipelines.mjs").into(), project.dir.into()]);
    argv.push(package.clone().unwrap_or_default().into());
    argv.extend(files.iter().map(|file| file.clone().into_os_string()));
    places.extend(package);
    Rendering {
        files: list(files),
        language: "typescript",
        variable: PROGRAM,
        argv,
        env,
        project: project.dir,
        dir: project.source,
        places,
        is_of_the_checkout,
        kept: project.kept,
    }
}

/// Resolves the links of a program. What version managers install in its place, a script or a link to a
/// program that looks at its own name, is asked where the program is, from `/`.
fn real_program(program: Program, checkout: &Path) -> io::Result<Program> {
    let Program::OfTheUser(path) = program else { return Ok(program) };
    let named = path;
    let path = named.canonicalize()?;
    let mut start = [0; 2];
    let is_script = File::open(&path)?.read_exact(&mut start).is_ok() && start == *b"#!";
    if !is_script && path.file_name() == named.file_name() {
        return Ok(Program::OfTheUser(path));
    }
    let path_list = env::var_os("PATH").unwrap_or_default();
    let dirs = environment::absolute(&path_list);
    let dirs = dirs.filter(|dir| !dir.canonicalize().is_ok_and(|dir| dir.starts_with(checkout)));
    let mut ask = Command::new(&named);
    ask.args(["-p", "process.execPath"]).current_dir("/").stdin(Stdio::null());
    ask.env("PATH", env::join_paths(dirs).unwrap_or_default()).env_remove("NODE_OPTIONS").env_remove("PWD");
    let answer = ask.output()?.stdout;
    let real = PathBuf::from(String::from_utf8_lossy(&answer).trim_end());
    if real.is_absolute() { interpreter::find(real.as_os_str(), Some(checkout)) } else { Ok(Program::OfTheUser(path)) }
}
