//! The wire types of the v0 IR, as the DSL emits them.
//!
//! The graph is petgraph's serde encoding: nodes by position, edges as `[from, to, kind]`. The JSON is
//! compatible with the published `hm-pipeline-ir` 0.0.9: each decodes the other's output. Strings and maps
//! that every attempt needs are behind an [`Arc`], so no text is copied when a step is handed to a runner.

use std::{collections::BTreeMap, fmt, num::NonZeroU32, sync::Arc, time::Duration};

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
    /// Behind a pointer, as the cache policy is: most steps of a large pipeline have neither.
    #[serde(default)]
    pub env: Option<Arc<Env>>,
    /// The time limit of one attempt, in seconds.
    #[serde(default)]
    pub timeout_seconds: Option<NonZeroU32>,
    /// Whether, and under which key, later runs may reuse the step's snapshot.
    #[serde(default)]
    pub cache: Option<Box<Cache>>,
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

impl Cache {
    /// Returns a policy without a limit in time: a result is reused until the step changes. With another
    /// `key`, earlier results are stale.
    #[must_use]
    pub fn forever(key: impl Into<Arc<str>>) -> Self {
        Self::of("forever", key)
    }

    /// Returns a policy by which a result is reused for a time.
    #[must_use]
    pub fn ttl(key: impl Into<Arc<str>>, max_age: Duration) -> Self {
        let seconds = match max_age.subsec_nanos() {
            0 => max_age.as_secs().into(),
            _ => max_age.as_secs_f64().into(),
        };
        Self::of("ttl", key).with("duration_seconds", seconds)
    }

    /// Returns a policy by which a result is reused until a file of the source that these paths match
    /// changes. The paths may contain `*`, `?`, `[..]` and `**`.
    #[must_use]
    pub fn on_change<P: Into<String>>(key: impl Into<Arc<str>>, paths: impl IntoIterator<Item = P>) -> Self {
        let paths: Vec<String> = paths.into_iter().map(Into::into).collect();
        Self::of("on_change", key).with("paths", paths.into())
    }

    /// Returns a policy by which a result is reused as long as all of these policies allow it. Their keys do
    /// not count.
    #[must_use]
    pub fn compose(key: impl Into<Arc<str>>, policies: impl IntoIterator<Item = Self>) -> Self {
        let part = |policy: Self| {
            let name = ("policy".to_owned(), serde_json::Value::from(&*policy.policy));
            policy.parameters.into_iter().chain([name]).collect::<serde_json::Value>()
        };
        let parts: Vec<_> = policies.into_iter().map(part).collect();
        Self::of("compose", key).with("sub_policies", parts.into())
    }

    fn of(policy: &str, key: impl Into<Arc<str>>) -> Self {
        Self { policy: policy.into(), key: Some(key.into()), parameters: BTreeMap::new() }
    }

    fn with(mut self, name: &str, value: serde_json::Value) -> Self {
        self.parameters.insert(name.to_owned(), value);
        self
    }
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
