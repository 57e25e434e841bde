//! The IR as it is read: the types are right, but the values may be invalid.
//!
//! Fields whose invalid values validation reports per step are decoded leniently here, so that one invalid
//! timeout does not hide the next error. Only text that is not JSON, or a value of the wrong type, ends the
//! decoding. That error has a path, line and column.

use serde::Deserialize;
use serde_json::{Number, Value};
use std::sync::Arc;

use super::{
    Cache, Env, InvalidPipeline,
    problem::{ProblemKind, ProblemPlace},
};

#[derive(Deserialize)]
#[serde(expecting = "an object with `graph`")]
pub(super) struct RawPipeline {
    #[serde(default = "default_version")]
    pub(super) version: String,
    #[serde(default)]
    pub(super) default_image: Option<Arc<str>>,
    #[serde(default)]
    pub(super) timeout_seconds: Option<Number>,
    pub(super) graph: RawGraph,
}

fn default_version() -> String {
    "0".to_owned()
}

#[derive(Deserialize)]
#[serde(expecting = "an object with `nodes`, `edge_property` and `edges`")]
pub(super) struct RawGraph {
    pub(super) nodes: Vec<RawNode>,
    #[serde(default)]
    pub(super) node_holes: Vec<serde::de::IgnoredAny>,
    pub(super) edge_property: String,
    pub(super) edges: Vec<Option<RawEdge>>,
}

#[derive(Deserialize)]
#[serde(expecting = "an object with `step` and `env`")]
pub(super) struct RawNode {
    pub(super) step: RawStep,
    pub(super) env: Env,
}

#[derive(Deserialize)]
#[serde(expecting = "`[from, to, kind]`")]
pub(super) struct RawEdge(pub(super) u64, pub(super) u64, pub(super) String);

#[derive(Deserialize)]
#[serde(expecting = "an object with `key` and `cmd`")]
pub(super) struct RawStep {
    pub(super) key: Arc<str>,
    #[serde(default)]
    pub(super) label: Option<Arc<str>>,
    pub(super) cmd: Arc<str>,
    #[serde(default)]
    pub(super) image: Option<Arc<str>>,
    #[serde(default)]
    pub(super) env: Option<Env>,
    #[serde(default)]
    pub(super) timeout_seconds: Option<Number>,
    #[serde(default)]
    pub(super) cache: Option<Cache>,
    #[serde(default)]
    pub(super) runner: Option<Arc<str>>,
    #[serde(default)]
    pub(super) runner_args: Option<Value>,
}

/// Decodes the IR's types. `serde_json` bounds the recursion (128 levels), and memory use is linear in the
/// text.
pub(super) fn decode(json: &[u8]) -> Result<RawPipeline, InvalidPipeline> {
    // To track the path costs an allocation per field, so this is only done if the text is known to be
    // invalid.
    serde_json::from_slice(json).map_err(|error| {
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        match serde_path_to_error::deserialize::<_, RawPipeline>(&mut deserializer) {
            Err(located) if located.inner().is_data() => problem(located.inner(), located.path().to_string()),
            _ => problem(&error, String::new()),
        }
    })
}

fn problem(error: &serde_json::Error, path: String) -> InvalidPipeline {
    let (line, column) = (error.line(), error.column());
    let text = error.to_string();
    let text = text.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&text);
    let message = if error.is_data() { text.to_owned() } else { format!("invalid JSON: {text}") };
    // The root's path is a dot.
    let path = if path == "." { String::new() } else { path };
    InvalidPipeline::of(ProblemPlace::Json { line, column, path }, ProblemKind::Json(message))
}
