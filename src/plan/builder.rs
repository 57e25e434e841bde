//! A plan that a program makes, without JSON.
//!
//! The input is steps that name their parents by key. The output is a [`Plan`], which has passed the
//! validation of decoded IR.

use std::{collections::HashMap, sync::Arc, time::Duration};

use serde_json::{Map, Value};

use super::{Plan, nearest::nearest};
use crate::ir::{Cache, CommandStep, Draft, Edge, EdgeKind, Env, InvalidPipeline, ProblemKind, ProblemPlace, Problems};

/// Makes a [`Plan`]: [`Plan::builder`].
#[derive(Debug, Clone, Default)]
#[must_use = "call `build`"]
pub struct PlanBuilder {
    default_image: Option<Arc<str>>,
    timeout: Option<Duration>,
    env: Env,
    steps: Vec<Step>,
    edges: Vec<(Arc<str>, Arc<str>, EdgeKind)>,
}

/// A step of a [`PlanBuilder`].
///
/// ```
/// use std::time::Duration;
///
/// use hm_exec::{ir::Cache, plan::Step};
///
/// let step = Step::new("test", "cargo test")
///     .label("Test")
///     .builds_in("compile")
///     .depends_on("lint")
///     .env("RUST_BACKTRACE", "1")
///     .runner("sandbox")
///     .runner_arg("memory", "4g")
///     .runner_arg("retries", 2)
///     .timeout(Duration::from_secs(600))
///     .cache(Cache::on_change("v1", ["Cargo.lock", "src/**"]));
/// # let plan = hm_exec::Plan::builder().step(Step::new("lint", "true")).step(Step::new("compile", "true"));
/// # assert!(plan.step(step).build().is_ok());
/// ```
#[derive(Debug, Clone)]
#[must_use = "add it to a `PlanBuilder`"]
pub struct Step {
    key: Arc<str>,
    cmd: Arc<str>,
    label: Option<Arc<str>>,
    image: Option<Arc<str>>,
    env: Env,
    timeout: Option<Duration>,
    cache: Option<Cache>,
    runner: Option<Arc<str>>,
    runner_args: Map<String, Value>,
    parents: Vec<(Arc<str>, EdgeKind)>,
}

impl Step {
    /// Creates a step with a unique name and a command for `sh -c`.
    pub fn new(key: impl Into<Arc<str>>, cmd: impl Into<Arc<str>>) -> Self {
        Self {
            key: key.into(),
            cmd: cmd.into(),
            label: None,
            image: None,
            env: Env::new(),
            timeout: None,
            cache: None,
            runner: None,
            runner_args: Map::new(),
            parents: Vec::new(),
        }
    }

    /// Sets the name that is displayed instead of the key.
    pub fn label(mut self, label: impl Into<Arc<str>>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Sets the image that the step boots from. It is for steps that build in no other.
    pub fn image(mut self, image: impl Into<Arc<str>>) -> Self {
        self.image = Some(image.into());
        self
    }

    /// Sets a variable. It overrides that of the plan.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Sets several variables.
    pub fn envs<N: Into<String>, V: Into<String>>(mut self, env: impl IntoIterator<Item = (N, V)>) -> Self {
        self.env.extend(env.into_iter().map(|(name, value)| (name.into(), value.into())));
        self
    }

    /// Sets the time limit of one attempt, in whole seconds.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }

    /// Sets whether later runs may reuse the step's result.
    pub fn cache(mut self, mut cache: Cache) -> Self {
        // The JSON of a policy has one object for its fields and its parameters.
        for field in ["policy", "key"] {
            cache.parameters.remove(field);
        }
        self.cache = Some(cache);
        self
    }

    /// Sets the name of the runner. By default the engine's default runs the step.
    pub fn runner(mut self, runner: impl Into<Arc<str>>) -> Self {
        self.runner = Some(runner.into());
        self
    }

    /// Sets an argument for the runner, or one that every runner takes: `soft_fail`, `retries`.
    pub fn runner_arg(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.runner_args.insert(name.into(), value.into());
        self
    }

    /// Sets several arguments, as [`runner_arg`](Self::runner_arg) sets one.
    pub fn runner_args<N: Into<String>, V: Into<Value>>(mut self, args: impl IntoIterator<Item = (N, V)>) -> Self {
        self.runner_args.extend(args.into_iter().map(|(name, value)| (name.into(), value.into())));
        self
    }

    /// Starts the step from the filesystem of another step, which it waits for. A step has at most one such
    /// parent.
    pub fn builds_in(self, parent: impl Into<Arc<str>>) -> Self {
        self.parent(parent.into(), EdgeKind::BuildsIn)
    }

    /// Makes the step wait for another step.
    pub fn depends_on(self, parent: impl Into<Arc<str>>) -> Self {
        self.parent(parent.into(), EdgeKind::DependsOn)
    }

    fn parent(mut self, parent: Arc<str>, kind: EdgeKind) -> Self {
        self.parents.push((parent, kind));
        self
    }

    fn into_command(self) -> CommandStep {
        CommandStep {
            key: self.key,
            label: self.label,
            cmd: self.cmd,
            image: self.image,
            env: (!self.env.is_empty()).then_some(self.env).map(Arc::new),
            // A draft checks it.
            timeout_seconds: None,
            cache: self.cache.map(Box::new),
            runner: self.runner,
            runner_args: (!self.runner_args.is_empty()).then_some(Value::Object(self.runner_args)),
        }
    }
}

impl PlanBuilder {
    /// Sets the image of steps that build in no other and name none.
    pub fn default_image(mut self, image: impl Into<Arc<str>>) -> Self {
        self.default_image = Some(image.into());
        self
    }

    /// Sets the time limit of the whole build, in whole seconds.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }

    /// Sets a variable of all steps.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Adds a step.
    pub fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// Adds several steps.
    pub fn steps(mut self, steps: impl IntoIterator<Item = Step>) -> Self {
        self.steps.extend(steps);
        self
    }

    /// Adds a dependency between two steps, by their keys. Those of [`Step::builds_in`] and
    /// [`Step::depends_on`] come first.
    pub fn edge(mut self, parent: impl Into<Arc<str>>, child: impl Into<Arc<str>>, kind: EdgeKind) -> Self {
        self.edges.push((parent.into(), child.into(), kind));
        self
    }

    /// Makes the plan.
    ///
    /// # Errors
    /// Returns every mistake: those of [`Plan::parse`], and each parent or child that is no step.
    pub fn build(self) -> Result<Plan, InvalidPipeline> {
        let Self { default_image, timeout, env, mut steps, edges } = self;
        let mut problems = Problems::default();
        let mut draft = Draft::new(default_image, timeout);
        let keys = Keys::of(&steps);
        for (node, Step { key, parents, .. }) in steps.iter_mut().enumerate() {
            for (parent, kind) in std::mem::take(parents) {
                match keys.position(&parent) {
                    Ok(parent) => draft.edge(Edge(parent, node as u32, kind)),
                    Err(unknown) => problems.add(ProblemPlace::Step { node, key: Arc::clone(key) }, unknown),
                }
            }
        }
        for (parent, child, kind) in edges {
            let ends = [parent, child]
                .map(|key| keys.position(&key).map_err(|unknown| problems.add(ProblemPlace::Pipeline, unknown)));
            if let [Ok(parent), Ok(child)] = ends {
                draft.edge(Edge(parent, child, kind));
            }
        }
        let shared = Arc::new(env);
        for step in steps {
            let env = match step.env.is_empty() {
                true => Arc::clone(&shared),
                false => {
                    let own = step.env.iter().map(|(name, value)| (name.clone(), value.clone()));
                    Arc::new(shared.iter().map(|(name, value)| (name.clone(), value.clone())).chain(own).collect())
                }
            };
            let timeout = step.timeout;
            draft.step(step.into_command(), timeout, env);
        }
        Plan::of_draft(draft, problems)
    }
}

/// The positions of steps by key.
struct Keys {
    positions: HashMap<Arc<str>, u32>,
    /// The keys in order, for suggestions.
    all: Vec<Arc<str>>,
}

impl Keys {
    /// The most keys that a wrong one is compared with.
    const COMPARED: usize = 1_000;

    fn of(steps: &[Step]) -> Self {
        let all: Vec<_> = steps.iter().map(|step| Arc::clone(&step.key)).collect();
        let mut positions = HashMap::with_capacity(all.len());
        for (at, key) in (0..).zip(&all) {
            // Validation reports a key that two steps have.
            positions.entry(Arc::clone(key)).or_insert(at);
        }
        Self { positions, all }
    }

    fn position(&self, key: &Arc<str>) -> Result<u32, ProblemKind> {
        self.positions.get(key).copied().ok_or_else(|| ProblemKind::UnknownStep {
            nearest: nearest(key, &self.all[..self.all.len().min(Self::COMPARED)]),
            key: Arc::clone(key),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn mistakes(builder: PlanBuilder) -> Vec<String> {
        builder.build().unwrap_err().problems().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_mistake_is_reported_at_once_in_the_words_of_the_ir() {
        let plan = Plan::builder()
            .timeout(Duration::ZERO)
            .default_image("a\0b")
            .step(Step::new("make", "make").timeout(Duration::from_millis(1500)).builds_in("mkae"))
            .step(Step::new("make", "make\0").depends_on("nothing-like-it"))
            .step(Step::new("", "true").env("A=B", "1"))
            .step(Step::new("self", "true").depends_on("self").builds_in("make").builds_in("late"))
            .step(Step::new("late", "true").depends_on("self"))
            .edge("make", "self2", EdgeKind::DependsOn)
            .edge("gone", "late", EdgeKind::BuildsIn);
        let expected = [
            "step `make`: no step with the key `mkae`, did you mean `make`?",
            "step `make`: no step with the key `nothing-like-it`",
            "pipeline: no step with the key `self2`, did you mean `self`?",
            "pipeline: no step with the key `gone`",
            "pipeline: `timeout_seconds` must be a whole number from 1 to 4294967295, not 0",
            "pipeline: `default_image` contains a NUL byte, which cannot be passed to a program",
            "step `make`: `timeout_seconds` must be a whole number from 1 to 4294967295, not 1.5",
            "step `make`: duplicate key: nodes 0 and 1 both have it",
            "step `make`: `cmd` contains a NUL byte, which cannot be passed to a program",
            "node 2: the step's key is empty",
            "node 2: invalid variable name `A=B`: a name must not be empty or contain `=` or NUL bytes",
            "edge 0 (`self` -> `self`): a step cannot depend on itself",
            "step `self`: more than one `builds_in` parent: `make` and `late`; a step starts from one snapshot, \
             so use `depends_on` for the others",
            "pipeline: dependency cycle: `self` -> `late` -> `self`",
        ];
        assert_eq!(mistakes(plan), expected);
    }

    #[test]
    fn a_parameter_cannot_replace_a_field_of_the_policy() {
        let mut cache = Cache::forever("v1");
        cache.parameters = BTreeMap::from([("key".to_owned(), 5.into()), ("more".to_owned(), true.into())]);
        let plan = Plan::builder().step(Step::new("a", "true").cache(cache)).build().unwrap();
        let again = Plan::parse(plan.ir_json()).unwrap();
        assert_eq!(again.pipeline(), plan.pipeline());
        assert_eq!(plan.pipeline().nodes[0].step.cache.as_ref().unwrap().key.as_deref(), Some("v1"));
    }

    #[test]
    fn a_plan_without_steps_is_a_plan() {
        let plan = Plan::builder().build().unwrap();
        assert!(plan.dag().is_empty());
        assert_eq!(Plan::parse(plan.ir_json()).unwrap().pipeline(), plan.pipeline());
    }
}
