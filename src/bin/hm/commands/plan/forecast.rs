//! Predicts what a run would do with each step, and how long it would take: from the cache, and from earlier
//! runs.

use std::time::Duration;

use hm_exec::{
    Plan, RunRequest,
    cache::Prediction,
    image::{ImageOptions, PullPolicy},
    plan::{BindOptions, BoundPlan, StepIndex},
};

use crate::{
    args::BindArgs,
    config::{BackendName, ConfigSources},
    failure::{Failure, Outcome},
    pipelines::Found,
    previous_runs, project_id,
    reporter::Waiting,
    runners::Runners,
    runtime::runtime,
    store,
    trust::missing,
};

/// A plan is shown after this time, even if a runner or the disk has not answered.
const LIMIT: Duration = Duration::from_secs(10);

/// The predictions and durations of a run that has not started. Empty if they are not known.
#[derive(Debug, Default)]
pub(super) struct Forecast {
    /// By step.
    predictions: Vec<Prediction>,
    /// How long each step took when it last ran.
    durations: Vec<Option<Duration>>,
}

impl Forecast {
    /// Reads what the store has. A plan is also shown if it cannot be read: the run itself reports that. What
    /// needs the user's consent, such as images outside of the project, is not looked at without it.
    pub(super) fn read(found: &Found, plan: &Plan, options: &BindOptions, sources: ConfigSources) -> Self {
        // A store that does not exist is not created for this, and has no results.
        let has_store = store::dir().is_ok_and(|dir| dir.is_dir());
        let is_local = sources.backend().is_ok_and(|backend| backend.value == BackendName::Local);
        let mut permissions = sources.permissions(Some(&found.project)).unwrap_or_default();
        permissions.extend(found.permissions(plan, options));
        let has_consent = missing(found.project.path(), &permissions, false).is_ok_and(|missing| missing.is_empty());
        if !has_store || !is_local || !has_consent {
            return Self::default();
        }
        Self::predict(found, plan, options, sources).unwrap_or_else(|failure| {
            tracing::debug!(%failure, "the plan is shown without a prediction");
            Self::default()
        })
    }

    fn predict(found: &Found, plan: &Plan, options: &BindOptions, sources: ConfigSources) -> Outcome<Self> {
        let config = sources.resolve(Some(&found.project))?;
        let store = store::handle()?;
        let pipeline = &found.definition.name;
        let mut request = RunRequest::new(plan.clone(), &found.dir);
        request.pipeline_slug.clone_from(pipeline);
        request.project = Some(project_id::of_source(&request.repo_root, &config.projects, config.share.as_ref()));
        BindArgs::apply(options.clone(), &mut request);
        request.options.cache_mode = config.cache_mode.value;
        request.options.source_times = config.source.times;
        request.options.source_ignore.clone_from(&config.source.ignore);
        let known = previous_runs::read(&store, &request.repo_root, pipeline, plan).durations;
        let mut images = ImageOptions::from_env().map_err(Failure::input)?;
        images.pull = PullPolicy::Never;
        let engine = Runners::on(&store, &[], images, config).engine(&store, None, None)?;
        let bound = engine.bind(&request).map_err(|error| found.definition.refused(error))?;
        let runtime = runtime()?;
        let _waiting = Waiting::on("looking up what is cached");
        let predictions = runtime.block_on(async { tokio::time::timeout(LIMIT, bound.predict()).await });
        // A thread that still reads the source does not delay the plan.
        runtime.shutdown_background();
        let Ok(predictions) = predictions else { return Ok(Self::default()) };
        let predictions = predictions?;
        let durations = bound.steps.iter().map(|step| known.get(&step.step.key).copied()).collect();
        Ok(Self { predictions, durations })
    }

    pub(super) fn prediction(&self, step: StepIndex) -> Option<&Prediction> {
        self.predictions.get(step.get())
    }

    /// Returns how long a step took when it last ran.
    pub(super) fn duration(&self, step: StepIndex) -> Option<Duration> {
        self.durations.get(step.get()).copied().flatten()
    }

    /// Returns how long the run takes at least: its longest path. Returns `None` if a step would run whose
    /// time is unknown.
    pub(super) fn least(&self, plan: &BoundPlan) -> Option<Duration> {
        let mut ends = vec![Duration::ZERO; plan.dag.len()];
        for &step in plan.dag.order() {
            let own = match self.prediction(step)? {
                // With the same files in its inputs, it would be found.
                Prediction::Cached { .. } | Prediction::InputRuns { .. } => Duration::ZERO,
                _ => self.duration(step)?,
            };
            let start = plan.dag.parents(step).iter().map(|link| ends[link.step.get()]).max();
            ends[step.get()] = start.unwrap_or_default() + own;
        }
        ends.into_iter().max()
    }
}
