//! The wire types of the v0 IR, as the DSL emits them.
//!
//! The graph is petgraph's serde encoding: nodes by position, edges as `[from, to, kind]`. The JSON is
//! compatible with the published `hm-pipeline-ir` 0.0.9: each decodes the other's output. Strings and maps
//! that every attempt needs are behind an [`Arc`], so no text is copied when a step is handed to a runner.

use std::{collections::BTreeMap, fmt, num::NonZeroU32, sync::Arc};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};

/// The environment of a step: names to values, in byte order of the names.
pub type Env = BTreeMap<String, String>;

/// One shell command of a pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandStep {
    /// The step's name, unique within its pipeline.
    pub key: Arc<str>,
    /// The name that is displayed instead of the key.
    #[serde(default)]
    pub label: Option<Arc<str>>,
    /// The command, given to `sh -c`.
    pub cmd: Arc<str>,
    /// The image that a step without a `builds_in` parent boots from.
    #[serde(default)]
    pub image: Option<Arc<str>>,
    /// The step's own variables. The DSL merges them into the node's `env`, which the command gets.
    #[serde(default)]
    pub env: Option<Env>,
    /// The time limit of one attempt, in seconds.
    #[serde(default)]
    pub timeout_seconds: Option<NonZeroU32>,
    /// Whether, and under which key, later runs may reuse the step's snapshot.
    #[serde(default)]
    pub cache: Option<Cache>,
    /// The name of the runner, or `None` for the engine's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner: Option<Arc<str>>,
    /// Arguments for the runner, checked against its schema when the plan is bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner_args: Option<serde_json::Value>,
}

/// A step's cache policy. The DSL resolves it to `key` before the IR is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cache {
    /// `none`, `forever`, `ttl`, `on_change` or `compose`.
    pub policy: Arc<str>,
    /// The resolved key, a hex SHA-256 over the policy's inputs.
    pub key: Option<Arc<str>>,
    /// The policy's own parameters (`env_keys`, `paths`, `duration_seconds`, ...), unchanged.
    #[serde(flatten)]
    pub parameters: BTreeMap<String, serde_json::Value>,
}

/// Decodes an object, or the other form that the published crate accepts: an array of the policy and the key.
impl<'de> Deserialize<'de> for Cache {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CacheVisitor)
    }
}

struct CacheVisitor;

impl<'de> Visitor<'de> for CacheVisitor {
    type Value = Cache;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `policy`")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Cache, A::Error> {
        #[derive(Deserialize)]
        struct Fields {
            policy: Arc<str>,
            #[serde(default)]
            key: Option<Arc<str>>,
            #[serde(flatten)]
            parameters: BTreeMap<String, serde_json::Value>,
        }
        let Fields { policy, key, parameters } = Fields::deserialize(MapAccessDeserializer::new(map))?;
        Ok(Cache { policy, key, parameters })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Cache, A::Error> {
        let policy = seq.next_element()?.ok_or_else(|| A::Error::invalid_length(0, &self))?;
        let key = seq.next_element()?.flatten();
        Ok(Cache { policy, key, parameters: BTreeMap::new() })
    }
}

/// How a child depends on its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EdgeKind {
    /// The child boots from the parent's snapshot. A child has at most one such parent.
    BuildsIn,
    /// The child only waits for the parent.
    DependsOn,
}

impl EdgeKind {
    /// Returns the kind with this name in the IR.
    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            "builds_in" => Some(Self::BuildsIn),
            "depends_on" => Some(Self::DependsOn),
            _ => None,
        }
    }
}

/// A node of the graph: a step and its environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// The command.
    pub step: Arc<CommandStep>,
    /// The merged environment of pipeline and step.
    pub env: Arc<Env>,
}

/// An edge by node positions: from the parent to the child.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edge(pub u32, pub u32, pub EdgeKind);
