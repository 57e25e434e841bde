//! The configuration of each source (arguments, variables, the project's files, the user's files), and how
//! the sources are merged.

use std::{collections::BTreeMap, num::NonZeroUsize, path::PathBuf, rc::Rc};

use clap::ValueEnum;
use hm_exec::{
    cache::CacheMode,
    project::ProjectDir,
    remote::EndpointOptions,
    remote_cache::{CacheScope, KeyError, PublicKey, ScopeError, SigningKey},
    source::SourceOptions,
};

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
    /// Whose results of the cache are used, and how those of this machine are marked.
    pub(crate) cache_trust: CacheTrust,
    /// The container daemon; `None` if none is named.
    pub(crate) docker_host: Option<String>,
    /// The configuration of virtual machines.
    pub(crate) vm: VmTable,
    /// The user's ids for projects.
    pub(crate) projects: ProjectTables,
    /// The name under which results are shared with other projects.
    pub(crate) share: Option<Name>,
    /// Which results are reused, and what sets that.
    pub(crate) cache_mode: Sourced<CacheMode>,
    /// Which files of the source steps see, and with which times.
    pub(crate) source: SourceOptions,
    /// The hosted service, if builds run there.
    pub(crate) cloud: Option<CloudConfig>,
    /// The preferred output format.
    pub(crate) format: Option<Format>,
}

/// Whose results of the remote cache are used, and how those of this machine are marked.
#[derive(Debug, Default)]
pub(crate) struct CacheTrust {
    pub(crate) scope: CacheScope,
    pub(crate) keys: Vec<PublicKey>,
    pub(crate) signing_key: Option<SigningKey>,
}

impl CacheTrust {
    /// Reads the user's settings, and the file that they name.
    fn of(layers: &RemoteLayers) -> Outcome<Self> {
        let scope = layers.users(|table| table.cache_scope.as_ref());
        let scope = scope.map(|scope| scope.parse::<CacheScope>()).transpose();
        let scope = scope.map_err(|error: ScopeError| Failure::input(format_args!("remote.cache_scope: {error}")))?;
        let keys = layers.users(|table| table.cache_keys.as_ref()).map_or(&[][..], Vec::as_slice);
        // It may be a secret key by mistake, so the error does not contain it.
        let parse = |(number, key): (usize, &String)| {
            key.parse::<PublicKey>()
                .map_err(|error| Failure::input(format_args!("remote.cache_keys: key {number} is {error}")))
        };
        let keys = (1..).zip(keys).map(parse).collect::<Outcome<Vec<_>>>()?;
        let read = |path: &PathBuf| {
            let text = String::from_utf8(super::read_users(path)?).unwrap_or_default();
            let wrong =
                |error: KeyError| Failure::input(format_args!("cannot sign results with {}: {error}", path.display()));
            text.parse::<SigningKey>().map_err(wrong)
        };
        let signing_key = layers.users(|table| table.cache_signing_key.as_ref()).map(read).transpose()?;
        Ok(Self { scope: scope.unwrap_or_default(), keys, signing_key })
    }
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
            ["cloud", "org" | "pipeline"] | ["preferences" | "source", _] | ["cache", "mode"] => true,
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
        if self.project.otlp.endpoint.is_some() {
            return Err(Failure::input("`[otlp]` is not allowed in a project's hm.toml: it would receive your runs")
                .hint("move it to your own hm.toml, in ~/.config/hm"));
        }
        let remote = &self.project.remote;
        if remote.cache_scope.is_some() || remote.cache_keys.is_some() || remote.cache_signing_key.is_some() {
            return Err(Failure::input(
                "`cache_scope`, `cache_keys` and `cache_signing_key` of `[remote]` are not allowed in a project's \
                 hm.toml: they decide whose results are used",
            )
            .hint("move them to your own hm.toml, in ~/.config/hm"));
        }
        if self.user.cache.share.is_some() {
            return Err(Failure::input(
                "`[cache] share` is not allowed in your own hm.toml: it would apply to all projects",
            )
            .hint("give directories the same id instead: `[project.\"/path\"] id = \"NAME\"`"));
        }
        Ok(())
    }

    /// Returns the collector of traces that the user's files name.
    pub(crate) fn collector(&self) -> Option<String> {
        self.user.otlp.endpoint.clone()
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
        let (layers, source) = (self.layers(), self.source());
        let mode_source = self.text("cache.mode", Project::Counts)?.map(|mode| mode.source).unwrap_or_default();
        let cache_mode = Sourced::new(self.cache_mode(), mode_source);
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
        let cache_trust = if named.is_some() { CacheTrust::of(&layers)? } else { CacheTrust::default() };
        let (endpoint, logs) = named.map_or((None, None), |NamedEngine { engine, logs }| (Some(engine), logs));
        Ok(Config {
            endpoint,
            logs,
            platform: layers.platform(),
            jobs: layers.first(|table| table.jobs.as_ref()).copied(),
            cache: layers.first(|table| table.cache.as_ref()).copied(),
            cache_trust,
            docker_host: docker_host.or(own.docker.host).or(user.docker.host),
            vm: VmTable::over(own.vm, user.vm, project.map(ProjectDir::path))?,
            projects: user.projects,
            share: own.cache.share,
            cache_mode,
            source,
            cloud,
            format,
        })
    }

    /// Returns which results are reused.
    pub(crate) fn cache_mode(&self) -> CacheMode {
        self.project.cache.mode.or(self.user.cache.mode).unwrap_or_default()
    }

    /// Returns which files of the source steps see, and with which times.
    pub(crate) fn source(&self) -> SourceOptions {
        let (own, user) = (&self.project.source, &self.user.source);
        let ignore = own.ignore.as_ref().or(user.ignore.as_ref());
        SourceOptions::with_times(own.times.or(user.times).unwrap_or_default()).leaving_out(ignore.cloned())
    }
}

/// Returns which results are reused, and the user's ids for projects, to look up what was rendered. Returns
/// `None` if a file is invalid, which is reported by what reads the whole configuration.
pub(crate) fn reuse(project: &ProjectDir) -> Option<(CacheMode, ProjectTables)> {
    let (project, user) = (file::read_project(project).check().ok()?.file, file::read_user().check().ok()?.file);
    Some((project.cache.mode.or(user.cache.mode).unwrap_or_default(), user.projects))
}

/// Returns the collector of traces that the user's files name, for commands that read no other configuration.
pub(crate) fn collector() -> Outcome<Option<String>> {
    Ok(file::read_user().check()?.file.otlp.endpoint)
}

/// Returns everything that a project's `hm.toml` requests, including what the user's settings override.
pub(crate) fn all_permissions(project: &ProjectDir) -> Outcome<Vec<Permission>> {
    let project_file = file::read_project(project).check()?.file;
    let settings = ConfigSources { project: project_file, ..ConfigSources::default() };
    super::permissions::of(&settings, Some(project), true)
}
