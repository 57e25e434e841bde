//! Pipelines written in Python: `.hm/*.py`, rendered by the package `harmont` in the user's `python3`.
//!
//! The files run with the source directory as their working directory, write no bytecode into it, and may print what
//! they like: it goes to stderr.

use std::{
    io,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

use hm_exec::quote::quote;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Definition, Origin};
use crate::failure::{Failure, Outcome};

/// The version of `harmont`'s envelope that this understands.
const ENVELOPE_VERSION: &str = "1";

#[derive(Deserialize)]
struct Answer {
    envelope: Option<String>,
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

/// Runs `files` and collects what they register.
pub(super) fn render(files: &[PathBuf], source_dir: &Path) -> Outcome<Vec<Definition>> {
    let python = super::python();
    let shown = python.to_string_lossy().into_owned();
    // `-B`: no `__pycache__` in the user's tree.
    let output = Command::new(&python)
        .args(["-B", "-c", include_str!("dump.py")])
        .args(files)
        .current_dir(source_dir)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| cannot_start(&shown, files, error))?;
    if !output.status.success() {
        return Err(raised(files, output.status));
    }
    let answer: Answer = serde_json::from_slice(&output.stdout)
        .map_err(|error| Failure::input(format_args!("`{shown}` ended without naming its pipelines")).because(error))?;
    let Some(envelope) = answer.envelope else {
        return Err(Failure::input(format_args!("`{shown}` has no package `harmont`, which {} needs", list(files)))
            .hint(format_args!(
                "`{} -m pip install harmont`, or name a Python that has it in HM_PYTHON",
                quote(&shown)
            )));
    };
    let envelope: Envelope = serde_json::from_str(&envelope).map_err(|error| {
        Failure::input("failed to read what harmont made of the pipelines")
            .because(error)
            .hint("pip install --upgrade harmont")
    })?;
    if envelope.schema_version != ENVELOPE_VERSION {
        return Err(Failure::input(format_args!(
            "harmont's envelope has version {}, and this hm knows version {ENVELOPE_VERSION}",
            envelope.schema_version
        ))
        .hint("use a version of harmont that fits this hm"));
    }
    let definitions = envelope.pipelines.into_iter().map(|registered| Definition {
        title: registered.name.filter(|name| *name != registered.slug),
        name: registered.slug,
        ir_json: registered.definition.get().to_owned(),
        origin: Origin::Python,
    });
    Ok(definitions.collect())
}

fn cannot_start(python: &str, files: &[PathBuf], error: io::Error) -> Failure {
    let failure =
        Failure::input(format_args!("failed to start `{python}`, which {} needs", list(files))).because(error);
    failure.hint("install Python 3 and its package harmont (`pip install harmont`), or name a Python in HM_PYTHON")
}

fn raised(files: &[PathBuf], status: ExitStatus) -> Failure {
    Failure::input(format_args!("failed to render {}: python ended with {status}", list(files)))
        .hint("its traceback is above; correct the file, then look at the result with `hm render`")
}

fn list(files: &[PathBuf]) -> String {
    let names = files.iter().map(|file| file.file_name().unwrap_or(file.as_os_str()).to_string_lossy());
    names.map(|name| format!(".hm/{name}")).collect::<Vec<_>>().join(", ")
}
