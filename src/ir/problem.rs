//! The errors in a pipeline, and their positions.
//!
//! Decoding finds the errors in the IR itself. Binding to an engine's runners (`plan::bind`) finds the rest
//! and reports them with the same types, so that users read one list.

use std::{fmt, sync::Arc};

use super::text::{DidYouMean, List, Message, Name, Path, Quoted};

/// The maximum length of an argument or a variable that Linux passes to a program, in bytes: `MAX_ARG_STRLEN`
/// without the final NUL.
pub(super) const MAX_ARG_BYTES: usize = 128 * 1024 - 1;

/// All errors in a pipeline: at least one, each with its position.
///
/// `Display` has one line per error, below a heading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidPipeline {
    problems: Vec<Problem>,
    omitted: usize,
}

impl InvalidPipeline {
    /// The maximum number of errors that are kept; further ones are counted.
    pub const MAX_PROBLEMS: usize = 1_000;

    /// Returns a single error.
    pub(crate) fn of(place: ProblemPlace, kind: ProblemKind) -> Self {
        Self { problems: vec![Problem { place, kind }], omitted: 0 }
    }

    /// Returns the errors, in the order of the IR. There is at least one.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Returns the number of errors that are not in [`problems`](Self::problems).
    #[must_use]
    pub fn omitted(&self) -> usize {
        self.omitted
    }
}

impl fmt::Display for InvalidPipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("invalid pipeline:")?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))?;
        if self.omitted > 0 { write!(f, "\n  and {} more mistakes", self.omitted) } else { Ok(()) }
    }
}

impl std::error::Error for InvalidPipeline {}

/// Collects errors. Their number is bounded, because a hostile pipeline may have very many of them.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    kept: Vec<Problem>,
    omitted: usize,
}

impl Problems {
    pub(crate) fn add(&mut self, place: ProblemPlace, kind: ProblemKind) {
        if self.kept.len() < InvalidPipeline::MAX_PROBLEMS {
            self.kept.push(Problem { place, kind });
        } else {
            self.omitted += 1;
        }
    }

    /// Returns an error if there was any error so far.
    pub(crate) fn check(&mut self) -> Result<(), InvalidPipeline> {
        if self.kept.is_empty() {
            return Ok(());
        }
        Err(InvalidPipeline { problems: std::mem::take(&mut self.kept), omitted: self.omitted })
    }
}

/// One error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    place: ProblemPlace,
    kind: ProblemKind,
}

impl Problem {
    /// Returns the position of the error.
    #[must_use]
    pub fn place(&self) -> &ProblemPlace {
        &self.place
    }

    /// Returns the kind of the error.
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

/// The position of an error.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProblemPlace {
    /// The pipeline as a whole.
    Pipeline,
    /// The caller's options, which are not part of the pipeline.
    Options,
    /// A position in the JSON text.
    Json {
        /// The line, from 1.
        line: usize,
        /// The column in bytes, from 1; 0 before a line's first byte.
        column: usize,
        /// The path, such as `graph.nodes[2].step.cmd`; empty for the whole text.
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

impl fmt::Display for ProblemPlace {
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

/// What to do if a runner cannot start from an image: that image, and the one that the pipeline names.
struct OtherImage<'a>(&'a str, &'a str);

impl fmt::Display for OtherImage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// This machine's system.
        const HOST: &str = "host";
        let &Self(image, named) = self;
        let shown = Name(named);
        if image == HOST {
            write!(f, "choose one with `--image {shown}=IMAGE`, or in the pipeline")
        } else if named == HOST {
            write!(f, "remove `--image {shown}=...`")
        } else {
            write!(f, "to run on this machine's system instead: `--image {shown}=host`")
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

/// The kind of an error. `Display` includes the remedy, if it is not obvious.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProblemKind {
    /// The text is not JSON, or a value has the wrong type.
    #[error("{}", Message(.0))]
    Json(String),
    /// The IR has a version that this program does not read.
    #[error("unknown IR version {}, expected `0`: upgrade this program or the DSL", Quoted(.0))]
    UnknownVersion(String),
    /// The pipeline has more steps than [`Pipeline::MAX_STEPS`](super::Pipeline::MAX_STEPS).
    #[error("too many steps: {count}, the maximum is {max}", max = super::Pipeline::MAX_STEPS)]
    TooManySteps {
        /// The number of steps.
        count: usize,
    },
    /// The pipeline has more edges than can be indexed.
    #[error("too many edges: {count}, the maximum is {max}", max = u32::MAX)]
    TooManyEdges {
        /// The number of edges.
        count: usize,
    },
    /// `node_holes` is not empty. It has the positions of nodes that were removed from the graph.
    #[error("`node_holes` must be empty: number the nodes without gaps")]
    NodeHoles,
    /// `edge_property` is not `directed`.
    #[error("`edge_property` must be `directed`, not {}", Quoted(.0))]
    Undirected(String),
    /// An edge is `null`.
    #[error("edge {0} is null: leave out removed edges")]
    NullEdge(usize),
    /// An edge is neither `builds_in` nor `depends_on`.
    #[error("unknown kind {}, expected `builds_in` or `depends_on`", Quoted(.0))]
    UnknownEdgeKind(String),
    /// An end of an edge does not exist.
    #[error("no node {missing}: the graph has {count} nodes, counted from 0")]
    MissingNode {
        /// The position that does not exist.
        missing: u64,
        /// The number of nodes.
        count: usize,
    },
    /// An edge connects a step to itself.
    #[error("a step cannot depend on itself")]
    SelfEdge,
    /// Steps wait for each other.
    #[error("dependency cycle: {}", Path(.0))]
    Cycle(Vec<Arc<str>>),
    /// A step has more than one `builds_in` parent.
    #[error("more than one `builds_in` parent: {}; a step starts from one snapshot, so use `depends_on` for the others", List(.0))]
    ManyLineageParents(Vec<Arc<str>>),
    /// A parent or a child of a plan that a program makes does not exist.
    #[error("no step with the key {}{}", Quoted(.key), DidYouMean(.nearest))]
    UnknownStep {
        /// The key.
        key: Arc<str>,
        /// The most similar key of a step.
        nearest: Option<Arc<str>>,
    },
    /// The key is empty.
    #[error("the step's key is empty")]
    EmptyKey,
    /// An earlier node has the same key.
    #[error("duplicate key: nodes {first} and {node} both have it")]
    DuplicateKey {
        /// The first node that has it.
        first: usize,
        /// The node in error.
        node: usize,
    },
    /// `timeout_seconds` is not a positive 32-bit integer.
    #[error("`timeout_seconds` must be a whole number from 1 to {max}, not {0}", max = u32::MAX)]
    Timeout(String),
    /// A text has a NUL byte, which is impossible in a command, a variable or a path.
    #[error("`{field}` contains a NUL byte, which cannot be passed to a program")]
    NulByte {
        /// The field, such as `cmd`.
        field: &'static str,
    },
    /// The name of an environment variable is empty, or has a `=` or a NUL byte.
    #[error("invalid variable name {}: a name must not be empty or contain `=` or NUL bytes", Quoted(.0))]
    VariableName(String),
    /// The value of the environment variable of this name has a NUL byte.
    #[error("variable {} contains a NUL byte, which cannot be passed to a program", Quoted(.0))]
    VariableValue(String),
    /// A command exceeds the maximum length of a program's argument.
    #[error("`cmd` has {bytes} bytes, more than the limit of {max}: move it to a file of the project", max = MAX_ARG_BYTES)]
    CommandTooLong {
        /// The length of the command.
        bytes: usize,
    },
    /// A variable, including its name, exceeds the maximum length that can be passed to a program.
    #[error(
        "variable {} has {bytes} bytes, more than the limit of {max}: move it to a file of the project",
        Quoted(.name), max = MAX_ARG_BYTES
    )]
    VariableTooLong {
        /// Its name.
        name: String,
        /// The length of the variable, including its name.
        bytes: usize,
    },
    /// A step, or the options, name a runner that the engine does not have.
    #[error("no runner named {}{} (known: {})", Quoted(.name), DidYouMean(.nearest), List(.known))]
    UnknownRunner {
        /// The name.
        name: String,
        /// The most similar known name.
        nearest: Option<Arc<str>>,
        /// Every known name.
        known: Vec<Arc<str>>,
    },
    /// A step, or the options, name a runner of this project that was not compiled into the engine.
    #[error("runner `{name}` is not compiled into this program (known: {})", List(.known))]
    MissingRunner {
        /// The name.
        name: &'static str,
        /// Every known name.
        known: Vec<Arc<str>>,
    },
    /// The step names no runner, and there is no default.
    #[error("the step names no runner, and there is no default (known: {})", List(.known))]
    NoDefaultRunner {
        /// Every known name.
        known: Vec<Arc<str>>,
    },
    /// The runner refuses the step's `runner_args`.
    #[error("runner `{runner}` rejects {}: {}", Name(.path), Message(.message))]
    RunnerArgs {
        /// The runner.
        runner: Arc<str>,
        /// The path of the argument, such as `runner_args.memory`.
        path: String,
        /// The reason.
        message: String,
    },
    /// An argument of the step that no runner interprets, because the engine does, is wrong.
    #[error("{} must be {expected}, not {}", Name(.path), Quoted(.found))]
    StepArg {
        /// The path of the argument, such as `runner_args.retries`.
        path: String,
        /// The values that are possible.
        expected: &'static str,
        /// The value, as JSON.
        found: String,
    },
    /// An entry of the step's `inputs` is wrong.
    #[error("wrong input {}: {}", Quoted(.input), Message(.message))]
    Input {
        /// The entry: a step and a path.
        input: String,
        /// The reason, and the remedy.
        message: String,
    },
    /// An argument of the step is wrong that the pipeline does not have: a table of the options sets it.
    #[error("{kind} (set by {set_by})", set_by = Message(.place))]
    FromTable {
        /// The place that sets it.
        place: Arc<str>,
        /// The error.
        kind: Box<ProblemKind>,
    },
    /// The step names a service that nothing defines.
    #[error(
        "no service named {}{} (known: {}): define it as `[service.NAME]` in `.hm/hm.toml`",
        Quoted(.name), DidYouMean(.nearest), List(.known)
    )]
    UnknownService {
        /// The name.
        name: String,
        /// The most similar known name.
        nearest: Option<Arc<str>>,
        /// Every known name.
        known: Arc<[Arc<str>]>,
    },
    /// A service boots from a step that the pipeline does not have.
    #[error(
        "service {} boots from step {}, which the pipeline does not have{}",
        Quoted(.service), Quoted(.step), DidYouMean(.nearest)
    )]
    UnknownServiceStep {
        /// The service.
        service: String,
        /// The key.
        step: String,
        /// The most similar key.
        nearest: Option<Arc<str>>,
    },
    /// A service boots from a step that may end after the service has to start.
    #[error(
        "service {} boots from step {}, which this step does not wait for: add it to the step's `depends_on`",
        Quoted(.service), Quoted(.step)
    )]
    LateServiceStep {
        /// The service.
        service: String,
        /// The key of the step that it boots from.
        step: String,
    },
    /// Services boot from more steps than are followed.
    #[error("services boot from more than {limit} steps of the pipeline: let some share a step, or use images")]
    TooManyServiceSteps {
        /// The maximum.
        limit: usize,
    },
    /// The image's name is invalid, or refers to nothing on this machine.
    #[error("{0}")]
    BadImage(String),
    /// A path of the step's `on_change` policy is invalid.
    #[error("invalid `on_change` path {}: {message}", Name(.path))]
    OnChangePath {
        /// The path.
        path: String,
        /// The reason.
        message: &'static str,
    },
    /// The runner cannot boot from the step's image.
    #[error(
        "runner `{runner}` cannot start from image {}, only from {images}; {}",
        Quoted(.image), OtherImage(.image, .named)
    )]
    Image {
        /// The runner.
        runner: Arc<str>,
        /// The image, with substitutions applied.
        image: Arc<str>,
        /// The image that the pipeline names, before substitution.
        named: Arc<str>,
        /// The images that the runner can boot from.
        images: &'static str,
    },
    /// The run has secrets, and the runner cannot pass any to its steps.
    #[error("runner `{runner}` does not support secrets, but this run has some")]
    Secrets {
        /// The runner.
        runner: Arc<str>,
    },
    /// A step cannot boot from its parent's snapshot, because another runner made it.
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
