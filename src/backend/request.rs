//! What a caller asks of a backend.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use serde_json::Value;
use uuid::Uuid;

use crate::{
    cache::{CacheMode, ProjectId, Verify},
    ir::Env,
    model::Secrets,
    plan::{Plan, StepTable},
    runner::Network,
    source::{EarlyFreeze, HiddenFiles, SourceTimes},
};

/// Everything that a build needs to start.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RunRequest {
    /// The plan to run.
    pub plan: Plan,
    /// The source tree, frozen when the first step needs it. Only outputs are written to it, in `.hm/out`.
    pub repo_root: PathBuf,
    /// The pipeline's name.
    pub pipeline_slug: String,
    /// The project whose cached results are used and created. By default, the project of the canonical source
    /// directory. [`ProjectId::of_checkout`] makes all clones of a repository one project.
    pub project: Option<ProjectId>,
    /// Variables for every step. They override those of the plan.
    pub env: Env,
    /// Metadata of the source.
    pub source: SourceMeta,
    /// The options of the run.
    pub options: RunOptions,
    /// The secrets that steps may read at `/run/secrets/NAME`.
    pub secrets: Secrets,
    /// How long steps took the last time, by key. The scheduler starts the longest remaining path first.
    pub durations: BTreeMap<Arc<str>, Duration>,
    /// The most memory that steps had in the last runs, by key, in bytes. Used if the options have a limit on
    /// memory.
    pub peaks: BTreeMap<Arc<str>, u64>,
    /// The run's id, if the caller has assigned one already. By default, a random one.
    pub run_id: Option<Uuid>,
    /// The run's start time. By default, now.
    pub started_at: Option<DateTime<Utc>>,
    /// The source tree, if it is being frozen already.
    pub early_freeze: Option<Arc<EarlyFreeze>>,
}

impl RunRequest {
    /// Creates a request with default options. The pipeline is named after the directory.
    #[must_use]
    pub fn new(plan: Plan, source_dir: impl Into<PathBuf>) -> Self {
        let repo_root = source_dir.into();
        let pipeline_slug =
            repo_root.file_name().map_or_else(|| "pipeline".into(), |name| name.to_string_lossy().into_owned());
        Self {
            plan,
            repo_root,
            pipeline_slug,
            project: None,
            env: Env::new(),
            source: SourceMeta::default(),
            options: RunOptions::default(),
            secrets: Secrets::new(),
            durations: BTreeMap::new(),
            peaks: BTreeMap::new(),
            run_id: None,
            started_at: None,
            early_freeze: None,
        }
    }
}

/// Metadata of a source tree.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SourceMeta {
    /// The branch.
    pub branch: String,
    /// The commit.
    pub commit: String,
    /// The commit's message.
    pub message: Option<String>,
    /// `owner/name`, if a remote of the repository has it.
    pub repo_name: Option<String>,
}

/// The options of a build.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct RunOptions {
    /// Which results are looked up and kept.
    pub cache_mode: CacheMode,
    /// Run cached steps, too. Their results replace those in the cache.
    pub no_cache: bool,
    /// Run these cached steps, by key, and the steps that build in them. Keys that the plan does not have are
    /// ignored.
    pub refresh: BTreeSet<String>,
    /// Start steps with empty cache directories, and keep none of them.
    pub no_caches: bool,
    /// Wall-clock budget of the whole build. The shorter of this and the plan's limit applies.
    pub timeout: Option<Duration>,
    /// Wait for the build. Only observers support `false`.
    pub watch: bool,
    /// Record what the run and its steps wait for: [`BuildEvent::Progress`](crate::BuildEvent::Progress).
    pub progress: bool,
    /// After a failure, continue with steps that do not need the failed step.
    pub keep_going: bool,
    /// How much memory the steps that run at once on this machine may need together, in bytes, as far as
    /// their needs are known. A step that fails because the machine has no memory left, beside others, runs
    /// again alone, once. By default, memory does not matter.
    /// [`available_memory`](crate::runner::available_memory) is a good choice.
    pub memory: Option<u64>,
    /// Keep the filesystem of every step after the build ends, for inspection: also those of passed steps,
    /// and those that no other step needs.
    pub keep: bool,
    /// Record what steps read, on runners that can: [`cache::trace_of`](crate::cache::trace_of) returns it
    /// later.
    pub trace_inputs: bool,
    /// Look steps up by what they read, on runners that can record it, run them anyway, and compare. Nothing
    /// is reused because of that. [`BuildOutcome`](crate::BuildOutcome) has how many differed, and how many
    /// could not be compared.
    pub shadow: bool,
    /// In cache mode `auto`: run steps that are found by what they read, too, and compare.
    /// [`BuildOutcome`](crate::BuildOutcome) has what came of it.
    pub verify: Verify,
    /// The runner of steps that name none. It overrides the engine's default.
    pub runner: Option<String>,
    /// The network of steps that name none in their `runner_args`, on runners that can provide it. The others
    /// keep theirs.
    pub network: Option<Network>,
    /// Arguments for the steps that globs match; see [`BindOptions`](crate::plan::BindOptions).
    pub step_tables: Vec<StepTable>,
    /// The services that steps may name; see [`BindOptions`](crate::plan::BindOptions).
    pub services: BTreeMap<String, Value>,
    /// Which modification times of source files steps see.
    pub source_times: SourceTimes,
    /// The files that are left out of the source, besides what ignore files name.
    pub source_ignore: Option<HiddenFiles>,
    /// Images to replace: from the image that the plan names to the image to use.
    pub images: BTreeMap<String, String>,
}
