//! The compiler errors of a downstream crate with wrong sets of runners. Set `HM_UPDATE_FIXTURES` to
//! regenerate the expected errors.
//!
//! The compiler gets the library that was built for these tests. With Cargo, it would check every dependency
//! again.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// The directory of the cases, below the root of the repository.
const CASES: &str = "tests/ui";

#[test]
fn wrong_sets_get_clear_compiler_errors() {
    let scratch = tempfile::tempdir().unwrap();
    let library = library(scratch.path());
    let cases = fs::read_dir(root().join(CASES).join("fail")).unwrap().map(|entry| entry.unwrap().path());
    let mut cases: Vec<PathBuf> = cases.filter(|path| path.extension() == Some(OsStr::new("rs"))).collect();
    cases.sort();
    assert!(cases.len() > 10, "{cases:?}");
    let mut wrong = Vec::new();
    for case in cases {
        let name = format!("{CASES}/fail/{}", case.file_name().unwrap().display());
        let compiled = compile(&library, &name, scratch.path());
        assert!(!compiled.status.success(), "{name} compiles");
        let errors = errors(&compiled);
        let expected = case.with_extension("stderr");
        if env::var_os("HM_UPDATE_FIXTURES").is_some() {
            fs::write(expected, stable(&errors, &name)).unwrap();
            continue;
        }
        let expected = fs::read_to_string(expected).unwrap_or_default();
        if comparable(&errors, &name) != comparable(&expected, &name) {
            wrong.push(format!("{name}: expected\n{expected}\nthe compiler printed\n{errors}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_runner_that_moved_here_compiles() {
    let scratch = tempfile::tempdir().unwrap();
    let library = library(scratch.path());
    let compiled = compile(&library, "tests/fixtures/migrate/after.rs", scratch.path());
    assert!(compiled.status.success(), "{}", errors(&compiled));
}

#[test]
fn a_set_compiles_in_a_crate_that_has_the_library_from_another() {
    let scratch = tempfile::tempdir().unwrap();
    let library = library(scratch.path());
    let facade = rustc(library.parent().unwrap(), scratch.path())
        .args(["--crate-type=lib", "tests/ui/facade/facade.rs", "--extern"])
        .arg(named("hm_exec", &library))
        .output()
        .unwrap();
    assert!(facade.status.success(), "{}", errors(&facade));
    let compiled = rustc(library.parent().unwrap(), scratch.path())
        .args(["--crate-type=bin", "tests/ui/facade/right.rs", "--extern"])
        .arg(named("facade", &scratch.path().join("libfacade.rmeta")))
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{}", errors(&compiled));
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the newest library with which a right set compiles. Libraries beside it were built with other
/// features.
fn library(scratch: &Path) -> PathBuf {
    let beside = env::current_exe().unwrap().with_file_name("");
    let entries = fs::read_dir(&beside).unwrap().map(|entry| entry.unwrap().path());
    let is_library = |path: &PathBuf| {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        name.starts_with("libhm_exec-") && name.ends_with(".rlib")
    };
    let mut libraries: Vec<PathBuf> = entries.filter(is_library).collect();
    libraries.sort_by_key(|path| path.metadata().and_then(|it| it.modified()).unwrap());
    let mut said = format!("{} has no library", beside.display());
    while let Some(library) = libraries.pop() {
        let compiled = compile(&library, &format!("{CASES}/right.rs"), scratch);
        if compiled.status.success() {
            return library;
        }
        said = errors(&compiled);
    }
    panic!("a right set does not compile: {said}");
}

fn compile(library: &Path, case: &str, scratch: &Path) -> Output {
    let mut rustc = rustc(library.parent().unwrap(), scratch);
    rustc.args(["--crate-type=bin", case, "--extern"]).arg(named("hm_exec", library)).output().unwrap()
}

/// Returns the option of an external crate.
fn named(name: &str, library: &Path) -> OsString {
    let mut named = OsString::from(format!("{name}="));
    named.push(library);
    named
}

/// Returns a compiler that finds the dependencies of the library.
fn rustc(dependencies: &Path, scratch: &Path) -> Command {
    let mut rustc = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc
        .args(["--edition=2024", "--emit=metadata", "--color=never", "--out-dir"])
        .arg(scratch)
        .arg("-L")
        .arg(named("dependency", dependencies))
        .current_dir(root())
        // It allows unstable features, which some messages then recommend.
        .env_remove("RUSTC_BOOTSTRAP");
    rustc
}

/// Returns what a compiler printed, up to the summary.
fn errors(compiled: &Output) -> String {
    let printed = String::from_utf8_lossy(&compiled.stderr);
    let errors = printed.split("\nerror: aborting due to ").next().unwrap_or_default();
    errors.trim_end().to_owned() + "\n"
}

/// Returns messages without what depends on lines of other files than `case`: the numbers of those lines,
/// and how many more types implement a trait.
fn stable(errors: &str, case: &str) -> String {
    let mut is_elsewhere = false;
    let line = |line: &str| {
        let text = line.trim();
        let indent = &line[..line.len() - line.trim_start().len()];
        if let Some((arrow, place)) = text.split_once(' ')
            && matches!(arrow, "-->" | ":::")
        {
            let path = place.split(':').next().unwrap_or_default();
            is_elsewhere = path != case;
            return if is_elsewhere { format!("{indent}{arrow} {path}\n") } else { format!("{line}\n") };
        }
        if is_elsewhere
            && let Some((number, text)) = line.split_once('|')
            && number.trim().bytes().all(|byte| byte.is_ascii_digit())
        {
            return format!("{:width$}|{text}\n", "", width = number.len());
        }
        if text.starts_with("and ") && text.ends_with(" others") {
            return format!("{indent}and $N others\n");
        }
        format!("{line}\n")
    };
    errors.trim().lines().map(line).collect()
}

/// Returns stable messages without indentation, which depends on the width of all numbers.
fn comparable(errors: &str, case: &str) -> Vec<String> {
    stable(errors, case).lines().map(|line| line.trim().to_owned()).collect()
}
