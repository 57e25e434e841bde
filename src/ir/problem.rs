//! What can be wrong with a pipeline, and where.
//!
//! Decoding finds the mistakes that the IR shows by itself; binding to an engine's runners (`plan::bind`) finds the rest and
//! tells them in the same words, so that people read one list.

use std::{fmt, sync::Arc};

/// Everything that is wrong with a pipeline: at least one mistake, each with its place.
///
/// `Display` has one line per mistake, below a heading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidPipeline {
    problems: Vec<Problem>,
}

impl InvalidPipeline {
    /// Fails where there are problems.
    pub(crate) fn check(problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(Self { problems }) }
    }

    /// The mistakes, in the order of the IR. Never empty.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl From<Problem> for InvalidPipeline {
    fn from(problem: Problem) -> Self {
        Self { problems: vec![problem] }
    }
}

impl fmt::Display for InvalidPipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("invalid pipeline:")?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for InvalidPipeline {}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    place: Place,
    kind: ProblemKind,
}

impl Problem {
    pub(crate) fn new(place: Place, kind: ProblemKind) -> Self {
        Self { place, kind }
    }

    /// Where.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// What.
    #[must_use]
    pub fn kind(&self) -> &ProblemKind {
        &self.kind
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.kind)
    }
}

/// Where a mistake is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// The pipeline as a whole.
    Pipeline,
    /// What the caller asked for besides the pipeline.
    Options,
    /// A spot in the JSON text.
    Json {
        /// From 1.
        line: usize,
        /// From 1, in bytes; 0 where a line has not begun.
        column: usize,
        /// Such as `graph.nodes[2].step.cmd`; empty where the text is no JSON.
        path: String,
    },
    /// A step.
    Step {
        /// Its position in `graph.nodes`.
        node: usize,
        /// Its key, which may be empty or belong to another step, too.
        key: Arc<str>,
    },
    /// An edge.
    Edge {
        /// Its position in `graph.edges`.
        edge: usize,
        /// The parent.
        from: Endpoint,
        /// The child.
        to: Endpoint,
    },
}

/// One end of an edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// A position in `graph.nodes`, which may not exist.
    pub node: u64,
    /// The key of the step there.
    pub key: Option<Arc<str>>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pipeline => f.write_str("pipeline"),
            Self::Options => f.write_str("options"),
            Self::Json { line, column, path } if path.is_empty() => write!(f, "line {line}, column {column}"),
            Self::Json { line, column, path } => write!(f, "line {line}, column {column}, at {}", Quoted(path)),
            Self::Step { node, key } if key.is_empty() => write!(f, "node {node}"),
            Self::Step { key, .. } => write!(f, "step {}", Quoted(key)),
            Self::Edge { edge, from, to } => write!(f, "edge {edge} ({from} -> {to})"),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.key {
            Some(key) if !key.is_empty() => Quoted(key).fmt(f),
            _ => write!(f, "node {}", self.node),
        }
    }
}

/// What is wrong. `Display` says what to do about it, where that is not plain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProblemKind {
    /// The text is no JSON, or a value has the wrong type.
    #[error("{0}")]
    Json(String),
    /// The IR is of another version than this program reads.
    #[error("IR version {} is unknown, this program reads version `0`: upgrade it, or the DSL", Quoted(.0))]
    UnknownVersion(String),
    /// More steps than [`Pipeline::MAX_STEPS`](super::Pipeline::MAX_STEPS).
    #[error("{count} steps are too many, the most is {max}", max = super::Pipeline::MAX_STEPS)]
    TooManySteps {
        /// How many there are.
        count: usize,
    },
    /// `node_holes` is not empty: positions of nodes that were taken out of the graph.
    #[error("`node_holes` must be empty: number the nodes without gaps")]
    NodeHoles,
    /// `edge_property` is not `directed`.
    #[error("`edge_property` is {}, it must be `directed`", Quoted(.0))]
    Undirected(String),
    /// An edge is `null`.
    #[error("edge {0} is null: leave out edges that were taken away")]
    NullEdge(usize),
    /// An edge is neither `builds_in` nor `depends_on`.
    #[error("the kind {} is unknown, it must be `builds_in` or `depends_on`", Quoted(.0))]
    UnknownEdgeKind(String),
    /// An end of an edge is no node.
    #[error("there is no node {missing}, the graph has {count} nodes counted from 0")]
    MissingNode {
        /// The position that does not exist.
        missing: u64,
        /// How many nodes there are.
        count: usize,
    },
    /// An edge from a step to itself.
    #[error("a step can't wait for itself")]
    SelfEdge,
    /// Steps that wait for each other.
    #[error("steps wait for each other: {}", Path(.0))]
    Cycle(Vec<Arc<str>>),
    /// More than one `builds_in` parent.
    #[error("builds in {}: a step boots from one snapshot, the others can only be `depends_on`", List(.0))]
    ManyLineageParents(Vec<Arc<str>>),
    /// The key is empty.
    #[error("the step's key is empty")]
    EmptyKey,
    /// An earlier node has the same key.
    #[error("the key is taken: nodes {first} and {node} both have it")]
    DuplicateKey {
        /// The first node that has it.
        first: usize,
        /// The node at fault.
        node: usize,
    },
    /// A `timeout_seconds` that is no positive whole number of 32 bits.
    #[error("`timeout_seconds` is {0}, it must be a whole number from 1 to {max}", max = u32::MAX)]
    Timeout(String),
    /// Text with a NUL byte, which no command, variable or path can have.
    #[error("`{field}` has a NUL byte, which can't be passed to a program")]
    NulByte {
        /// The field, such as `cmd`.
        field: &'static str,
    },
    /// The name of an environment variable that is empty or has a `=`.
    #[error("{} can't name an environment variable: it must not be empty, nor have `=` or NUL", Quoted(.0))]
    VariableName(String),
    /// A step, or the options, name a runner that the engine does not have.
    #[error("there is no runner {}{}; there are {}", Quoted(.name), DidYouMean(.nearest), List(.known))]
    UnknownRunner {
        /// The name.
        name: String,
        /// The known name that looks most like it.
        nearest: Option<Arc<str>>,
        /// Every known name.
        known: Vec<Arc<str>>,
    },
    /// A runner of this project that the engine was built without.
    #[error("the runner {} is not compiled into this program; there are {}", Quoted(.name), List(.known))]
    MissingRunner {
        /// The name.
        name: &'static str,
        /// Every known name.
        known: Vec<Arc<str>>,
    },
    /// The step names no runner, and none is the default.
    #[error("names no runner, and none is the default; there are {}", List(.known))]
    NoDefaultRunner {
        /// Every known name.
        known: Vec<Arc<str>>,
    },
    /// The runner refuses the step's `runner_args`.
    #[error("runner `{runner}` refuses {path}: {message}")]
    RunnerArgs {
        /// The runner.
        runner: Arc<str>,
        /// Where, such as `runner_args.memory`.
        path: String,
        /// What.
        message: String,
    },
    /// The runner can't boot from the step's image.
    #[error(
        "runner `{runner}` can't boot from image {}, only from {images}; to run on this machine's system instead: --image {image}=host",
        Quoted(.image)
    )]
    Image {
        /// The runner.
        runner: Arc<str>,
        /// The image, with substitutions applied.
        image: Arc<str>,
        /// What it can boot from.
        images: &'static str,
    },
    /// The run has secrets, and the runner does not show any to its steps.
    #[error("runner `{runner}` can't show secrets to its steps, and this run has some")]
    Secrets {
        /// The runner.
        runner: Arc<str>,
    },
    /// A step can't boot from its parent's snapshot, because another runner made it.
    #[error(
        "runner `{runner}` can't boot from the snapshot of {}, which runner `{parent_runner}` makes: run both on the same",
        Quoted(.parent)
    )]
    ForeignSnapshot {
        /// The step's runner.
        runner: Arc<str>,
        /// The parent's key.
        parent: Arc<str>,
        /// The parent's runner.
        parent_runner: Arc<str>,
    },
}

/// How much of a name, or of a list of names, an error shows.
const SHOWN_CHARS: usize = 80;
const SHOWN_NAMES: usize = 16;

/// Text from the pipeline in backticks: one line, of bounded length, that can't move a terminal's cursor.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`")?;
        for (at, char) in self.0.chars().enumerate() {
            if at == SHOWN_CHARS {
                f.write_str("…")?;
                break;
            }
            if char.is_control() { write!(f, "{}", char.escape_default())? } else { write!(f, "{char}")? }
        }
        f.write_str("`")
    }
}

/// "`a`, `b` and `c`", cut after some.
struct List<'a, T>(&'a [T]);

impl<T: AsRef<str>> fmt::Display for List<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        let shown = &self.0[..self.0.len().min(SHOWN_NAMES)];
        let hidden = self.0.len() - shown.len();
        for (at, name) in shown.iter().enumerate() {
            let separator = match at {
                0 => "",
                _ if at + 1 == shown.len() && hidden == 0 => " and ",
                _ => ", ",
            };
            write!(f, "{separator}{}", Quoted(name.as_ref()))?;
        }
        if hidden > 0 { write!(f, " and {hidden} more") } else { Ok(()) }
    }
}

/// "`a` -> `b` -> `a`", its middle cut out where it is long.
struct Path<'a>(&'a [Arc<str>]);

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = self.0.len().saturating_sub(SHOWN_NAMES);
        let head = if hidden == 0 { self.0.len() } else { SHOWN_NAMES / 2 };
        self.0[..head].iter().try_for_each(|key| write!(f, "{} -> ", Quoted(key)))?;
        if hidden > 0 {
            write!(f, "({hidden} more) -> ")?;
        }
        self.0[head + hidden..].iter().try_for_each(|key| write!(f, "{} -> ", Quoted(key)))?;
        self.0.first().map_or(Ok(()), |first| Quoted(first).fmt(f))
    }
}

struct DidYouMean<'a>(&'a Option<Arc<str>>);

impl fmt::Display for DidYouMean<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |nearest| write!(f, ", did you mean `{nearest}`?"))
    }
}
