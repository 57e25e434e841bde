//! The IR as it is read: the types are right, but the values may be invalid.
//!
//! Fields whose invalid values validation reports per step are decoded leniently here, so that one invalid
//! timeout does not hide the next error. Only text that is not JSON, or a value of the wrong type, ends the
//! decoding. That error has a path, line and column.

use std::{borrow::Cow, fmt, num::NonZeroU32, sync::Arc};

use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, SeqAccess, Visitor},
};
use serde_json::{Number, Value};

use super::{
    Cache, CommandStep, Edge, EdgeKind, Env, InvalidPipeline, Node,
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
    pub(super) nodes: RawNodes,
    #[serde(default)]
    pub(super) node_holes: Vec<IgnoredAny>,
    pub(super) edge_property: String,
    pub(super) edges: RawEdges,
}

/// The steps. Each gets its final form as soon as it is read, because their number makes a second copy
/// expensive. Text that a step has in common with the one before it is shared.
#[derive(Default)]
pub(super) struct RawNodes {
    pub(super) nodes: Vec<Node>,
    /// The time limits that are invalid, by node. Such a step has none.
    pub(super) wrong_timeouts: Vec<(usize, Number)>,
}

/// The edges. An edge that has no final form is among the `odd` ones.
#[derive(Default)]
pub(super) struct RawEdges {
    pub(super) edges: Vec<Edge>,
    /// The other edges, by position among all of them. `None` if the edge is null.
    pub(super) odd: Vec<(usize, Option<RawEdge>)>,
}

/// An edge whose ends or kind may not exist. An unknown kind is `Err`.
pub(super) struct RawEdge(pub(super) u64, pub(super) u64, pub(super) Result<EdgeKind, String>);

/// Text of the JSON, copied only if it has escapes.
struct Text<'a>(Cow<'a, str>);

impl Text<'_> {
    /// Returns the text in its final form: that of the step before if it is equal.
    fn share(self, before: Option<&Arc<str>>) -> Arc<str> {
        match before {
            Some(before) if **before == *self.0 => Arc::clone(before),
            _ => Arc::from(&*self.0),
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;

        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }

        deserializer.deserialize_str(TextVisitor)
    }
}

#[derive(Deserialize)]
#[serde(expecting = "an object with `step` and `env`")]
struct RawNode<'a> {
    #[serde(borrow)]
    step: RawStep<'a>,
    env: Env,
}

#[derive(Deserialize)]
#[serde(expecting = "an object with `key` and `cmd`")]
struct RawStep<'a> {
    #[serde(borrow)]
    key: Text<'a>,
    #[serde(default, borrow)]
    label: Option<Text<'a>>,
    #[serde(borrow)]
    cmd: Text<'a>,
    #[serde(default, borrow)]
    image: Option<Text<'a>>,
    #[serde(default)]
    env: Option<Env>,
    #[serde(default)]
    timeout_seconds: Option<Number>,
    #[serde(default)]
    cache: Option<Box<Cache>>,
    #[serde(default, borrow)]
    runner: Option<Text<'a>>,
    #[serde(default)]
    runner_args: Option<Value>,
}

#[derive(Deserialize)]
#[serde(expecting = "`[from, to, kind]`")]
struct EdgeText<'a>(u64, u64, #[serde(borrow)] Text<'a>);

impl RawNodes {
    fn push(&mut self, RawNode { step, env }: RawNode<'_>) {
        let before = self.nodes.last();
        let step_before = before.map(|node| &*node.step);
        let timeout_seconds = step.timeout_seconds.as_ref().and_then(timeout);
        if let Some(wrong) = step.timeout_seconds.filter(|_| timeout_seconds.is_none()) {
            self.wrong_timeouts.push((self.nodes.len(), wrong));
        }
        let share = |text: Option<Text<'_>>, of: fn(&CommandStep) -> Option<&Arc<str>>| {
            text.map(|text| text.share(step_before.and_then(of)))
        };
        let step = CommandStep {
            key: step.key.share(None),
            label: share(step.label, |step| step.label.as_ref()),
            cmd: step.cmd.share(step_before.map(|step| &step.cmd)),
            image: share(step.image, |step| step.image.as_ref()),
            env: step.env.map(Arc::new),
            timeout_seconds,
            cache: step.cache,
            runner: share(step.runner, |step| step.runner.as_ref()),
            runner_args: step.runner_args,
        };
        // The DSL gives most steps the same environment.
        let env = match before {
            Some(before) if *before.env == env => Arc::clone(&before.env),
            _ => Arc::new(env),
        };
        self.nodes.push(Node { step: Arc::new(step), env });
    }
}

impl RawEdges {
    fn push(&mut self, edge: Option<EdgeText<'_>>) {
        let raw = edge.map(|EdgeText(from, to, kind)| {
            RawEdge(from, to, EdgeKind::named(&kind.0).ok_or_else(|| kind.0.into_owned()))
        });
        if let Some(RawEdge(from, to, Ok(kind))) = raw
            && let (Ok(from), Ok(to)) = (u32::try_from(from), u32::try_from(to))
        {
            self.edges.push(Edge(from, to, kind));
        } else {
            self.odd.push((self.edges.len() + self.odd.len(), raw));
        }
    }
}

/// Returns a time limit, if it is valid.
pub(super) fn timeout(seconds: &Number) -> Option<NonZeroU32> {
    seconds.as_u64().and_then(|seconds| u32::try_from(seconds).ok()).and_then(NonZeroU32::new)
}

/// Collects the elements of a list one by one.
struct Collect<C, T>(C, fn(&mut C, T));

impl<'de, C, T: Deserialize<'de>> Visitor<'de> for Collect<C, T> {
    type Value = C;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a sequence")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<C, A::Error> {
        let Self(mut all, push) = self;
        while let Some(element) = list.next_element()? {
            push(&mut all, element);
        }
        Ok(all)
    }
}

impl<'de> Deserialize<'de> for RawNodes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Collect::<Self, RawNode<'de>>(Self::default(), |all, node| all.push(node)))
    }
}

impl<'de> Deserialize<'de> for RawEdges {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_seq(Collect::<Self, Option<EdgeText<'de>>>(Self::default(), |all, edge| all.push(edge)))
    }
}

/// Decodes the IR's types. `serde_json` bounds the recursion (128 levels), and memory use is linear in the
/// text.
pub(super) fn decode(json: &[u8]) -> Result<RawPipeline, InvalidPipeline> {
    // To track the path costs an allocation per field, so this is only done if the text is known to be
    // invalid.
    // The text is checked for UTF-8 once, instead of each string of it. What is not UTF-8 may be no JSON even
    // before that, and the error is about the first mistake.
    let decoded = match str::from_utf8(json) {
        Ok(text) => serde_json::from_str(text),
        Err(_) => serde_json::from_slice(json),
    };
    decoded.map_err(|error| {
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
