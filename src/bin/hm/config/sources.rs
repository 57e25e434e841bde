//! The configuration of each source (arguments, variables, the project's file, the user's file), and how the
//! sources are merged.

use std::{collections::BTreeMap, num::NonZeroUsize, rc::Rc};

use hm_exec::{project::ProjectDir, remote::EndpointOptions, source::SourceTimes};

use super::{
    ProjectFiles,
    args::Sharing,
    engine_args::{NamedEngine, note_withheld},
    file::{self, ConfigFile, VmTable},
    layers::{RemoteLayers, RemoteTable},
};
use crate::{
    failure::{Failure, Outcome},
    project_id::{Name, ProjectTables},
    trust::Permission,
};

/// The resolved settings.
#[derive(Debug, Default)]
pub(crate) struct Config {
    /// The engine; `None` if none is named.
    pub(crate) endpoint: Option<EndpointOptions>,
    /// The engine of its log streams, if it is another one.
    pub(crate) logs: Option<EndpointOptions>,
    /// Platform properties that its workers must have, by name.
    pub(crate) platform: BTreeMap<String, String>,
    /// The maximum number of steps in flight.
    pub(crate) jobs: Option<NonZeroUsize>,
    /// How its cache is used, if it is set.
    pub(crate) cache: Option<Sharing>,
    /// The container daemon; `None` if none is named.
    pub(crate) docker_host: Option<String>,
    /// The configuration of virtual machines.
    pub(crate) vm: VmTable,
    /// The user's ids for projects.
    pub(crate) projects: ProjectTables,
    /// The name under which results are shared with other projects.
    pub(crate) share: Option<Name>,
    /// Which modification times of source files steps see.
    pub(crate) source_times: SourceTimes,
}

/// The settings of each place, not merged yet.
#[derive(Default)]
pub(crate) struct ConfigSources {
    pub(super) arguments: RemoteTable,
    pub(super) environment: RemoteTable,
    /// The daemon that arguments or variables name.
    pub(super) docker_host: Option<String>,
    pub(super) project: ConfigFile,
    pub(super) user: ConfigFile,
    pub(super) files: Rc<ProjectFiles>,
}

impl ConfigSources {
    /// Returns what the project requests beyond the sandbox, without requests that have no effect because the
    /// user overrides them.
    pub(crate) fn permissions(&self, project: Option<&ProjectDir>) -> Outcome<Vec<Permission>> {
        super::permissions::of(self, project, false)
    }

    /// Removes everything that requires consent from the project's settings.
    pub(crate) fn remove_unpermitted(&mut self) {
        let ConfigFile { remote, vm, source, .. } = std::mem::take(&mut self.project);
        self.project.source = source;
        // Less sharing needs no consent.
        let cache = remote.cache.filter(|cache| *cache == Sharing::Off);
        self.project.remote = RemoteTable { jobs: remote.jobs, cache, ..RemoteTable::default() };
        self.project.vm = VmTable { memory: vm.memory, cpus: vm.cpus, ..VmTable::default() };
    }

    pub(super) fn layers(&self) -> RemoteLayers {
        let (arguments, environment) = (self.arguments.clone(), self.environment.clone());
        RemoteLayers {
            arguments,
            environment,
            project: self.project.remote.clone(),
            user: self.user.remote.clone(),
            files: Rc::clone(&self.files),
        }
    }

    /// Resolves the settings. The user must have consented to the project's requests.
    pub(crate) fn resolve(self, project: Option<&ProjectDir>) -> Outcome<Config> {
        let (layers, source_times) = (self.layers(), self.source_times());
        let Self { arguments, docker_host, project: own, user, .. } = self;
        if !own.projects.is_empty() {
            return Err(Failure::input("`[project]` is not allowed in a project's hm.toml")
                .hint("move it to your own hm.toml, in ~/.config/hm"));
        }
        if user.cache.share.is_some() {
            return Err(Failure::input(
                "`[cache] share` is not allowed in your own hm.toml: it would apply to all projects",
            )
            .hint("give directories the same id instead: `[project.\"/path\"] id = \"NAME\"`"));
        }
        let named = layers.named(project)?;
        if named.is_none() && arguments.cache.is_some_and(|cache| cache != Sharing::Off) {
            return Err(Failure::input("--remote-cache needs an engine").hint("pass `--remote URL`"));
        }
        note_withheld(&layers);
        let (endpoint, logs) = named.map_or((None, None), |NamedEngine { engine, logs }| (Some(engine), logs));
        Ok(Config {
            endpoint,
            logs,
            platform: layers.platform(),
            jobs: layers.first(|table| table.jobs.as_ref()).copied(),
            cache: layers.first(|table| table.cache.as_ref()).copied(),
            docker_host: docker_host.or(own.docker.host).or(user.docker.host),
            vm: VmTable::over(own.vm, user.vm, project.map(ProjectDir::path))?,
            projects: user.projects,
            share: own.cache.share,
            source_times,
        })
    }

    /// Returns which modification times of source files steps see.
    pub(crate) fn source_times(&self) -> SourceTimes {
        self.project.source.times.or(self.user.source.times).unwrap_or_default()
    }
}

/// Returns everything that a project's `hm.toml` requests, including what the user's settings override.
pub(crate) fn all_permissions(project: &ProjectDir) -> Outcome<Vec<Permission>> {
    let settings = ConfigSources { project: file::read_project(project)?, ..ConfigSources::default() };
    super::permissions::of(&settings, Some(project), true)
}
