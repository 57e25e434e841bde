//! The errors that users can cause: each says what is wrong, and what to do next, once.

use std::fs;

use crate::support::project::{Ended, Project, ir};

/// What a command must answer.
struct Case {
    args: &'static [&'static str],
    variable: Option<(&'static str, &'static str)>,
    code: i32,
    /// A part of the error, and a part of the next step, which is in a hint, in the error's end, or in clap's
    /// usage.
    error: &'static str,
    next: &'static str,
}

const fn case(args: &'static [&'static str], code: i32, error: &'static str, next: &'static str) -> Case {
    Case { args, variable: None, code, error, next }
}

/// In a directory without anything.
const EMPTY: &[Case] = &[
    case(&["run"], 2, "no directory .hm in ", "hint: run `hm init` to create a pipeline"),
    case(&["run", "-d", "/nope"], 2, "failed to open directory /nope", "No such file or directory"),
    case(&["run", "-f", "nope.json"], 2, "failed to read nope.json", "no such file or directory"),
    case(&["logs"], 2, "no runs of pipelines in ", "hint: run a pipeline first"),
    case(&["logs", "test"], 2, "no runs of pipelines in ", "set its source directory with `-d DIR`"),
    case(&["shell", "test"], 2, "no runs of pipelines in ", "or name a run, as in `RUN/STEP`"),
    case(&["init"], 2, "no known kind of project in ", "hint: name one with `-t KIND`"),
    case(&["logs", "ffffffff/test"], 2, "no run with id prefix `ffffffff`", "hint: run `hm runs`"),
    case(&["rnu"], 2, "unrecognized subcommand 'rnu'", "tip: a similar subcommand exists"),
];

/// In a project whose pipeline `ci` has one step `test`, which failed.
const PROJECT: &[Case] = &[
    case(&["run", "nope"], 2, "no pipeline named `nope`", "hint: pipelines: ci"),
    case(&["run", "test"], 2, "no pipeline named `test`", "step of pipeline `ci`: name both, as in `hm run ci test`"),
    case(&["run", "c"], 2, "no pipeline named `c`", "hint: "),
    case(&["run", "--runner", "sandbx"], 2, "no runner named `sandbx`", "did you mean `sandbox`?"),
    case(&["plan", "--runner", "docker"], 2, "runner `docker` cannot start from image `host`", "--image host=IMAGE"),
    case(
        &["plan", "--runner", "process", "--image", "host=debian:x"],
        2,
        "runner `process` cannot start from image `debian:x`",
        "remove `--image host=...`",
    ),
    case(&["run", "--image", "x"], 2, "invalid value 'x' for '--image <A=B>'", "expected A=B, as in"),
    case(&["plan", "--image", "host=UPPER:x"], 2, "invalid image name `UPPER:x`", "use a name such as"),
    case(&["plan", "--image", "host=rootfs:/nope"], 2, "cannot use `/nope` as a root filesystem", "no such directory"),
    case(&["plan", "--image", "host=oci:/nope"], 2, "invalid image name `oci:/nope`", "`/nope` does not exist"),
    case(&["plan", "--image", "host=oci-archive:/nope"], 2, "`oci-archive:/nope`", "`/nope` does not exist"),
    case(&["plan", "--image", "host=docker-archive:/nope"], 2, "`docker-archive:/nope`", "`/nope` does not exist"),
    case(&["plan", "long"], 2, "`cmd` has 131072 bytes", "move it to a file of the project"),
    case(&["run", "-e", "HM_TEST_UNSET"], 2, "failed to read `HM_TEST_UNSET`", "hint: set it, or pass `-e"),
    case(&["run", "--secret", "HM_TEST_UNSET"], 2, "is missing: variable", "hint: export HM_TEST_UNSET, or pass"),
    case(&["run", "--secret", "T=value"], 2, "invalid value 'T=value'", "NAME=env:VAR or NAME=file:PATH"),
    case(&["run", "--secret", "T=file:/nope"], 2, "failed to read secret `T` from /nope", "No such file"),
    case(&["run", "ci", "tets"], 2, "no step named `tets` in the pipeline", "hint: did you mean `test`?"),
    case(&["run", "ci", "zzzzzzzz"], 2, "no step named `zzzzzzzz`", "hint: run `hm plan` to list the steps"),
    case(&["run", "ci", "--from", "tets"], 2, "no step named `tets` in the pipeline", "hint: did you mean `test`?"),
    case(&["run", "ci", "test", "--failed"], 2, "cannot be used with '--failed'", "Usage: hm run"),
    case(&["run", "long", "--failed"], 2, "no earlier run of `long` in ", "hint: run the pipeline without `--failed`"),
    case(&["run", "--watch", "-f", "-"], 2, "cannot read the pipeline from stdin again", "hint: pass `-f FILE`"),
    case(&["run", "-d", ".hm/ci.json"], 2, "ci.json is not a directory", ""),
    case(&["plan", "-f", ".hm/ci.json", "ci"], 2, "no step named `ci` in the pipeline", "hint: run `hm plan`"),
    case(&["run", "-j", "0"], 2, "invalid value '0' for '--jobs <N>'", "For more information, try '--help'"),
    case(&["run", "--memory", "lots"], 2, "invalid value 'lots' for '--memory <SIZE>'", "try '--help'"),
    Case {
        variable: Some(("HM_TEST_EMPTY", "")),
        ..case(&["run", "--secret", "HM_TEST_EMPTY"], 2, "secret `HM_TEST_EMPTY` is empty", "hint: set its value")
    },
    case(&["report", "ffffffff"], 2, "no run with id prefix `ffffffff`", "hint: run `hm runs`"),
    Case {
        variable: Some(("SOURCE_DATE_EPOCH", "now")),
        ..case(&["man", "pages"], 2, "SOURCE_DATE_EPOCH is not a number of seconds", "hint: unset it")
    },
    case(&["init", "-t", "rust"], 2, "the project has a pipeline: .hm/ci.json", "hint: "),
    case(
        &["inputs", "test"],
        2,
        "what step `test` read was not recorded",
        "hint: run the pipeline with `--check-inputs`",
    ),
    case(&["run", "--refresh", "tets"], 2, "no step named `tets`", "hint: did you mean `test`?"),
    case(&["run", "--timeout", "x"], 2, "invalid value 'x' for '--timeout", "a duration such as 90s"),
    case(&["run", "--no-watch"], 2, "`--no-watch` is not possible", "hint: remove the option"),
    case(&["run", "--bogus"], 2, "unexpected argument '--bogus'", "For more information, try '--help'"),
    Case {
        variable: Some(("HM_NETWORK", "x")),
        ..case(&["run"], 2, "HM_NETWORK names no network", "hint: set it to `private`, `host` or `none`")
    },
    Case {
        variable: Some(("HM_CACHE_DIR", "/proc/nope")),
        ..case(&["run"], 3, "failed to make the directory `/proc/nope`", "check the store's directory (HM_CACHE_DIR)")
    },
    case(&["logs", "tets"], 2, "no step named `tets` in run", "hint: did you mean `test`?"),
    case(&["logs", "fffff"], 2, "no step named `fffff`", "no run's id begins with it, either: run `hm runs`"),
    case(&["why", "nope"], 2, "no step named `nope` in run", "hint: steps: test"),
    case(&["shell", "test"], 2, "does not keep the files of step `test`", "hint: run it in the sandbox"),
    case(&["cp", "test", "."], 2, "`test` has no path", "hint: use [RUN/]STEP:PATH"),
    case(&["cache", "export", "test", "x"], 2, "invalid target `x`", "expected `oci:DIR[:TAG]`"),
    case(&["config", "set"], 2, "no configuration key is named `set`", "hint: "),
    case(&["completions", "x"], 2, "invalid value 'x' for '<SHELL>'", "[possible values: bash"),
    case(&["worker"], 2, "no engine is given", "hint: pass `--remote grpc://HOST:PORT`"),
];

#[track_caller]
fn check(project: &Project, cases: &[Case]) {
    for Case { args, variable, code, error, next } in cases {
        let mut hm = project.hm(args);
        hm.envs(*variable).env_remove("HM_REMOTE").env_remove("HM_NETWORK").envs(*variable);
        let ended = Ended::of(&mut hm);
        let text = &ended.stderr;
        assert_eq!(ended.code, Some(*code), "{args:?}: {text}");
        assert_eq!(text.matches("error: ").count(), 1, "{args:?}: {text}");
        assert!(text.contains(error) && text.contains(next), "{args:?}: {text}");
        // No cause is repeated, and no hint either.
        let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
        for (at, line) in lines.iter().enumerate() {
            assert!(!lines[..at].contains(line), "{args:?} says it twice: {text}");
        }
        assert!(ended.stdout.is_empty(), "{args:?}: {}", ended.stdout);
    }
}

#[test]
fn the_short_help_of_a_run_fits_on_a_screen() {
    let project = Project::new();
    let mut hm = project.hm(&["run", "-h"]);
    let short = Ended::of(hm.env("COLUMNS", "80")).expect(0).stdout;
    assert!(short.lines().count() <= 40, "{}:\n{short}", short.lines().count());
    assert!(short.lines().all(|line| line.chars().count() <= 80), "{short}");
    assert!(short.contains("--failed") && short.contains("-k, --keep-going"), "{short}");
    let long = Ended::of(&mut project.hm(&["run", "--help"])).expect(0).stdout;
    for option in ["--remote-header", "--docker-host", "--verbose", "--host-dir", "HM_CACHE_GC"] {
        assert!(long.contains(option) && !short.contains(option), "{option}: {long}");
    }
}

#[test]
fn errors_in_an_empty_directory_say_how_to_begin() {
    let project = Project::new();
    fs::remove_dir(project.dir.join(".hm")).unwrap();
    check(&project, EMPTY);
    fs::create_dir(project.dir.join(".hm")).unwrap();
    check(&project, &[case(&["run"], 2, "no pipelines in ", "hint: run `hm init` to create one")]);
}

#[test]
fn errors_in_a_project_say_what_to_do_next() {
    let project = Project::with_steps(&[("test", "exit 3", None)]);
    let long = "x".repeat(128 << 10);
    project.run(&["ci"]).expect(1);
    project.file(".hm/long.json", &ir(&[("long", &long, None)]));
    check(&project, PROJECT);
    project.file(".hm/hm.toml", "backend = [\n");
    check(&project, &[case(&["run"], 2, "hm.toml, line ", "")]);
    project.file(".hm/hm.toml", "bakcend = 1\n");
    check(&project, &[case(&["run"], 2, "unknown field `bakcend`", "expected one of `backend`")]);
}
