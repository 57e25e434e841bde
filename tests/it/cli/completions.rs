//! `hm completions` in the shells that it is for, and `hm man`.

use std::{
    env, fs,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::support::{
    backends::{usable, usable_program},
    programs::hm,
    project::{Ended, Project, ir},
};

/// Completes the last of these words, by the script of a shell. `None` if this machine does not have it.
#[track_caller]
fn complete(project: &Project, shell: &str, words: &[&str]) -> Option<Vec<String>> {
    if !usable_program(shell) {
        return None;
    }
    let mut command = project.hm(&[]);
    let envs: Vec<_> =
        command.get_envs().map(|(name, value)| (name.to_owned(), value.map(ToOwned::to_owned))).collect();
    command = Command::new(shell);
    for (name, value) in envs {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let programs = format!("{}:{}", hm().parent().unwrap().display(), env::var("PATH").unwrap_or_default());
    command.env("PATH", programs).current_dir(&project.dir).stdin(Stdio::null());
    match shell {
        "bash" => command.args(["--norc", "-c", BASH, "bash"]).args(words),
        "zsh" => command.args(["-f", "-c", ZSH, "zsh"]).args(words),
        _ => command.args(["--no-config", "-c", FISH]).arg(words.join(" ")),
    };
    let ended = Ended::of(&mut command).expect(0);
    assert_eq!(ended.stderr, "", "{shell}");
    let names = ended.stdout.lines().map(|line| line.split(['\t', ':']).next().unwrap_or_default().trim().to_owned());
    let mut names: Vec<String> = names.filter(|name| !name.is_empty()).collect();
    names.sort();
    Some(names)
}

/// Calls the function of the script as the shell does for a Tab.
const BASH: &str = r#"
source <(hm completions bash)
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_TYPE=9
_clap_complete_hm hm "${!#}" "${@: -2:1}"
printf '%s\n' "${COMPREPLY[@]}"
"#;

/// Calls the function of the script with the functions of the completion system that it uses.
const ZSH: &str = r#"
compdef() { }
_describe() { print -l -- ${(P)3} }
source <(hm completions zsh)
words=("$@"); CURRENT=$#
_clap_dynamic_completer_hm
"#;

const FISH: &str = r#"hm completions fish | source; complete --do-complete "$argv[1]""#;

const SHELLS: [&str; 3] = ["bash", "zsh", "fish"];

/// A project with two pipelines, one of which has names that are commands for a shell.
fn project() -> Project {
    let project = Project::with_steps(&[("build", "true", None), ("unit", "true", Some(0)), ("lint", "true", None)]);
    project.file(".hm/docs.json", &ir(&[("book", "true", None), ("$(touch${IFS}x)", "true", None)]));
    project.file(".hm/$(id).json", &ir(&[("a", "true", None)]));
    project
}

#[test]
fn pipelines_and_steps_are_completed() {
    let project = project();
    for shell in SHELLS {
        let Some(names) = complete(&project, shell, &["hm", "run", "c"]) else { continue };
        assert_eq!(names, ["ci"], "{shell}");
        let of = |words: &[&str]| complete(&project, shell, words).unwrap();
        assert_eq!(of(&["hm", "plan", "d"]), ["docs"], "{shell}");
        assert_eq!(of(&["hm", "run", "ci", "u"]), ["unit"], "{shell}");
        assert_eq!(of(&["hm", "run", "docs", "b"]), ["book"], "{shell}: only the steps of the pipeline");
        assert_eq!(of(&["hm", "run", "--refresh", "l"]), ["lint"], "{shell}");
        assert_eq!(of(&["hm", "run", "--keep-g"]), ["--keep-going"], "{shell}");
        assert_eq!(of(&["hm", "pip"]), ["pipelines"], "{shell}");
        // fish completes its own variables after a `$`, so this asks for all names.
        let all = of(&["hm", "run", "docs", ""]);
        assert!(all.contains(&"book".into()) && !all.iter().any(|name| name.contains("touch")), "{shell}: {all:?}");
        let all = of(&["hm", "run", ""]);
        let has = |name: &str| all.iter().any(|it| it == name);
        assert!(has("ci") && has("docs") && !all.iter().any(|name| name.contains("id")), "{shell}: {all:?}");
    }
    assert!(!project.store.exists(), "a store is not created for that");
}

#[test]
fn steps_of_earlier_runs_are_completed() {
    let project = project();
    // Its steps are known from its run alone.
    fs::rename(project.dir.join(".hm/docs.json"), project.dir.join(".hm/ci.json")).unwrap();
    project.run(&["ci"]).expect(0);
    fs::remove_file(project.dir.join(".hm/ci.json")).unwrap();
    let runs = Ended::of(&mut project.hm(&["runs", "--format", "json"])).expect(0).stdout;
    let runs: Value = serde_json::from_str(&runs).unwrap();
    let id = &runs[0]["run"].as_str().unwrap()[..8];
    for shell in SHELLS {
        let Some(names) = complete(&project, shell, &["hm", "logs", "b"]) else { continue };
        assert_eq!(names, ["book"], "{shell}");
        let of = |words: &[&str]| complete(&project, shell, words).unwrap();
        assert_eq!(of(&["hm", "run", "ci", "b"]), ["book"], "{shell}");
        assert_eq!(of(&["hm", "why", &format!("{id}/b")]), [format!("{id}/book")], "{shell}");
        assert_eq!(of(&["hm", "report", &id[..4]]), [id], "{shell}");
        assert_eq!(of(&["hm", "help", "remo"]), ["remote"], "{shell}");
    }
}

#[test]
fn nothing_of_a_project_runs_for_a_completion() {
    let project = project();
    project.file(".hm/python.py", "open('ran', 'w')\n");
    project.file(".hm/broken.json", "{");
    for shell in SHELLS {
        let Some(names) = complete(&project, shell, &["hm", "run", "ci", "u"]) else { continue };
        assert_eq!(names, ["unit"], "{shell}");
    }
    assert!(!project.dir.join("ran").exists() && !project.dir.join(".hm/ran").exists());
    // A variable that is meant for a script makes no difference to a run without one.
    let ended = Ended::of(project.hm(&["version"]).env("HM_COMPLETE", "0")).expect(0);
    assert!(ended.stdout.starts_with("hm "), "{}", ended.stdout);
}

#[test]
fn manual_pages_are_without_mistakes() {
    let project = Project::new();
    let to = project.dir.join("man1");
    let write = |epoch: &str| Ended::of(project.hm(&["man", to.to_str().unwrap()]).env("SOURCE_DATE_EPOCH", epoch));
    let ended = write("1700000000").expect(0);
    let pages: Vec<_> = fs::read_dir(&to).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(ended.stdout, format!("wrote {} pages to {}\n", pages.len(), to.display()));
    let run = fs::read_to_string(to.join("hm-run.1")).unwrap();
    for text in [".TH hm-run 1 2023-11-14", ".SH EXAMPLES", ".SH \"EXIT CODES\"", "keep\\-going"] {
        assert!(run.contains(text), "{text}: {run}");
    }
    assert!(to.join("hm.1").exists() && to.join("hm-cache-save.1").exists() && !to.join("hm-man.1").exists());
    write("yesterday").expect(2);
    let checked = Command::new("mandoc").args(["-T", "lint", "-W", "warning"]).args(&pages).output();
    if usable("mandoc", checked.is_ok(), "install it") {
        let checked = checked.unwrap();
        let mistakes = String::from_utf8_lossy(&checked.stdout);
        assert!(checked.status.success() && mistakes.is_empty(), "{mistakes}");
    }
}
