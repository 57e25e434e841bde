//! The services of steps: their names in `runner_args` are replaced by their definitions, and what they boot
//! from is resolved.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{BindOptions, BoundService, BoundStep, Plan, ServiceSource, StepIndex, nearest::nearest};
use crate::{
    ir::{ProblemKind, ProblemPlace},
    runner::{ArgsError, RunnerDescriptor, ServiceArg},
};

/// The name of the argument.
const SERVICES: &str = "services";

/// The most steps that services of a plan boot from: for each, the steps after it are found.
const MAX_SEEDS: usize = 256;

/// The most keys that an unknown one is compared with.
const MAX_COMPARED: usize = 1000;

/// The services that are bound so far.
pub(super) struct StepServices<'a> {
    plan: &'a Plan,
    options: &'a BindOptions,
    /// The names of the options' services, for messages.
    known: Arc<[Arc<str>]>,
    bound: BTreeMap<StepIndex, Vec<BoundService>>,
    used_images: BTreeSet<&'a str>,
    /// The steps by key, once a service boots from one.
    by_key: Option<BTreeMap<&'a str, StepIndex>>,
    /// The steps that services boot from, each with the steps that come after it.
    after: BTreeMap<StepIndex, Vec<bool>>,
}

/// What the services of a plan are bound to.
pub(super) struct BoundServices<'a> {
    pub(super) bound: BTreeMap<StepIndex, Vec<BoundService>>,
    /// The steps that services boot from, each with whether another runner does that.
    pub(super) seeds: BTreeMap<StepIndex, bool>,
    pub(super) used_images: BTreeSet<&'a str>,
}

/// The arguments of a step with its services defined.
pub(super) struct Expanded {
    pub(super) args: Option<Value>,
    pub(super) problems: Vec<ProblemKind>,
}

/// Returns why a runner refuses the services of a step, if it has none at all. Its own reason may be about
/// all arguments.
pub(super) fn refusal(args: Option<&Value>, runner: &RunnerDescriptor) -> Option<ArgsError> {
    let wants = match args?.get(SERVICES)? {
        Value::Array(names) => !names.is_empty(),
        Value::Object(defined) => !defined.is_empty(),
        _ => false,
    };
    let message = "this runner has no services: run the step on `sandbox` or `docker`";
    let error = || ArgsError { path: format!("runner_args.{SERVICES}"), message: message.into() };
    (wants && !runner.capabilities.services).then(error)
}

impl<'a> StepServices<'a> {
    pub(super) fn new(plan: &'a Plan, options: &'a BindOptions) -> Self {
        Self {
            plan,
            options,
            known: options.services.keys().map(|name| name.as_str().into()).collect(),
            bound: BTreeMap::new(),
            used_images: BTreeSet::new(),
            by_key: None,
            after: BTreeMap::new(),
        }
    }

    /// Replaces the names of services by their definitions, and their images by those of the options. Returns
    /// `None` if the step has no services, or if they are neither names nor definitions.
    pub(super) fn expand(&mut self, args: &Value) -> Option<Expanded> {
        let (services, mut problems) = (args.get(SERVICES)?, Vec::new());
        let mut defined = match services {
            Value::Array(names) => self.defined(names, &mut problems),
            Value::Object(defined) => defined.clone(),
            _ => return None,
        };
        for (name, definition) in defined.iter().filter(|(_, definition)| !definition.is_object()) {
            problems.push(ProblemKind::StepArg {
                path: format!("runner_args.{SERVICES}.{name}"),
                expected: "an object",
                found: definition.to_string(),
            });
        }
        for image in defined.values_mut().filter_map(|service| service.get_mut("image")) {
            if let Some((from, to)) = image.as_str().and_then(|image| self.options.images.get_key_value(image)) {
                self.used_images.insert(from);
                *image = to.as_str().into();
            }
        }
        let mut args = args.as_object()?.clone();
        match defined.is_empty() {
            true => drop(args.remove(SERVICES)),
            false => drop(args.insert(SERVICES.to_owned(), Value::Object(defined))),
        }
        Some(Expanded { args: (!args.is_empty()).then_some(Value::Object(args)), problems })
    }

    fn defined(&self, names: &[Value], problems: &mut Vec<ProblemKind>) -> Map<String, Value> {
        let mut services = Map::new();
        for name in names {
            match name.as_str().map(|name| (name, self.options.services.get(name))) {
                Some((name, Some(definition))) => drop(services.insert(name.to_owned(), definition.clone())),
                Some((name, None)) => {
                    let (nearest, known) = (nearest(name, &self.known), Arc::clone(&self.known));
                    problems.push(ProblemKind::UnknownService { name: name.to_owned(), nearest, known });
                }
                None => problems.push(ProblemKind::StepArg {
                    path: format!("runner_args.{SERVICES}"),
                    expected: "a list of names",
                    found: name.to_string(),
                }),
            }
        }
        services
    }

    /// Returns the services in a step's arguments, which its runner has accepted.
    pub(super) fn of(args: Option<&Value>) -> BTreeMap<String, ServiceArg> {
        let services = args.and_then(|args| args.get(SERVICES));
        services.and_then(|services| BTreeMap::deserialize(services).ok()).unwrap_or_default()
    }

    /// Adds a service that boots from `source` to those of a step.
    pub(super) fn add(&mut self, at: StepIndex, name: String, source: ServiceSource) {
        self.bound.entry(at).or_default().push(BoundService { name: name.into(), source });
    }

    /// Returns the step with the key `step`, from which the service `service` of step `at` boots.
    pub(super) fn seed(&mut self, at: StepIndex, service: &str, step: &str) -> Result<StepIndex, ProblemKind> {
        let nodes = &self.plan.pipeline().nodes;
        let by_key = self
            .by_key
            .get_or_insert_with(|| nodes.iter().map(|node| &*node.step.key).zip((0..).map(StepIndex)).collect());
        let (service, dag) = (service.to_owned(), self.plan.dag());
        let Some(&seed) = by_key.get(step) else {
            let known: Vec<Arc<str>> = nodes.iter().take(MAX_COMPARED).map(|node| Arc::clone(&node.step.key)).collect();
            let nearest = nearest(step, &known);
            return Err(ProblemKind::UnknownServiceStep { service, step: step.to_owned(), nearest });
        };
        if self.after.len() >= MAX_SEEDS && !self.after.contains_key(&seed) {
            return Err(ProblemKind::TooManyServiceSteps { limit: MAX_SEEDS });
        }
        let after = self.after.entry(seed).or_insert_with(|| {
            let mut after = vec![false; dag.len()];
            for &step in dag.order() {
                after[step.get()] = dag.parents(step).iter().any(|link| link.step == seed || after[link.step.get()]);
            }
            after
        });
        match after[at.get()] {
            true => Ok(seed),
            false => Err(ProblemKind::LateServiceStep { service, step: step.to_owned() }),
        }
    }

    /// Finds out which services cannot boot from a step's snapshot, because another runner makes it.
    pub(super) fn finish(
        self,
        steps: &[Option<BoundStep>],
        runners: &[RunnerDescriptor],
    ) -> (BoundServices<'a>, Vec<(ProblemPlace, ProblemKind)>) {
        let (mut seeds, mut problems) = (BTreeMap::new(), Vec::new());
        for (at, services) in &self.bound {
            for service in services {
                let ServiceSource::Step(seed) = service.source else { continue };
                let (Some(step), Some(from)) = (&steps[at.get()], &steps[seed.get()]) else { continue };
                *seeds.entry(seed).or_insert(false) |= step.runner != from.runner;
                let [runner, parent_runner] = [step, from].map(|step| &runners[usize::from(step.runner.0)]);
                if step.runner == from.runner || runner.capabilities.layers && parent_runner.capabilities.layers {
                    continue;
                }
                let place = ProblemPlace::Step { node: at.get(), key: Arc::clone(&step.step.key) };
                let kind = ProblemKind::ForeignSnapshot {
                    runner: Arc::clone(&runner.name),
                    parent: Arc::clone(&from.step.key),
                    parent_runner: Arc::clone(&parent_runner.name),
                };
                problems.push((place, kind));
            }
        }
        (BoundServices { bound: self.bound, seeds, used_images: self.used_images }, problems)
    }
}
