//! What the scripts that render pipelines answer, in any language.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::{Definition, Discovery, Origin, environment};
use crate::{
    failure::{Failure, Outcome},
    reporter::to_stderr,
};

/// The version of harmont's envelope that this module supports.
const ENVELOPE_VERSION: &str = "1";

/// Words in errors that suggest that the sandbox is the cause.
const SIGNS: [&str; 8] = [
    "EACCES",
    "EROFS",
    "ModuleNotFoundError",
    "No such file or directory",
    "PermissionError",
    "Read-only file system",
    "name resolution",
    "unreachable",
];

/// The answer of a script.
#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    envelope: Option<String>,
    /// Variables that the files tried to read and that were not set.
    #[serde(default)]
    missed: Vec<String>,
    error: Option<ScriptError>,
    /// The version of the interpreter, if it is too old.
    pub(super) too_old: Option<String>,
}

/// An error in a pipeline file.
#[derive(Debug, Deserialize)]
struct ScriptError {
    /// The path of the file, relative to the project.
    file: Option<String>,
    line: Option<u64>,
    kind: String,
    message: String,
    /// The line of the file.
    source: Option<String>,
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
    #[serde(default = "allowed")]
    allow_manual: bool,
    triggers: Option<Box<RawValue>>,
    definition: Box<RawValue>,
}

fn allowed() -> bool {
    true
}

impl Answer {
    /// Parses the output of a script that ran `files` in `program`.
    pub(super) fn parse(output: &[u8], program: &str) -> Outcome<Self> {
        serde_json::from_slice(output).map_err(|error| {
            Failure::input(format_args!("`{program}` ended without printing its pipelines")).because(error)
        })
    }

    /// Returns whether the output of a script has pipelines.
    pub(super) fn has_pipelines(output: &[u8]) -> bool {
        serde_json::from_slice::<Self>(output)
            .is_ok_and(|answer| answer.envelope.is_some() && answer.error.is_none() && answer.too_old.is_none())
    }

    /// Returns whether the output of a script that was started at `started` has the keys that it would have
    /// now: those of `ttl` policies are other ones after each duration.
    pub(super) fn is_current(output: &[u8], started: SystemTime) -> bool {
        let answer = serde_json::from_slice::<Self>(output).ok().and_then(|answer| answer.envelope);
        let Some(Ok(envelope)) = answer.map(|envelope| serde_json::from_str::<Value>(&envelope)) else { return false };
        let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let (then, now) = (seconds(started), seconds(SystemTime::now()));
        let mut left = vec![&envelope];
        while let Some(value) = left.pop() {
            match value {
                Value::Array(values) => left.extend(values),
                Value::Object(fields) => {
                    let is_ttl = fields.get("policy").is_some_and(|policy| policy == "ttl");
                    let duration = fields.get("duration_seconds").and_then(Value::as_u64).unwrap_or(0);
                    if is_ttl && then.checked_div(duration) != now.checked_div(duration) {
                        return false;
                    }
                    left.extend(fields.values());
                }
                _ => {}
            }
        }
        true
    }

    /// Returns the pipelines. Returns `None` if the language lacks its package.
    pub(super) fn definitions(self, files: &str, origin: &Origin) -> Outcome<Option<Vec<Definition>>> {
        let withheld = environment::withheld(&self.missed);
        if !withheld.is_empty() {
            let names = withheld.join(",");
            to_stderr(&format!(
                "note: {files} read variables that are hidden from pipelines: set {}={names} to show them",
                environment::MORE
            ));
        }
        if let Some(error) = self.error {
            return Err(error.failure(files));
        }
        let Some(envelope) = self.envelope else { return Ok(None) };
        let envelope: Envelope = serde_json::from_str(&envelope).map_err(|error| {
            Failure::input("failed to read the output of harmont")
                .because(error)
                .hint("install the newest version of harmont")
        })?;
        if envelope.schema_version != ENVELOPE_VERSION {
            return Err(Failure::input(format_args!(
                "harmont's envelope has version {}, but this hm supports version {ENVELOPE_VERSION}",
                envelope.schema_version
            ))
            .hint("install a version of harmont that fits this hm"));
        }
        let definition = |registered: Registered| Definition {
            title: registered.name.clone().filter(|name| *name != registered.slug),
            name: registered.slug,
            discovery: Discovery {
                name: registered.name,
                allow_manual: registered.allow_manual,
                triggers: registered.triggers.map_or_else(Discovery::no_triggers, |raw| raw.get().to_owned()),
            },
            ir_json: registered.definition.get().to_owned(),
            origin: origin.clone(),
        };
        Ok(Some(envelope.pipelines.into_iter().map(definition).collect()))
    }
}

impl ScriptError {
    /// Returns the failure: `.hm/ci.py:4: SyntaxError: invalid syntax`, and the line.
    fn failure(self, files: &str) -> Failure {
        let file = self.file.as_deref().unwrap_or(files);
        let line = self.line.map(|line| format!(":{line}")).unwrap_or_default();
        let (kind, message) = (&self.kind, &self.message);
        let separator = if message.is_empty() { "" } else { ": " };
        let failure = Failure::input(format_args!("{file}{line}: {kind}{separator}{message}"));
        let failure = failure.details(self.source.iter().filter(|source| !source.is_empty()));
        let correct = "fix the file, then check the result with `hm plan`";
        if SIGNS.iter().any(|sign| kind.contains(sign) || message.contains(sign)) {
            failure.hint(format_args!("{correct}\n{SANDBOXED}"))
        } else {
            failure.hint(correct)
        }
    }
}

/// What a pipeline file cannot do, for errors that it may be the cause of.
pub(super) const SANDBOXED: &str = "it runs in a sandbox with only the project and its language: without a network or a home directory, with only /tmp \
     writable, and with few variables (HM_RENDER_ENV adds more)";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_rendering_is_current_until_the_key_of_a_ttl_changes() {
        let output = |seconds: u64| {
            let ttl = format!("{{\"policy\": \"ttl\", \"duration_seconds\": {seconds}}}");
            let envelope = format!("{{\"a\": [{{\"policy\": \"compose\", \"sub_policies\": [{ttl}]}}]}}");
            serde_json::to_vec(&serde_json::json!({ "envelope": envelope })).unwrap()
        };
        let now = SystemTime::now();
        let ago = |seconds| now - Duration::from_secs(seconds);
        assert!(Answer::is_current(&output(u64::MAX), ago(1000)));
        assert!(!Answer::is_current(&output(500), ago(1000)));
        assert!(Answer::is_current(&serde_json::to_vec(&serde_json::json!({ "envelope": "{}" })).unwrap(), ago(1000)));
        for damaged in ["", "{}", "{\"envelope\": \"[\"}"] {
            assert!(!Answer::is_current(damaged.as_bytes(), now), "{damaged}");
        }
    }

    #[test]
    fn only_pipelines_are_kept() {
        assert!(Answer::has_pipelines(b"{\"envelope\": \"{}\", \"missed\": [\"CI\"]}"));
        let error = r#"{"envelope": "{}", "error": {"kind": "a", "message": "b"}}"#;
        for output in ["", "{}", error, r#"{"missing": "harmont"}"#, r#"{"envelope": "{}", "too_old": "18"}"#] {
            assert!(!Answer::has_pipelines(output.as_bytes()), "{output}");
        }
    }
}
