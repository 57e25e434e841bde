//! What earlier renderings printed: in mode `auto`, it is found by what they read. See
//! `docs/design/trace-cache.md`.

use std::sync::Arc;

use hm_exec::{
    cache::CacheMode,
    project::ProjectDir,
    runner::sandbox::{ConfinedCommand, ConfinedError, ConfinedOutput, KeptOutput, KeptOutputs},
    store::Store,
};

use crate::{config, project_id, store};

/// Which earlier renderings a command uses.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RenderCache {
    /// The mode, if an argument names it. If not, that of the configuration.
    pub(crate) mode: Option<CacheMode>,
    /// Whether everything is rendered anew.
    pub(crate) renews: bool,
}

/// The earlier renderings of a project, and the answers of interpreters.
#[derive(Debug)]
pub(crate) struct Kept {
    store: Arc<Store>,
    project: String,
    renews: bool,
}

/// What an output belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    Project,
    /// An interpreter of the user's.
    User,
}

impl Kept {
    /// Opens what is kept for a project. Returns `None` if nothing is to be, or if it cannot be: then
    /// everything is rendered as without it.
    pub(super) fn open(cache: RenderCache, project: &ProjectDir) -> Option<Self> {
        let (mode, projects) = config::reuse(project)?;
        if cache.mode.unwrap_or(mode) != CacheMode::Auto {
            return None;
        }
        let store = store::handle().ok()?.get();
        let store = store.inspect_err(|error| {
            tracing::info!(error = error as &dyn std::error::Error, "renderings are not looked up");
        });
        // A name that the project shares its results under is its own word.
        let project = project_id::of_source(project.path(), &projects, None);
        Some(Self { store: store.ok()?, project: project.as_str().to_owned(), renews: cache.renews })
    }

    fn outputs(&self, owner: Owner) -> KeptOutputs<'_> {
        let project = match owner {
            Owner::Project => Some(&*self.project),
            Owner::User => None,
        };
        KeptOutputs { store: &self.store, project }
    }

    /// Returns what an earlier run of a command printed, if everything that it read is as it was.
    pub(super) fn find(&self, owner: Owner, command: &ConfinedCommand) -> Option<KeptOutput> {
        if self.renews {
            return None;
        }
        command.find_output(self.outputs(owner))
    }

    /// Runs a command, and keeps its output if that is a result.
    pub(super) fn run(
        &self,
        owner: Owner,
        command: &ConfinedCommand,
        is_result: &dyn Fn(&[u8]) -> bool,
        on_stderr: &mut dyn FnMut(&[u8]),
    ) -> Result<ConfinedOutput, ConfinedError> {
        command.run_and_keep(self.outputs(owner), is_result, on_stderr)
    }
}
