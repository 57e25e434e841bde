//! Binds a plan to an engine's runners: resolves names to indices, checks arguments, and resolves images and
//! environments.
//!
//! Over 500 lines because a step is bound in one pass, in which each part may add problems of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    num::NonZeroU32,
    sync::Arc,
    time::Duration,
};

use serde_json::{Map, Value};

use super::{
    BindOptions, BoundPlan, BoundStep, LeftOutArg, Plan, PlannedInput, ServiceSource, StepIndex, bind_args,
    bound::{DEFAULT_IMAGE, display_name, is_rootfs},
    inputs::{InputEntry, InputScope},
    nearest::nearest,
    step_services::{self, Expanded, StepServices},
    step_tables::{self, FromTable, table_args},
};
use crate::{
    cache::CacheMode,
    ir::{
        CommandStep, EdgeKind, Env, InvalidPipeline, ProblemKind, ProblemPlace, Problems, check_env, on_change_paths,
    },
    model::OutcomeRules,
    runner::{ImageSupport, Network, RunnerDescriptor, RunnerIndex, ServiceBase},
};

/// The names of this project's runners, including those that the program is built without.
const PROJECT_RUNNERS: [&str; 5] = ["sandbox", "process", "vm", "docker", "cloud"];

/// Binds `plan` to runners.
///
/// # Errors
/// Returns every problem: each step whose runner is unknown (with the nearest known name), not compiled in,
/// or unsuitable (arguments, image, secrets, a parent's snapshot that it cannot boot from), and each invalid
/// option.
pub fn bind(plan: &Plan, runners: Vec<RunnerDescriptor>, options: &BindOptions) -> Result<BoundPlan, InvalidPipeline> {
    let mut binder = Binder::new(plan, &runners, options);
    let mut steps: Vec<_> = plan.dag().steps().map(|step| binder.step(step)).collect();
    for step in plan.dag().steps() {
        binder.check_lineage(step, &mut steps);
    }
    let inputs = binder.resolve_inputs(&mut steps);
    let Binder {
        mut problems, mut used_images, outcomes, outputs, used_tables, left_out, services, cache_limits, ..
    } = binder;
    let (services, without_snapshot) = services.finish(&steps, &runners);
    without_snapshot.into_iter().for_each(|(place, kind)| problems.add(place, kind));
    used_images.extend(services.used_images);
    problems.check()?;
    Ok(BoundPlan {
        dag: Arc::clone(&plan.inner.dag),
        // Without problems every step has its runner.
        steps: steps.into_iter().flatten().collect(),
        timeout: plan.pipeline().timeout_seconds.map(seconds).into_iter().chain(options.timeout).min(),
        outcomes,
        outputs,
        services: services.bound,
        seeds: services.seeds,
        inputs,
        cache_mode: options.cache_mode,
        cache_limits,
        keep: options.keep,
        unused_images: options.images.keys().filter(|image| !used_images.contains(image.as_str())).cloned().collect(),
        unused_tables: (0..options.step_tables.len()).filter(|at| !used_tables.contains(at)).collect(),
        left_out,
        runners,
    })
}

/// The state of one binding.
struct Binder<'a> {
    plan: &'a Plan,
    runners: &'a [RunnerDescriptor],
    options: &'a BindOptions,
    /// The runner of steps that name none. `Err` if the options name a wrong runner, which has already been
    /// reported.
    default_runner: Result<Option<RunnerIndex>, ()>,
    default_image: Arc<str>,
    images: BTreeMap<&'a str, Arc<str>>,
    used_images: BTreeSet<&'a str>,
    /// The result of each image check: most images pass.
    checked_images: BTreeMap<(Arc<str>, RunnerIndex), Result<(), String>>,
    /// The runners that have already been reported as unable to provide secrets.
    without_secrets: BTreeSet<RunnerIndex>,
    /// The own and the merged environment of the last step: most steps share theirs.
    last_env: Option<(&'a Arc<Env>, Arc<Env>)>,
    /// The arguments to check for a step that has none: the runner may require some.
    no_args: Value,
    /// The runners that were found to require none.
    without_args: BTreeSet<RunnerIndex>,
    /// The steps whose failures are allowed or retried.
    outcomes: BTreeMap<StepIndex, OutcomeRules>,
    /// The patterns of the files that steps leave for the user.
    outputs: BTreeMap<StepIndex, Arc<[Arc<str>]>>,
    /// The steps that reuse less than the run.
    cache_limits: BTreeMap<StepIndex, CacheMode>,
    /// The inputs of steps as they are written, and the table that sets them.
    inputs: Vec<(StepIndex, Vec<InputEntry>, Option<Arc<str>>)>,
    /// The tables of the options that match a step, by position.
    used_tables: BTreeSet<usize>,
    /// The arguments that steps do not get, each with the number of these steps.
    left_out: BTreeMap<LeftOutArg, usize>,
    services: StepServices<'a>,
    problems: Problems,
}

impl<'a> Binder<'a> {
    fn new(plan: &'a Plan, runners: &'a [RunnerDescriptor], options: &'a BindOptions) -> Self {
        let mut binder = Self {
            plan,
            runners,
            options,
            default_runner: Ok(index(runners, |runner| runner.is_default)),
            default_image: plan.pipeline().default_image.clone().unwrap_or_else(|| DEFAULT_IMAGE.into()),
            images: options.images.iter().map(|(from, to)| (from.as_str(), to.as_str().into())).collect(),
            used_images: BTreeSet::new(),
            checked_images: BTreeMap::new(),
            without_secrets: BTreeSet::new(),
            last_env: None,
            no_args: Value::Object(Map::new()),
            without_args: BTreeSet::new(),
            outcomes: BTreeMap::new(),
            outputs: BTreeMap::new(),
            cache_limits: BTreeMap::new(),
            inputs: Vec::new(),
            used_tables: BTreeSet::new(),
            left_out: BTreeMap::new(),
            services: StepServices::new(plan, options),
            problems: Problems::default(),
        };
        if let Some(name) = &options.runner {
            binder.default_runner = binder.runner_named(name, || ProblemPlace::Options).map(Some).ok_or(());
        }
        check_env(&options.env, || ProblemPlace::Options, &mut binder.problems);
        binder
    }

    /// Binds a step. Returns `None` if it has no runner, for a reason that is among the problems.
    fn step(&mut self, at: StepIndex) -> Option<BoundStep> {
        let node = &self.plan.pipeline().nodes[at.get()];
        let step = &node.step;
        let place = || ProblemPlace::Step { node: at.get(), key: Arc::clone(&step.key) };
        let runner = match &step.runner {
            Some(name) => self.runner_named(name, place)?,
            None => match self.default_runner {
                Ok(Some(runner)) => runner,
                Ok(None) => {
                    let kind = ProblemKind::NoDefaultRunner { known: self.known() };
                    self.problems.add(place(), kind);
                    return None;
                }
                Err(()) => return None,
            },
        };
        let descriptor = &self.runners[usize::from(runner.0)];

        let found = self.table_args(step);
        let with_tables = if found.is_empty() { None } else { step_tables::merged(step, &found) };
        let with_tables = with_tables
            .map(|args| Arc::new(CommandStep { runner_args: Some(Value::Object(args)), ..CommandStep::clone(step) }));
        let step = with_tables.as_ref().unwrap_or(step);
        let own = step.runner_args.as_ref().and_then(bind_args::take);
        let own = own.map(|taken| {
            for problem in taken.problems {
                self.problems.add(place(), set_in_table(problem, &found));
            }
            if taken.rules != OutcomeRules::default() {
                self.outcomes.insert(at, taken.rules);
            }
            if let Some(limit) = taken.cache.filter(|limit| *limit != CacheMode::Auto) {
                self.cache_limits.insert(at, limit);
            }
            if taken.outputs.is_empty() {
                // Most steps have none.
            } else if descriptor.capabilities.outputs {
                self.outputs.insert(at, taken.outputs.into());
            } else {
                let (name, runner) = (bind_args::OUTPUTS, Arc::clone(&descriptor.name));
                let reason = "this runner cannot copy files of its steps: use another one, such as `sandbox`";
                match found.get(name).filter(|from| from.is_general()) {
                    Some(from) => {
                        let (source, reason) = (Arc::clone(&from.arg.source), reason.into());
                        let arg = LeftOutArg { name: name.into(), source, runner, reason };
                        *self.left_out.entry(arg).or_default() += 1;
                    }
                    None => {
                        let (path, message) = (format!("runner_args.{name}"), reason.into());
                        let kind = ProblemKind::RunnerArgs { runner, path, message };
                        self.problems.add(place(), set_in_table(kind, &found));
                    }
                }
            }
            if !taken.inputs.is_empty() {
                let from = found.get("inputs").map(|from| Arc::clone(&from.arg.source));
                self.inputs.push((at, taken.inputs, from));
            }
            Arc::new(CommandStep { runner_args: taken.rest, ..CommandStep::clone(step) })
        });
        let step = own.as_ref().unwrap_or(step);
        let args = step.runner_args.as_ref().filter(|_| descriptor.capabilities.services);
        let expanded = args.and_then(|args| self.services.expand(args));
        let expanded = expanded.map(|Expanded { args, problems }| {
            for problem in problems {
                self.problems.add(place(), set_in_table(problem, &found));
            }
            Arc::new(CommandStep { runner_args: args, ..CommandStep::clone(step) })
        });
        let step = expanded.as_ref().unwrap_or(step);
        let accepted = self.without_refused(step, &found, descriptor);
        let step = &self.with_network(accepted.as_ref().unwrap_or(step), descriptor);
        let checked = match &step.runner_args {
            Some(args) => descriptor.args.check(args),
            None if self.without_args.contains(&runner) => Ok(()),
            None => descriptor.args.check(&self.no_args).inspect(|()| _ = self.without_args.insert(runner)),
        };
        match checked {
            Ok(()) if descriptor.capabilities.services => {
                for problem in self.bind_services(at, step, runner) {
                    self.problems.add(place(), problem);
                }
            }
            Ok(()) => {}
            Err(error) => {
                let refused = step_services::refusal(step.runner_args.as_ref(), descriptor);
                let error = refused.unwrap_or_else(|| bind_args::with_names(error, &descriptor.args));
                let runner = Arc::clone(&descriptor.name);
                let kind = ProblemKind::RunnerArgs { runner, path: error.path, message: error.message };
                self.problems.add(place(), set_in_table(kind, &found));
            }
        }
        if let Some(Err(wrong)) = step.cache.as_deref().map(on_change_paths) {
            self.problems.add(place(), ProblemKind::OnChangePath { path: wrong.path, message: wrong.message });
        }
        if self.options.has_secrets && !descriptor.capabilities.secrets && self.without_secrets.insert(runner) {
            let kind = ProblemKind::Secrets { runner: Arc::clone(&descriptor.name) };
            self.problems.add(place(), kind);
        }
        let step = match self.plan.dag().lineage_parent(at) {
            Some(_) => Arc::clone(step),
            None => self.root(step, runner, place),
        };
        let mut children = self.plan.dag().children(at).iter();
        Some(BoundStep {
            display_name: display_name(&step),
            env: self.env(&node.env),
            runner,
            has_lineage_children: children.any(|child| child.kind == EdgeKind::BuildsIn),
            // Set when every step has its runner.
            has_foreign_children: false,
            is_input: false,
            is_refreshed: self.options.no_cache || self.options.refresh.contains(&*step.key),
            step,
        })
    }

    /// Returns what the options' tables give to a step.
    fn table_args(&mut self, step: &CommandStep) -> BTreeMap<&'a str, FromTable<'a>> {
        let tables = &self.options.step_tables;
        if tables.is_empty() {
            return BTreeMap::new();
        }
        self.used_tables.extend((0..tables.len()).filter(|&at| tables[at].matches(step)));
        let mut found = table_args(tables, step);
        if self.options.network.is_some() {
            // The option wins over files.
            found.remove("network");
        }
        found
    }

    /// Returns the step without what general tables give to it and its runner does not accept.
    fn without_refused(
        &mut self,
        step: &Arc<CommandStep>,
        found: &BTreeMap<&str, FromTable<'_>>,
        runner: &RunnerDescriptor,
    ) -> Option<Arc<CommandStep>> {
        if found.is_empty() {
            return None;
        }
        let mut args = step.runner_args.clone();
        let left_out = step_tables::leave_out(&mut args, found, runner);
        if left_out.is_empty() {
            return None;
        }
        for arg in left_out {
            *self.left_out.entry(arg).or_default() += 1;
        }
        Some(Arc::new(CommandStep { runner_args: args, ..CommandStep::clone(step) }))
    }

    /// Returns the step with the options' network, if it names none and its runner can provide that one.
    fn with_network(&self, step: &Arc<CommandStep>, runner: &RunnerDescriptor) -> Arc<CommandStep> {
        let name = match self.options.network {
            // That is the default, on runners that have such networks.
            None | Some(Network::Private) => return Arc::clone(step),
            Some(Network::Host) if !runner.capabilities.private_network => return Arc::clone(step),
            Some(Network::Host) => "host",
            Some(Network::None) => "none",
        };
        let mut args = match &step.runner_args {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(args)) if !args.contains_key("network") => args.clone(),
            Some(_) => return Arc::clone(step),
        };
        args.insert("network".to_owned(), name.into());
        let args = Value::Object(args);
        match runner.args.check(&args) {
            Ok(()) => Arc::new(CommandStep { runner_args: Some(args), ..CommandStep::clone(step) }),
            Err(_) => Arc::clone(step),
        }
    }

    /// Resolves a root step's image.
    fn root(
        &mut self,
        step: &Arc<CommandStep>,
        at: RunnerIndex,
        place: impl FnOnce() -> ProblemPlace,
    ) -> Arc<CommandStep> {
        let named = step.image.clone().unwrap_or_else(|| Arc::clone(&self.default_image));
        let mut image = Arc::clone(&named);
        if let Some((from, to)) = self.images.get_key_value(&*named) {
            self.used_images.insert(from);
            image = Arc::clone(to);
        }
        if let Some(kind) = self.image_problem(&image, &named, at) {
            self.problems.add(place(), kind);
        }
        if step.image.as_ref() == Some(&image) {
            Arc::clone(step)
        } else {
            Arc::new(CommandStep { image: Some(image), ..CommandStep::clone(step) })
        }
    }

    /// Returns why a runner cannot boot from an image, which the pipeline names `named`.
    fn image_problem(&mut self, image: &Arc<str>, named: &Arc<str>, at: RunnerIndex) -> Option<ProblemKind> {
        let runner = &self.runners[usize::from(at.0)];
        let images = match runner.capabilities.images {
            ImageSupport::Any | ImageSupport::All => None,
            ImageSupport::HostOnly => (**image != *DEFAULT_IMAGE).then_some("`host`"),
            ImageSupport::Portable => (**image == *DEFAULT_IMAGE).then_some("images other than `host`"),
            ImageSupport::Local => {
                (**image != *DEFAULT_IMAGE && !is_rootfs(image)).then_some("`host` and `rootfs:DIR`")
            }
        };
        if let Some(images) = images {
            let (image, named) = (Arc::clone(image), Arc::clone(named));
            return Some(ProblemKind::Image { runner: Arc::clone(&runner.name), image, images, named });
        }
        let checked = self.checked_images.entry((Arc::clone(image), at));
        let checked = checked.or_insert_with(|| runner.capabilities.images.check(image));
        checked.as_ref().err().map(|reason| ProblemKind::BadImage(reason.clone()))
    }

    /// Resolves what the services of a step boot from. Returns what is wrong with them.
    fn bind_services(&mut self, at: StepIndex, step: &CommandStep, runner: RunnerIndex) -> Vec<ProblemKind> {
        let mut problems = Vec::new();
        let descriptor = &self.runners[usize::from(runner.0)];
        for (name, service) in StepServices::of(step.runner_args.as_ref()) {
            if !service.secrets.is_empty() && !descriptor.capabilities.secrets {
                problems.push(ProblemKind::RunnerArgs {
                    runner: Arc::clone(&descriptor.name),
                    path: format!("runner_args.services.{name}.secrets"),
                    message: "this runner does not support secrets".into(),
                });
            }
            let source = match service.base {
                ServiceBase::Image(image) => {
                    let image = Arc::from(image);
                    problems.extend(self.image_problem(&image, &image, runner));
                    Ok(ServiceSource::Image(image))
                }
                ServiceBase::Step(key) => self.services.seed(at, &name, &key).map(ServiceSource::Step),
            };
            match source {
                Ok(source) => self.services.add(at, name, source),
                Err(problem) => problems.push(problem),
            }
        }
        problems
    }

    fn env(&mut self, own: &'a Arc<Env>) -> Arc<Env> {
        if self.options.env.is_empty() {
            return Arc::clone(own);
        }
        if let Some((last_own, merged)) = &self.last_env
            && Arc::ptr_eq(last_own, own)
        {
            return Arc::clone(merged);
        }
        let mut merged = Env::clone(own);
        merged.extend(self.options.env.iter().map(|(name, value)| (name.clone(), value.clone())));
        let merged = Arc::new(merged);
        self.last_env = Some((own, Arc::clone(&merged)));
        merged
    }

    /// Checks that a child can boot from its parent's snapshot. If they have different runners, both must
    /// support layers.
    fn check_lineage(&mut self, at: StepIndex, steps: &mut [Option<BoundStep>]) {
        let Some(parent) = self.plan.dag().lineage_parent(at) else { return };
        let Some(child_runner) = steps[at.get()].as_ref().map(|child| child.runner) else { return };
        if let Some(parent) = &mut steps[parent.get()] {
            parent.has_foreign_children |= parent.runner != child_runner;
        }
        let (Some(child), Some(parent)) = (&steps[at.get()], &steps[parent.get()]) else { return };
        let runner = &self.runners[usize::from(child.runner.0)];
        let parent_runner = &self.runners[usize::from(parent.runner.0)];
        if child.runner == parent.runner || runner.capabilities.layers && parent_runner.capabilities.layers {
            return;
        }
        let kind = ProblemKind::ForeignSnapshot {
            runner: Arc::clone(&runner.name),
            parent: Arc::clone(&parent.step.key),
            parent_runner: Arc::clone(&parent_runner.name),
        };
        let place = ProblemPlace::Step { node: at.get(), key: Arc::clone(&child.step.key) };
        self.problems.add(place, kind);
    }

    /// Resolves the inputs of all steps.
    fn resolve_inputs(&mut self, steps: &mut [Option<BoundStep>]) -> BTreeMap<StepIndex, Vec<PlannedInput>> {
        let mut all = BTreeMap::new();
        let entries = mem::take(&mut self.inputs);
        if entries.is_empty() {
            return all;
        }
        let scope = InputScope::new(self.plan.pipeline(), self.plan.dag());
        for (at, entries, table) in entries {
            let mut problems = Vec::new();
            let Some(bound) = &steps[at.get()] else { continue };
            let inputs = scope.resolve(at, &entries, bound.step.runner_args.as_ref(), &mut problems);
            let runner = &self.runners[usize::from(bound.runner.0)];
            if !runner.capabilities.inputs {
                problems.push(ProblemKind::RunnerArgs {
                    runner: Arc::clone(&runner.name),
                    path: "runner_args.inputs".into(),
                    message: "this runner cannot show files of other steps to a step: use `sandbox` or `docker`".into(),
                });
            }
            let key = Arc::clone(&bound.step.key);
            for PlannedInput { step, path, .. } in &inputs {
                let Some(other) = &mut steps[step.get()] else { continue };
                other.is_input = true;
                let runner = &self.runners[usize::from(other.runner.0)];
                if !runner.capabilities.layers {
                    let message = format!("runner `{}` keeps no files for other steps: use `sandbox`", runner.name);
                    problems.push(ProblemKind::Input { input: format!("{}:{path}", other.step.key), message });
                }
            }
            for kind in problems {
                let kind = match &table {
                    Some(place) => ProblemKind::FromTable { place: Arc::clone(place), kind: Box::new(kind) },
                    None => kind,
                };
                self.problems.add(ProblemPlace::Step { node: at.get(), key: Arc::clone(&key) }, kind);
            }
            all.insert(at, inputs);
        }
        all
    }

    fn runner_named(&mut self, name: &str, place: impl FnOnce() -> ProblemPlace) -> Option<RunnerIndex> {
        if let Some(runner) = index(self.runners, |runner| *runner.name == *name) {
            return Some(runner);
        }
        let known = self.known();
        let kind = match PROJECT_RUNNERS.into_iter().find(|known| *known == name) {
            Some(name) => ProblemKind::MissingRunner { name, known },
            None => ProblemKind::UnknownRunner { name: name.to_owned(), nearest: nearest(name, &known), known },
        };
        self.problems.add(place(), kind);
        None
    }

    fn known(&self) -> Vec<Arc<str>> {
        self.runners.iter().map(|runner| Arc::clone(&runner.name)).collect()
    }
}

/// Adds to a problem of an argument which table sets it, if one does.
fn set_in_table(kind: ProblemKind, found: &BTreeMap<&str, FromTable<'_>>) -> ProblemKind {
    let (ProblemKind::RunnerArgs { path, .. } | ProblemKind::StepArg { path, .. }) = &kind else { return kind };
    let name = path.strip_prefix("runner_args.").unwrap_or_default();
    let name = name.split(['.', '[']).next().unwrap_or_default();
    // A runner without arguments names none.
    let any = || found.values().find(|from| !from.is_general()).filter(|_| path == "runner_args");
    let from = found.get(name).or_else(any);
    match from {
        Some(from) => ProblemKind::FromTable { place: Arc::clone(&from.arg.source), kind: Box::new(kind) },
        None => kind,
    }
}

fn index(runners: &[RunnerDescriptor], is_it: impl Fn(&RunnerDescriptor) -> bool) -> Option<RunnerIndex> {
    runners.iter().position(is_it).and_then(|at| u16::try_from(at).ok()).map(RunnerIndex)
}

fn seconds(seconds: NonZeroU32) -> Duration {
    Duration::from_secs(seconds.get().into())
}
