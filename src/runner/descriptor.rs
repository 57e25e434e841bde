//! What a runner declares about itself before it runs anything. `plan::bind` and `hm runners` read it.

use std::{collections::BTreeMap, fmt, sync::Arc};

use schemars::{JsonSchema, Schema};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{DynStepRunner, Pool};

/// The index of a runner in its [`RunnerSet`](super::RunnerSet), resolved from its name once, when the plan
/// is bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct RunnerIndex(pub u16);

/// The promises of a runner beyond the [contract](super::StepRunner). All capabilities default to "no": a
/// runner claims what it can do, and the conformance suite (feature `conformance`) checks the claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct RunnerCapabilities {
    /// Sends TERM to an interrupted step's command, waits for its grace period and forwards its output
    /// meanwhile. When the attempt returns, none of its processes is left. Without this capability the step
    /// is abandoned, and ends elsewhere, by itself or on request.
    pub grace: bool,
    /// Starts steps in a directory with the run's source, as a copy of their own that they can write to.
    pub workspace: bool,
    /// Commits snapshots and boots children from them, with the contents, modes, links and times of all files
    /// that a step could write to.
    pub snapshots: bool,
    /// Commits, and boots from, snapshots made of store layers (`hm1:`), so that steps can move between
    /// runners.
    pub layers: bool,
    /// Preserves the owners of files in snapshots.
    pub ownership: bool,
    /// Preserves `user` extended attributes of files in snapshots.
    pub xattrs: bool,
    /// Provides secrets at `/run/secrets/NAME` without ever writing them to a layer.
    pub secrets: bool,
    /// Isolates the host's processes and files from the step. Steps have a root of their own, with the source
    /// at the path of the work directory.
    pub isolation: bool,
    /// Enforces the limits on memory, processors and processes in a step's `runner_args`:
    /// [`Limits`](super::Limits).
    pub limits: bool,
    /// Runs a step without a network if its `runner_args` request that: [`Limits::network`](super::Limits).
    pub network: bool,
    /// Gives each step a network of its own, unless its `runner_args` name another:
    /// [`Network::Private`](super::Network).
    pub private_network: bool,
    /// Mounts the cache directories of a step's `runner_args`: [`Limits::caches`](super::Limits).
    pub cache_dirs: bool,
    /// Copies the files that a step names as its `outputs` to the user's directory: those of ended commands,
    /// and those of results that the cache has.
    pub outputs: bool,
    /// Runs the services of a step's `runner_args` in the step's network:
    /// [`Limits::services`](super::Limits).
    pub services: bool,
    /// Shows files of other steps to a step, read-only: [`ExecutorInput::inputs`](super::ExecutorInput).
    pub inputs: bool,
    /// Records what steps read, if the run asks for it: [`StepContext::traces`](super::StepContext::traces).
    pub traces: bool,
    /// The images that a root step may name.
    pub images: ImageSupport,
}

/// The images that a runner can boot a root step from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageSupport {
    /// The runner checks the image itself, or ignores it.
    #[default]
    Any,
    /// Only `host`.
    HostOnly,
    /// `host` and `rootfs:DIR`.
    Local,
    /// Everything except `host`: images that can be transferred to another machine.
    Portable,
    /// All images: those above, files (`oci:DIR`, `oci-archive:F`, `docker-archive:F`), and registries.
    All,
}

impl ImageSupport {
    /// Checks an image as far as possible before anything is started. Returns the reason if no runner could
    /// boot from it.
    pub(crate) fn check(self, image: &str) -> Result<(), String> {
        // Only the other runners get their images from the store or a registry.
        if matches!(self, Self::Any | Self::HostOnly) {
            return Ok(());
        }
        crate::image::check_image(image).map_err(|error| format!("{:#}", anyhow::Error::new(error)))
    }
}

/// Whether a runner can work on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Probe {
    /// The runner can work.
    #[non_exhaustive]
    Usable {
        /// A note for the user, such as "rootless, single id".
        note: Option<String>,
    },
    /// The runner cannot work.
    #[non_exhaustive]
    Unusable {
        /// The check that failed, and how.
        reason: String,
        /// How to fix it.
        hint: String,
    },
}

impl Probe {
    /// Returns that the runner can work.
    #[must_use]
    pub fn usable() -> Self {
        Self::Usable { note: None }
    }

    /// Returns that the runner cannot work: the check that failed and how, and how to fix it.
    #[must_use]
    pub fn unusable(reason: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Unusable { reason: reason.into(), hint: hint.into() }
    }

    /// Adds a note for the user, such as "rootless, single id", if the runner can work.
    #[must_use]
    pub fn with_note(self, note: impl Into<String>) -> Self {
        match self {
            Self::Usable { .. } => Self::Usable { note: Some(note.into()) },
            Self::Unusable { .. } => self,
        }
    }
}

/// The arguments a runner takes in a step's `runner_args`: a JSON schema for users, and the check itself.
///
/// Both come from one type, so that they cannot disagree.
#[derive(Clone, Copy)]
pub struct ArgsSchema {
    schema: fn() -> Option<Schema>,
    check: fn(&Value) -> Result<(), ArgsError>,
    /// A check of arguments that the type accepts.
    check_more: fn(&Value) -> Result<(), ArgsError>,
    not_in_keys: &'static [&'static str],
}

/// An error in a step's `runner_args`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct ArgsError {
    /// The path of the wrong argument, as in `runner_args.memory`.
    pub path: String,
    /// The description of the error.
    pub message: String,
}

impl ArgsSchema {
    /// Accepts no arguments at all. Any argument is refused, because ignoring it would mislead the user.
    #[must_use]
    pub fn none() -> Self {
        Self {
            schema: || None,
            check: |value| match value {
                Value::Null => Ok(()),
                Value::Object(fields) if fields.is_empty() => Ok(()),
                _ => Err(ArgsError { path: "runner_args".into(), message: "this runner takes no arguments".into() }),
            },
            check_more: |_| Ok(()),
            not_in_keys: &[],
        }
    }

    /// Accepts the arguments that deserialize into `T`.
    #[must_use]
    pub fn of<T: DeserializeOwned + JsonSchema>() -> Self {
        Self {
            schema: || Some(schemars::schema_for!(T)),
            check: |value| match serde_path_to_error::deserialize::<_, T>(value) {
                Ok(_) => Ok(()),
                Err(error) => {
                    let path = error.path().to_string();
                    let path = if path == "." { "runner_args".into() } else { format!("runner_args.{path}") };
                    Err(ArgsError { path, message: error.into_inner().to_string() })
                }
            },
            check_more: |_| Ok(()),
            not_in_keys: &[],
        }
    }

    /// Checks also, after the type, what a type cannot say, such as that one argument needs another.
    #[must_use]
    pub(crate) fn with_check(self, check_more: fn(&Value) -> Result<(), ArgsError>) -> Self {
        Self { check_more, ..self }
    }

    /// Leaves these arguments out of cache keys. This is for arguments that do not affect what a step sees or
    /// may do. By default all arguments are in the keys.
    #[must_use]
    pub fn not_in_keys(self, names: &'static [&'static str]) -> Self {
        Self { not_in_keys: names, ..self }
    }

    /// Returns what goes into the cache key of a step with these arguments: JSON with sorted names, or an
    /// empty string if there are none.
    ///
    /// ```
    /// use hm_exec::runner::ArgsSchema;
    /// use serde_json::json;
    ///
    /// let args = ArgsSchema::none().not_in_keys(&["priority"]);
    /// let given = json!({ "memory": "1g", "cpus": 2, "priority": 3 });
    /// assert_eq!(args.in_keys(Some(&given)), r#"{"cpus":2,"memory":"1g"}"#);
    /// assert_eq!(args.in_keys(Some(&json!({ "priority": 3 }))), "");
    /// ```
    #[must_use]
    pub fn in_keys(&self, args: Option<&Value>) -> String {
        match args {
            None | Some(Value::Null) => String::new(),
            Some(Value::Object(fields)) => {
                let counts = |(name, _): &(&String, &Value)| !self.not_in_keys.contains(&name.as_str());
                let counted: BTreeMap<&String, Value> =
                    fields.iter().filter(counts).map(|(name, value)| (name, sorted(value))).collect();
                if counted.is_empty() { String::new() } else { json(&counted) }
            }
            Some(other) => json(&sorted(other)),
        }
    }

    /// Returns the JSON schema, or `None` if the runner takes no arguments.
    #[must_use]
    pub fn json_schema(&self) -> Option<Schema> {
        (self.schema)()
    }

    /// Checks a step's arguments.
    ///
    /// # Errors
    /// Returns the first error, with its path.
    pub fn check(&self, args: &Value) -> Result<(), ArgsError> {
        (self.check)(args).and_then(|()| (self.check_more)(args))
    }
}

/// Returns a value whose objects are sorted by name, even if maps keep another order.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let sorted: BTreeMap<&String, Value> = fields.iter().map(|(name, value)| (name, sorted(value))).collect();
            sorted.into_iter().map(|(name, value)| (name.clone(), value)).collect()
        }
        Value::Array(items) => items.iter().map(sorted).collect(),
        plain => plain.clone(),
    }
}

/// Returns a value as text. Writing JSON values never fails.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

impl fmt::Debug for ArgsSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArgsSchema").field("schema", &self.json_schema()).finish()
    }
}

/// The description of one runner of a set, for binding and for users.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RunnerDescriptor {
    /// The name that pipelines use.
    pub name: Arc<str>,
    /// Whether this runner runs the steps that name no runner.
    pub is_default: bool,
    /// The capabilities of the runner.
    pub capabilities: RunnerCapabilities,
    /// The arguments that the runner takes in `runner_args`.
    pub args: ArgsSchema,
    /// The limit that counts its steps.
    pub pool: Pool,
    /// The version that goes into cache keys besides the name.
    pub cache_version: u32,
}

impl RunnerDescriptor {
    /// Describes a runner that claims no capability, takes no arguments and uses this machine. The other
    /// fields can be set afterwards.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self {
            name: name.into(),
            is_default: false,
            capabilities: RunnerCapabilities::default(),
            args: ArgsSchema::none(),
            pool: Pool::Local,
            cache_version: 1,
        }
    }

    /// Describes `runner`, which its set calls `name`.
    pub(super) fn of(runner: &dyn DynStepRunner, name: &str, is_default: bool) -> Self {
        Self {
            name: name.into(),
            is_default,
            capabilities: runner.capabilities(),
            args: runner.args_schema(),
            pool: runner.pool(),
            cache_version: runner.cache_version(),
        }
    }
}
