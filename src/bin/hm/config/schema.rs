//! The keys of a configuration file.

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use hm_exec::{
    runner::{MemorySize, ServiceArg},
    source::{HiddenFiles, SourceTimes},
};
use schemars::{JsonSchema, generate::SchemaSettings};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;

use super::{
    keys::{self, KeyPath, Keys},
    layers::RemoteTable,
    steps::StepTableSchema,
};
use crate::{
    failure::{Failure, Outcome},
    project_id::{CacheTable, ProjectTables},
    reporter::Format,
};

/// Configuration of hm: `hm.toml` and `config.toml`, of the user and of a project.
#[derive(Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct ConfigFile {
    /// The backend that runs builds.
    pub(super) backend: Option<BackendName>,
    /// The hosted service.
    pub(super) cloud: CloudTable,
    /// How `hm` behaves by default.
    pub(super) preferences: PreferencesTable,
    /// The engine of runner `cloud`, and of the remote cache.
    pub(super) remote: RemoteTable,
    /// The container daemon of runner `docker`.
    pub(super) docker: DockerTable,
    /// Virtual machines.
    pub(super) vm: VmTable,
    /// Cached results.
    pub(super) cache: CacheTable,
    /// The collector that receives traces of runs, in the user's file only.
    pub(super) otlp: OtlpTable,
    /// The source that steps see.
    pub(super) source: SourceTable,
    /// Ids of directories, in the user's file only.
    #[serde(rename = "project")]
    pub(super) projects: ProjectTables,
    /// Arguments for the steps whose key or label matches a glob; in hm.toml only.
    #[schemars(with = "BTreeMap<String, StepTableSchema>")]
    step: BTreeMap<String, BTreeMap<String, IgnoredAny>>,
    /// Services that steps may name in `services`; in hm.toml only.
    #[schemars(with = "BTreeMap<String, ServiceArg>")]
    service: BTreeMap<String, BTreeMap<String, IgnoredAny>>,
    /// All keys, with their lines.
    #[serde(skip)]
    #[schemars(skip)]
    pub(super) keys: Keys,
}

impl ConfigFile {
    /// Returns the file that sets these keys.
    pub(super) fn of_keys(keys: Keys) -> Result<Self, serde_json::Error> {
        let file = Self::deserialize(keys::to_value(&keys))?;
        Ok(Self { keys, ..file })
    }

    /// Removes all keys but those that `keep` accepts.
    pub(super) fn retain(&mut self, keep: impl Fn(&[&str], &Value) -> bool) {
        let mut keys = std::mem::take(&mut self.keys);
        keys.retain(|path, key| keep(&path.iter().map(String::as_str).collect::<Vec<_>>(), &key.value));
        // A part of a valid file is valid, because no key requires another one.
        *self = Self::of_keys(keys).unwrap_or_default();
    }
}

/// The tables that only `hm.toml` may have.
pub(super) const OWN_TABLES: [&str; 2] = ["service", "step"];

/// A backend that runs builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum BackendName {
    /// On this machine, on the runners that the pipeline names
    #[default]
    Local,
    /// On this machine, in containers; steps on runner `vm` as well
    Docker,
    /// On the hosted service
    Cloud,
}

impl BackendName {
    /// Returns the name as it is written in files and options.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Docker => "docker",
            Self::Cloud => "cloud",
        }
    }
}

/// `[cloud]`.
#[derive(Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct CloudTable {
    /// The URL of the service.
    pub(super) api_url: Option<String>,
    /// The URL of its pages, for links in the output.
    pub(super) app_url: Option<String>,
    /// The organization.
    pub(super) org: Option<String>,
    /// The pipeline that receives builds, if it is not found by the repository.
    pub(super) pipeline: Option<String>,
}

/// `[preferences]`.
#[derive(Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct PreferencesTable {
    /// The output format of `hm run`.
    pub(super) format: Option<Format>,
    /// Without effect: `hm run` waits for its build.
    #[allow(dead_code, reason = "the published `hm` has this key, so files may have it")]
    pub(super) auto_watch: Option<bool>,
}

/// `[source]`.
#[derive(Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct SourceTable {
    /// Which modification times of source files steps see.
    pub(super) times: Option<SourceTimes>,
    /// The files that are left out of it: patterns as in a `.gitignore` file.
    #[schemars(with = "Option<Vec<String>>")]
    pub(super) ignore: Option<HiddenFiles>,
}

/// `[docker]`.
#[derive(Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct DockerTable {
    /// Its URL: unix://PATH or tcp://HOST:PORT.
    pub(super) host: Option<String>,
}

/// `[otlp]`.
#[derive(Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct OtlpTable {
    /// Its URL, to which `/v1/traces` is added, as in http://localhost:4318.
    pub(super) endpoint: Option<String>,
}

/// `[vm]`: the defaults for virtual machines, and the programs and files that they are made from. A path in a
/// project's file requires the user's consent, because it is run, or read, outside of any sandbox.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(crate) struct VmTable {
    /// The memory size, as in `2g`.
    pub(crate) memory: Option<MemorySize>,
    /// The number of processors.
    pub(crate) cpus: Option<NonZeroUsize>,
    /// The path of `qemu-system-x86_64`.
    pub(crate) qemu: Option<PathBuf>,
    /// The path of `virtiofsd`.
    pub(crate) virtiofsd: Option<PathBuf>,
    /// The path of the kernel, `vmlinuz-VERSION`.
    pub(crate) kernel: Option<PathBuf>,
    /// The directory of the kernel's modules.
    pub(crate) modules: Option<PathBuf>,
    /// The directory in which booted machines are kept.
    pub(crate) templates: Option<PathBuf>,
}

impl VmTable {
    /// Returns the settings that are paths, by their keys.
    pub(super) fn paths(&self) -> [(&'static str, &Option<PathBuf>); 5] {
        [
            ("qemu", &self.qemu),
            ("virtiofsd", &self.virtiofsd),
            ("kernel", &self.kernel),
            ("modules", &self.modules),
            ("templates", &self.templates),
        ]
    }

    /// Merges the project's table over the user's. A path in the project itself is refused: consent is to a
    /// path, and the file there could change with every commit.
    pub(super) fn over(project: Self, user: Self, root: Option<&Path>) -> Outcome<Self> {
        for (key, path) in project.paths() {
            let Some(path) = path else { continue };
            let real = path.canonicalize().unwrap_or_else(|_| path.clone());
            if !path.is_absolute() || root.is_some_and(|root| real.starts_with(root)) {
                return Err(Failure::input(format_args!(
                    "`[vm] {key}` in a project's hm.toml must be an absolute path outside of the project"
                ))
                .hint("or set it in your own hm.toml, in ~/.config/hm"));
            }
        }
        Ok(Self {
            memory: project.memory.or(user.memory),
            cpus: project.cpus.or(user.cpus),
            qemu: project.qemu.or(user.qemu),
            virtiofsd: project.virtiofsd.or(user.virtiofsd),
            kernel: project.kernel.or(user.kernel),
            modules: project.modules.or(user.modules),
            templates: project.templates.or(user.templates),
        })
    }
}

/// Returns the JSON schema of a configuration file.
pub(super) fn json_schema() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<ConfigFile>().to_value()
}

/// The names of all keys, to tell known keys from unknown ones.
pub(super) struct KnownKeys(&'static Value);

impl KnownKeys {
    pub(super) fn new() -> Self {
        static SCHEMA: LazyLock<Value> = LazyLock::new(json_schema);
        Self(&SCHEMA)
    }

    /// Returns whether a file may have this key or table.
    pub(super) fn has(&self, path: &[String]) -> bool {
        self.below(path).is_some()
    }

    /// Returns the names that a table may have, without those that the user chooses.
    pub(super) fn names(&self, table: &[String]) -> Vec<String> {
        let properties = self.below(table).and_then(|schema| schema.get("properties")?.as_object());
        properties.into_iter().flat_map(|properties| properties.keys().cloned()).collect()
    }

    /// Returns the known key that is most similar to an unknown one.
    pub(super) fn nearest(&self, path: &[String]) -> Option<KeyPath> {
        let (last, parents) = path.split_last().filter(|_| !self.has(path))?;
        let near = crate::pipelines::nearest(last, &self.names(parents))?.to_owned();
        Some(parents.iter().cloned().chain([near]).collect())
    }

    fn below(&self, path: &[String]) -> Option<&Value> {
        path.iter().try_fold(self.0, |schema, name| {
            let named = schema.get("properties").and_then(|properties| properties.get(name));
            named.or_else(|| schema.get("additionalProperties").filter(|others| others.as_bool() != Some(false)))
        })
    }
}
