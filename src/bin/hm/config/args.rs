//! The arguments that configure the runners.

use std::{num::NonZeroUsize, str::FromStr};

use hm_exec::project::ProjectDir;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    engine_args::{EngineArgs, environment, given},
    file::{self, PlaceConfig},
    sources::ConfigSources,
    variables::{DOCKER_HOST, Environment},
};
use crate::failure::Outcome;

/// The engine of runner `cloud`.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Remote execution (runner cloud)")]
pub(crate) struct ConfigArgs {
    #[command(flatten)]
    pub(super) engine: EngineArgs,

    /// Require a platform property of workers (repeatable)
    #[arg(long = "remote-platform", value_name = "NAME=VALUE", value_parser = Property::from_str)]
    pub(super) platform: Vec<Property>,

    /// Maximum number of remote steps in flight, independent of `-j` [env: HM_REMOTE_JOBS] [default: 16]
    #[arg(id = "remote-jobs", long = "remote-jobs", value_name = "N")]
    pub(super) jobs: Option<NonZeroUsize>,

    /// Share cached results of all runners through the engine [env: HM_REMOTE_CACHE] [default: both, for
    /// runner cloud only]
    #[arg(id = "remote-cache", long = "remote-cache", value_enum, value_name = "HOW")]
    pub(super) cache: Option<Sharing>,

    /// Scope of the cached results that are shared, such as pr-12. Those of `trusted` and of this scope are
    /// used [env: HM_REMOTE_CACHE_SCOPE] [default: trusted]
    #[arg(id = "remote-cache-scope", long = "remote-cache-scope", value_name = "NAME")]
    pub(super) cache_scope: Option<String>,

    /// URL of the container daemon: unix://PATH or tcp://HOST:PORT [default: the socket of Docker or Podman]
    #[arg(help_heading = "Containers (runner docker)", long = "docker-host", value_name = "URL", env = DOCKER_HOST)]
    pub(super) docker_host: Option<String>,
}

/// How the engine's cache is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Sharing {
    /// Look up results
    Read,
    /// Upload results
    Write,
    /// Both
    Both,
    /// Neither
    Off,
}

/// `NAME=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Property(String, String);

impl FromStr for Property {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok(Self(name.into(), value.into())),
            _ => Err("expected NAME=VALUE, as in `OSFamily=linux`".into()),
        }
    }
}

impl ConfigArgs {
    /// Returns whether an argument names an engine.
    pub(crate) fn names_engine(&self) -> bool {
        self.engine.url.is_some()
    }

    /// Reads the files. `project` is the directory that contains the project's `.hm`.
    pub(crate) fn read(&self, project: Option<&ProjectDir>) -> Outcome<ConfigSources> {
        let file = project.map(file::read_project).unwrap_or_default().check()?;
        let user = file::read_user().check()?;
        self.over(Environment::of_process(), file, user)
    }

    /// Puts the arguments beside the variables and the files.
    pub(super) fn over(
        &self,
        variables: Environment,
        project: PlaceConfig,
        user: PlaceConfig,
    ) -> Outcome<ConfigSources> {
        let mut arguments = self.engine.table()?;
        arguments.platform = self.platform.iter().map(|Property(name, value)| (name.clone(), value.clone())).collect();
        (arguments.jobs, arguments.cache) = (self.jobs, self.cache);
        arguments.cache_scope = given(self.cache_scope.clone());
        let docker_host = given(self.docker_host.clone());
        Ok(ConfigSources {
            arguments,
            environment: environment(&variables)?,
            docker_host: docker_host.map_or_else(|| variables.text(DOCKER_HOST), |host| Ok(Some(host)))?,
            variables,
            project: project.file,
            user: user.file,
            unknown: project.unknown.into_iter().chain(user.unknown).collect(),
            ..ConfigSources::default()
        })
    }
}
