//! The configuration of each source (arguments, variables, the project's files, the user's files), and how
//! the sources are merged.

use std::{collections::BTreeMap, num::NonZeroUsize, rc::Rc};

use clap::ValueEnum;
use hm_exec::{project::ProjectDir, remote::EndpointOptions, source::SourceTimes};

use super::{
    ProjectFiles,
    args::Sharing,
    cloud::CloudConfig,
    engine_args::{NamedEngine, note_withheld},
    file::{self, UnknownKey},
    keys::{KeyPath, Sourced, ValueSource},
    layers::{RemoteLayers, RemoteTable},
    schema::{BackendName, ConfigFile, VmTable},
    services, steps,
    variables::Environment,
};
use crate::{
    failure::{Failure, Outcome},
    project_id::{Name, ProjectTables},
    reporter::{Format, to_stderr},
    trust::{self, Permission},
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
    /// The hosted service, if builds run there.
    pub(crate) cloud: Option<CloudConfig>,
    /// The preferred output format.
    pub(crate) format: Option<Format>,
}

/// The settings of each place, not merged yet.
#[derive(Default)]
pub(crate) struct ConfigSources {
    pub(super) arguments: RemoteTable,
    pub(super) environment: RemoteTable,
    /// The daemon that arguments or variables name.
    pub(super) docker_host: Option<String>,
    /// The backend that an argument names.
    pub(super) backend: Option<Sourced<BackendName>>,
    pub(super) variables: Environment,
    pub(super) project: ConfigFile,
    pub(super) user: ConfigFile,
    /// Keys that this version does not know.
    pub(super) unknown: Vec<UnknownKey>,
    pub(super) files: Rc<ProjectFiles>,
}

/// Whether the project's files count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Project {
    Counts,
    IsIgnored,
}

impl ConfigSources {
    /// Returns what the project requests beyond the sandbox, without requests that have no effect because the
    /// user overrides them.
    pub(crate) fn permissions(&self, project: Option<&ProjectDir>) -> Outcome<Vec<Permission>> {
        super::permissions::of(self, project, false)
    }

    /// Removes everything that requires consent from the project's settings.
    pub(crate) fn remove_unpermitted(&mut self) {
        self.project.retain(|path, value| match *path {
            ["cloud", "org" | "pipeline"] | ["preferences" | "source", _] => true,
            ["remote", "jobs"] | ["vm", "memory" | "cpus"] => true,
            ["backend"] => value == BackendName::Local.as_str(),
            // Less sharing needs no consent.
            ["remote", "cache"] => value == "off",
            [steps::TABLE, _, name] => trust::of_step_arg(name, value, None).is_none(),
            // A service without its image is wrong, and no command boots from it without consent.
            [services::TABLE, ..] => true,
            _ => false,
        });
    }

    /// Puts the backend that an argument names above all others.
    pub(crate) fn with_backend(self, backend: Option<Sourced<BackendName>>) -> Self {
        Self { backend, ..self }
    }

    /// Returns where builds run.
    pub(crate) fn backend(&self) -> Outcome<Sourced<BackendName>> {
        self.backend_of(Project::Counts)
    }

    pub(super) fn backend_of(&self, project: Project) -> Outcome<Sourced<BackendName>> {
        if let Some(backend) = &self.backend {
            return Ok(backend.clone());
        }
        self.named("backend", project).map(Option::unwrap_or_default)
    }

    /// Returns the text of a key, from the first of variables, project and user that sets it.
    pub(super) fn text(&self, key: &str, project: Project) -> Outcome<Option<Sourced<String>>> {
        if let Some((name, text)) = self.variables.of_key(key)? {
            return Ok(Some(Sourced::new(text, ValueSource::Variable(name))));
        }
        let path: KeyPath = key.split('.').map(String::from).collect();
        let files = [(project == Project::Counts).then_some(&self.project), Some(&self.user)];
        Ok(files.into_iter().flatten().find_map(|file| {
            let key = file.keys.get(&path)?;
            Some(Sourced::new(key.value.as_str()?.to_owned(), ValueSource::File(key.place.clone())))
        }))
    }

    /// Returns the value of a key that is one of several names.
    fn named<T: ValueEnum>(&self, key: &str, project: Project) -> Outcome<Option<Sourced<T>>> {
        let Some(Sourced { value, source }) = self.text(key, project)? else { return Ok(None) };
        match T::from_str(&value, false) {
            Ok(value) => Ok(Some(Sourced::new(value, source))),
            Err(_) => {
                let known = T::value_variants().iter().filter_map(ValueEnum::to_possible_value);
                let known: Vec<String> = known.map(|value| value.get_name().to_owned()).collect();
                Err(Failure::input(format_args!("invalid value of `{key}` ({source})"))
                    .hint(format_args!("expected {}", known.join(", "))))
            }
        }
    }

    /// Returns the preferred output format.
    pub(super) fn format(&self) -> Outcome<Option<Format>> {
        Ok(self.named("preferences.format", Project::Counts)?.map(|format| format.value))
    }

    /// Returns an error if a file sets a key that only files of another place may have.
    pub(super) fn check_places(&self) -> Outcome<()> {
        if !self.project.projects.is_empty() {
            return Err(Failure::input("`[project]` is not allowed in a project's hm.toml")
                .hint("move it to your own hm.toml, in ~/.config/hm"));
        }
        if self.user.cache.share.is_some() {
            return Err(Failure::input(
                "`[cache] share` is not allowed in your own hm.toml: it would apply to all projects",
            )
            .hint("give directories the same id instead: `[project.\"/path\"] id = \"NAME\"`"));
        }
        Ok(())
    }

    /// Prints notes about keys that this version does not know, but that look like others.
    fn note_unknown(&self) {
        for UnknownKey { key, place, nearest } in &self.unknown {
            if let Some(nearest) = nearest {
                to_stderr(&format!("note: ignoring the unknown key `{key}` ({place}): did you mean `{nearest}`?"));
            }
        }
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
        let is_cloud = self.backend()?.value == BackendName::Cloud;
        let cloud = is_cloud.then(|| CloudConfig::of(&self)).transpose()?;
        let format = self.format()?;
        self.note_unknown();
        self.check_places()?;
        let Self { arguments, docker_host, project: own, user, .. } = self;
        let named = layers.named(project)?;
        let shares = |table: &RemoteTable| table.cache.is_some_and(|cache| cache != Sharing::Off);
        if named.is_none() && (shares(&arguments) || shares(&layers.environment)) {
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
            cloud,
            format,
        })
    }

    /// Returns which modification times of source files steps see.
    pub(crate) fn source_times(&self) -> SourceTimes {
        self.project.source.times.or(self.user.source.times).unwrap_or_default()
    }
}

/// Returns everything that a project's `hm.toml` requests, including what the user's settings override.
pub(crate) fn all_permissions(project: &ProjectDir) -> Outcome<Vec<Permission>> {
    let project_file = file::read_project(project).check()?.file;
    let settings = ConfigSources { project: project_file, ..ConfigSources::default() };
    super::permissions::of(&settings, Some(project), true)
}
