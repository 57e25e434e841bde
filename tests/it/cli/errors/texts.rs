//! The error texts in the source of `hm`, and those of them that no case of the table shows.
//!
//! A text is the first argument of `Failure::input`, `infrastructure` or `service`, if that has a literal.
//! Two places with the same words count as one. Texts that the library writes are causes behind such a
//! text, and are tested with the library.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

/// An error text of the source, and what an answer in the table shows of it: for texts that have few words
/// of their own.
const VAGUE: &[(&str, &str)] = &[
    ("{} has {}", "src has package.json and Cargo.toml"),
    ("{name}: {error}", "HM_REMOTE_JOBS: expected a number"),
    ("{source}: {error}", "--remote-header: invalid header"),
    ("{}, line {}: {what}", "hm.toml, line 2: unknown variant"),
    ("`{key}` ({source}) {why}", "`cloud.api_url` (HM_API_URL) is not a URL"),
];

/// An error text that another test shows.
struct Elsewhere {
    text: &'static str,
    /// A part of the hint, which follows the text in the source. Empty if the text or its cause is enough.
    hint: &'static str,
    /// The file in `tests/it`, and what it looks for.
    test: (&'static str, &'static str),
}

const fn elsewhere(text: &'static str, hint: &'static str, file: &'static str, looks_for: &'static str) -> Elsewhere {
    Elsewhere { text, hint, test: (file, looks_for) }
}

const ELSEWHERE: &[Elsewhere] = &[
    elsewhere(
        "no directory .hm in {dir}; that of {} is not in a git repository with it",
        "to use that one, pass `-d {}`",
        "cli/invalid_input.rs",
        "hint: to use that one, pass `-d {}`",
    ),
    // These need the sandbox.
    elsewhere(
        "the output of a cached step has no times and no events",
        "run the step again with `--no-cache`",
        "cli/earlier_runs.rs",
        "the output of a cached step has no times",
    ),
    elsewhere("the files of step `{key}` were not kept ({})", "`hm run --keep`", "cli/cp.rs", "were not kept"),
    elsewhere("the path is empty", "`.` for the step's work directory", "cli/cp.rs", "the path is empty"),
    // These need a Python with the package.
    elsewhere(
        "{file}{line}: {kind}{separator}{message}",
        "hm plan",
        "cli/python.rs",
        ".hm/broken.py:3: SyntaxError: '(' was never closed",
    ),
    elsewhere("two pipelines are named `{}`", "rename one of them", "cli/python.rs", "two pipelines are named `ci`"),
    elsewhere(
        "`{shown}` does not have the package `harmont`, which {listed} needs",
        "-m pip install harmont`",
        "cli/python.rs",
        "does not have the package `harmont`, which .hm/ci.py needs",
    ),
    elsewhere("failed to download the package `harmont`", "", "cli/python.rs", "failed to download"),
    elsewhere(
        "failed to read the output of harmont",
        "install the newest version of harmont",
        "cli/rendering.rs",
        "failed to read the output of harmont",
    ),
    elsewhere(
        "harmont's envelope has version {}, but this hm supports version {ENVELOPE_VERSION}",
        "install a version of harmont that fits this hm",
        "cli/rendering.rs",
        "envelope has version 9",
    ),
    elsewhere(
        "{shown} is a link that leads out of the project, to {}",
        "copy the file into .hm",
        "cli/rendering.rs",
        "leads out of the project",
    ),
    elsewhere(
        "failed to render {}: {what}",
        "move expensive work into a step",
        "cli/rendering.rs",
        "timed out after 2 s",
    ),
    elsewhere(
        "the project does not have {what}",
        "set {PACKAGE}",
        "cli/typescript.rs",
        "the project does not have the package",
    ),
    // These need other files of the user than the cases can have.
    elsewhere(
        "recorded consent is not trusted: {} belongs to another user, or is writable by others",
        "chmod go-rwx",
        "cli/trust.rs",
        "not trusted",
    ),
    elsewhere(
        "the build ended ({status:?}), but its output could not be written",
        "",
        "cli/output.rs",
        "its output could not be written",
    ),
    // These need a collector, or a run that goes on.
    elsewhere(
        "failed to send the trace of the run to {}",
        "",
        "cli/otlp.rs",
        "failed to send the trace of the run to ",
    ),
    elsewhere("run {} has not ended", "wait until it has ended", "cli/otlp.rs", " has not ended"),
    // These need the stand-in for the service.
    elsewhere(
        "the service refused the login [{code}]: {message}",
        "hm cloud login",
        "service/verbs.rs",
        "cli_code_invalid",
    ),
    elsewhere(
        "you are in no organization `{slug}`",
        "hm cloud org list",
        "service/verbs.rs",
        "you are in no organization",
    ),
    elsewhere("build #{} has no step `{}`", "hm cloud job list", "service/verbs.rs", "has no step `zz`"),
    elsewhere(
        "no directory for configuration: neither XDG_CONFIG_HOME nor HOME is set",
        "set one of them",
        "service/verbs.rs",
        "no directory for configuration",
    ),
    elsewhere(
        "no directory to store a token in: neither XDG_CONFIG_HOME nor HOME is set",
        "set HM_API_TOKEN",
        "service/verbs.rs",
        "no directory to store a token in",
    ),
    elsewhere("{url} does not accept the token{}", "hm cloud login", "service/command.rs", "does not accept"),
    elsewhere("the service refused the build [{code}]: {message}", "billing balance", "service/command.rs", "[bad_ir]"),
    elsewhere("the source is larger than {} after compression", ".gitignore", "service/errors.rs", "TooLarge"),
];

/// An error text that no test shows, with a part of its hint, and why.
const NOT_SHOWN: &[(&str, &str, &str)] = &[
    ("failed to write to stdout", "", BROKEN),
    ("failed to write JSON", "", BROKEN),
    ("failed to start the runtime", "", BROKEN),
    ("failed to listen for signals", "", BROKEN),
    ("failed to start the output thread", "", BROKEN),
    ("failed to create a pipe", "", BROKEN),
    ("failed to open the shell's streams", "", BROKEN),
    ("failed to generate the script", "", NEVER),
    ("failed to find the program hm", "", BROKEN),
    ("failed to start hm again", "", BROKEN),
    ("failed to wait for hm", "", BROKEN),
    ("failed to watch files", "", BROKEN),
    ("failed to watch {}", "fs.inotify.max_user_watches", "the limit is one of the whole machine"),
    ("failed to read the source directory", "", BROKEN),
    ("failed to list {}", "", BROKEN),
    ("invalid path {}", "", BROKEN),
    ("failed to prompt", "", TERMINAL),
    ("failed to prompt on the terminal", "", TERMINAL),
    ("the service has no such pipeline", "name another one", TERMINAL),
    ("no login within three minutes", "hm cloud login --paste", "takes three minutes"),
    ("failed to listen for the browser", "", BROKEN),
    ("{what}: {why}", "", "what the service does not support is refused before"),
    ("several runs have id prefix `{text}`", "use a longer prefix", "ids are random"),
    ("failed to read the pipeline from stdin", "", BROKEN),
    ("the pipeline on stdin is larger than {} MiB", "", "takes as much memory"),
    ("failed to move steps to containers", "", NEVER),
    ("failed to select steps of the pipeline", "", NEVER),
    ("there is nothing to run", "", NEVER),
    ("{} has no URL", "", NEVER),
    ("the run is not recorded on this machine, so it has no page", "", "a build of the service that was not recorded"),
    ("there is no program for {listed}", "install Node", NEVER),
    ("configuration files contradict each other", "", NEVER),
    ("{} is not a file", "", NEVER),
    ("{} is not valid, so it is not changed", "run `hm config`", "what is not valid is reported before"),
    // The store is damaged, or its disk is.
    ("failed to read the store", "", BROKEN),
    ("failed to measure the store", "", BROKEN),
    ("failed to choose the limits of the store", "", BROKEN),
    ("failed to collect garbage", "", BROKEN),
    ("failed to compress logs", "", BROKEN),
    ("failed to explain the result", "", BROKEN),
    ("failed to find the store's directory", "", BROKEN),
    ("failed to freeze the source", "", BROKEN),
    ("failed to read the journal of run {}", "run the pipeline again", BROKEN),
    ("failed to read the log of step `{}`", "", BROKEN),
    ("failed to read a log of run {}", "", BROKEN),
    ("failed to read what step `{}` read", "", BROKEN),
    ("failed to read a step's trace", "", BROKEN),
    ("failed to read the tokens in {}", "", BROKEN),
    ("failed to write the tokens in {}", "", BROKEN),
    ("failed to {doing} {}", "", BROKEN),
    ("the files of step `{}` are damaged: {reason}", "`hm run --refresh={}`", BROKEN),
    ("the files of step `{key}` are no longer in the store ({})", "run the pipeline again", BROKEN),
    ("step `{key}` could not run: its files were not kept", "then run the pipeline again", BROKEN),
    ("the container of step `{key}` was not kept ({})", "`hm run --keep`", "needs a container of a step that failed"),
    // The sandbox breaks after it has worked.
    ("the sandbox is not available", "hm doctor", BROKEN),
    ("failed to {doing} in the files of step `{}`", "hm doctor", BROKEN),
    ("failed to open the files of step `{}`", "hm doctor", BROKEN),
    ("failed to start the shell", "the image must have a /bin/sh", BROKEN),
    ("failed to export the image", "", BROKEN),
    ("the copy is incomplete: reading ended with exit code {code}", "", BROKEN),
    ("some steps could not be compared", "the warnings above say why", BROKEN),
    ("failed to render {files}", "move the project to a directory of its own", BROKEN),
    ("failed to render {}: {language} was killed by another process", "enough memory", BROKEN),
    ("the downloaded package cannot be imported", "", BROKEN),
    ("failed to write the package `@harmont/hm`, which {files} needs", "", BROKEN),
    ("neither the project nor {PACKAGE}={} has {what}", "set {PACKAGE}", "needs Node"),
];

/// The machine refuses what it gives every program, or files of `hm` are damaged.
const BROKEN: &str = "needs a machine that breaks";
/// Checks before make it impossible.
const NEVER: &str = "is impossible, as far as is known";
/// It follows a question.
const TERMINAL: &str = "needs an answer on a terminal";

/// An error text in the source.
#[derive(Debug)]
pub(super) struct SourceText {
    file: PathBuf,
    pub(super) text: String,
    /// What follows it in the source.
    after: String,
}

/// Returns all error texts of `hm`.
pub(super) fn of_source() -> Vec<SourceText> {
    let mut texts = Vec::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut open = vec![root.join("src/bin/hm")];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|end| end == "rs") {
            let code = fs::read_to_string(&path).unwrap();
            let code = code.split("#[cfg(test)]\nmod tests {").next().unwrap();
            texts.extend(of_code(code).into_iter().map(|(text, after)| SourceText { file: path.clone(), text, after }));
        }
    }
    texts.sort_by(|a, b| (&a.file, &a.text).cmp(&(&b.file, &b.text)));
    texts
}

/// Returns the texts of calls that create failures, each with what follows in the code.
fn of_code(code: &str) -> Vec<(String, String)> {
    let mut texts = Vec::new();
    for call in ["Failure::input(", "Failure::infrastructure(", "Failure::service("] {
        for (at, _) in code.match_indices(call) {
            let rest = &code[at + call.len()..];
            if let Some(text) = first_literal(rest) {
                let after: String = rest.chars().take(1200).collect();
                texts.push((text, after));
            }
        }
    }
    texts
}

/// Returns the first literal before the parenthesis that closes the call.
fn first_literal(arguments: &str) -> Option<String> {
    let mut depth = 1;
    for (at, c) in arguments.char_indices() {
        match c {
            '"' => return Some(unescaped(&arguments[at + 1..])),
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    None
}

/// Returns the value of a literal that begins with `rest`.
fn unescaped(rest: &str) -> String {
    let mut text = String::new();
    let mut chars = rest.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' => break,
            '\\' => match chars.next() {
                Some('\n') => while chars.next_if(|c| c.is_whitespace()).is_some() {},
                Some('n') => text.push('\n'),
                other => text.extend(other),
            },
            c => text.push(c),
        }
    }
    text
}

/// Returns the parts of a text between its arguments.
fn fixed_parts(text: &str) -> Vec<&str> {
    text.split('{').flat_map(|part| part.split_once('}').map_or(part, |(_, fixed)| fixed).split('\n')).collect()
}

/// Returns whether an answer has the parts of a text, in their order. `None` if the text has too few words of
/// its own.
fn is_shown_in(text: &str, answers: &[String]) -> Option<bool> {
    let parts = fixed_parts(text);
    if parts.iter().map(|part| part.trim().len()).sum::<usize>() < 10 {
        return None;
    }
    Some(answers.iter().flat_map(|answer| answer.lines()).any(|line| {
        let mut rest = line;
        parts.iter().all(|part| rest.find(part).map(|at| rest = &rest[at + part.len()..]).is_some())
    }))
}

/// Returns what is wrong with the table and these lists: texts that are in none, or in two, and entries that
/// no longer hold.
pub(super) fn mistakes(answers: &[String]) -> String {
    let texts = of_source();
    let mut wrong = String::new();
    for SourceText { file, text, .. } in &texts {
        let in_vague = VAGUE.iter().any(|(vague, _)| vague == text);
        let places = [
            is_shown_in(text, answers) == Some(true),
            in_vague,
            ELSEWHERE.iter().any(|entry| entry.text == text),
            NOT_SHOWN.iter().any(|(hidden, ..)| hidden == text),
        ];
        match places.iter().filter(|is_there| **is_there).count() {
            0 => drop(writeln!(wrong, "{}: no case shows {text:?}", file.display())),
            1 => {}
            _ => drop(writeln!(wrong, "{}: {text:?} is listed, although a case shows it", file.display())),
        }
    }
    let in_source = |text: &str| texts.iter().filter(move |found| found.text == text).collect::<Vec<_>>();
    for (text, example) in VAGUE {
        if in_source(text).is_empty() || !answers.iter().any(|answer| answer.contains(example)) {
            let _ = writeln!(wrong, "VAGUE has {text:?}, but no answer has {example:?}");
        }
    }
    let has_hint = |text: &str, hint: &str| in_source(text).iter().any(|found| found.after.contains(hint));
    for Elsewhere { text, hint, test: (file, looks_for) } in ELSEWHERE {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it").join(file);
        let test = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        if !has_hint(text, hint) || !test.contains(looks_for) {
            let _ = writeln!(wrong, "ELSEWHERE has {text:?}, but not so the source, or {file}");
        }
    }
    for (text, hint, _) in NOT_SHOWN {
        if !has_hint(text, hint) {
            let _ = writeln!(wrong, "NOT_SHOWN has {text:?}, but not so the source");
        }
    }
    wrong
}

#[test]
fn texts_are_found_in_code() {
    let code = r#"
        Err(Failure::input(format_args!("no \"{name}\" in {}: \
            look", dir.display())).hint("do (this)"));
        Failure::service(code::AUTH, "not logged in")
        Failure::infrastructure(what).because("no text")
    "#;
    let texts: Vec<String> = of_code(code).into_iter().map(|(text, _)| text).collect();
    assert_eq!(texts, ["no \"{name}\" in {}: look", "not logged in"]);
    assert_eq!(fixed_parts("no `{name}` in {}"), ["no `", "` in ", ""]);
    let answers = ["error: no `a` in /x: y\nhint: z".to_owned()];
    assert_eq!(is_shown_in("no `{name}` in {}: {why} here", &answers), Some(false));
    assert_eq!(is_shown_in("error: no `{name}` in {}", &answers), Some(true));
    assert_eq!(is_shown_in("{}: {}", &answers), None);
}
