//! What a runner says of itself before it runs anything. `plan::bind` and `hm runners` read it.

use std::{collections::BTreeMap, fmt, num::NonZeroUsize, sync::Arc};

use schemars::{JsonSchema, Schema};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// A runner's place in its [`RunnerSet`](super::RunnerSet), resolved from its name once, when the plan is bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct RunnerIndex(pub u16);

/// What a runner promises beside the [contract](super::StepRunner). Everything defaults to "no": a runner claims what it
/// can do, and the conformance suite (feature `conformance`) holds it to that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct RunnerCapabilities {
    /// An interrupted step's command gets TERM and its grace, with what it prints meanwhile; when the attempt returns, none of
    /// its processes is left. Without it the step is given up, and ends elsewhere, by itself or when it is told.
    pub grace: bool,
    /// Shows steps the run's source where they start, to write to a copy of their own.
    pub workspace: bool,
    /// Commits snapshots, and boots children from them: contents, modes, links, times of what a step could write to.
    pub snapshots: bool,
    /// Boots from, and commits, snapshots made of store layers (`hm1:`), so that steps can move between runners.
    pub layers: bool,
    /// Snapshots have the owners that steps gave to files.
    pub ownership: bool,
    /// Snapshots have the `user` extended attributes that steps gave to files.
    pub xattrs: bool,
    /// Shows secrets at `/run/secrets/NAME` without ever writing them to a layer.
    pub secrets: bool,
    /// Keeps the host's processes and files apart from the step's: steps have a root of their own, with the source at the
    /// path of the work directory.
    pub isolation: bool,
    /// Holds steps to the memory, processors and processes of their `runner_args`: [`Limits`](super::Limits).
    pub limits: bool,
    /// Gives a step no network where its `runner_args` say so: [`Limits::network`](super::Limits).
    pub network: bool,
    /// Which images a root step may name.
    pub images: ImageSupport,
}

/// Which images a runner can boot a root step from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageSupport {
    /// The runner looks at the image itself, or ignores it.
    #[default]
    Any,
    /// `host` alone.
    HostOnly,
    /// `host` and `rootfs:DIR`.
    Local,
    /// Everything but `host`: what can be brought to another machine.
    Portable,
    /// Everything that names an image: those, files (`oci:DIR`, `oci-archive:F`, `docker-archive:F`), and registries.
    All,
}

impl ImageSupport {
    /// Checks what can be known of an image before anything is started; the reason if nothing could boot from
    /// it.
    pub(crate) fn check(self, image: &str) -> Result<(), String> {
        // Only such runners get their images from the store or a registry.
        if matches!(self, Self::Any | Self::HostOnly) {
            return Ok(());
        }
        crate::store::check_image(image).map_err(|error| format!("{:#}", anyhow::Error::new(error)))
    }
}

/// Which limit on concurrent steps counts a runner's steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Pool {
    /// They use this machine: counted by the engine's parallelism (`-j`), together with all other local runners.
    Local,
    /// They use something else, with a limit of its own.
    Own {
        /// How many may be in flight at once.
        limit: NonZeroUsize,
    },
}

/// Whether a runner can work on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Probe {
    /// It can.
    Usable {
        /// What a person might want to know, such as "rootless, single id".
        note: Option<String>,
    },
    /// It can't.
    Unusable {
        /// Which check failed, and how.
        reason: String,
        /// What to do about it.
        hint: String,
    },
}

/// The arguments a runner takes in a step's `runner_args`: a JSON schema for people, and the check itself.
///
/// Both come from one type, so that they cannot disagree.
#[derive(Clone, Copy)]
pub struct ArgsSchema {
    schema: fn() -> Option<Schema>,
    check: fn(&Value) -> Result<(), ArgsError>,
    not_in_keys: &'static [&'static str],
}

/// What is wrong with a step's `runner_args`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct ArgsError {
    /// Where, as in `runner_args.memory`.
    pub path: String,
    /// What.
    pub message: String,
}

impl ArgsSchema {
    /// No arguments at all: any are refused, because ignoring them would be a lie.
    #[must_use]
    pub fn none() -> Self {
        Self {
            schema: || None,
            check: |value| match value {
                Value::Null => Ok(()),
                Value::Object(fields) if fields.is_empty() => Ok(()),
                _ => Err(ArgsError { path: "runner_args".into(), message: "this runner takes no arguments".into() }),
            },
            not_in_keys: &[],
        }
    }

    /// The arguments that deserialize into `T`.
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
            not_in_keys: &[],
        }
    }

    /// Leaves these arguments out of cache keys: those that change nothing of what a step sees or may do. By
    /// default all are in the keys.
    #[must_use]
    pub fn not_in_keys(self, names: &'static [&'static str]) -> Self {
        Self { not_in_keys: names, ..self }
    }

    /// Returns what goes into the cache key of a step with these arguments: JSON with sorted names, empty
    /// without any.
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

    /// The JSON schema, where the runner takes arguments.
    #[must_use]
    pub fn json_schema(&self) -> Option<Schema> {
        (self.schema)()
    }

    /// Checks a step's arguments.
    ///
    /// # Errors
    /// The first mistake, with its path.
    pub fn check(&self, args: &Value) -> Result<(), ArgsError> {
        (self.check)(args)
    }
}

/// Returns a value whose objects are sorted by name, also if maps keep another order.
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

/// Returns a value as text. Writing JSON values fails never.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

impl fmt::Debug for ArgsSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArgsSchema").field("schema", &self.json_schema()).finish()
    }
}

/// One runner of a set, as binding and people see it.
#[derive(Debug, Clone)]
pub struct RunnerDescriptor {
    /// The name that pipelines use.
    pub name: Arc<str>,
    /// Whether steps that name no runner get this one.
    pub is_default: bool,
    /// What it promises.
    pub capabilities: RunnerCapabilities,
    /// What it takes in `runner_args`.
    pub args: ArgsSchema,
    /// Which limit counts its steps.
    pub pool: Pool,
    /// What goes into cache keys beside the name.
    pub cache_version: u32,
}
