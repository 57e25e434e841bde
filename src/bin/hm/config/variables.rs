//! The environment variables that `hm` reads, and the configuration keys that some of them set.

use std::{collections::BTreeMap, env, ffi::OsString, path::PathBuf};

use crate::failure::{Failure, Outcome};

/// An environment variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Variable {
    pub(crate) name: &'static str,
    /// The configuration key that it sets.
    pub(crate) key: Option<&'static str>,
    /// Whether its value is never shown.
    pub(crate) is_secret: bool,
}

const fn of_key(name: &'static str, key: &'static str) -> Variable {
    Variable { name, key: Some(key), is_secret: false }
}

const fn alone(name: &'static str) -> Variable {
    Variable { name, key: None, is_secret: false }
}

const fn secret(name: &'static str, key: Option<&'static str>) -> Variable {
    Variable { name, key, is_secret: true }
}

pub(crate) const API_TOKEN: &str = "HM_API_TOKEN";
/// Compares look-ups by what steps read with what the steps do.
pub(crate) const CACHE_SHADOW: &str = "HM_CACHE_SHADOW";
/// Runs steps that are found by what they read, and compares.
pub(crate) const VERIFY: &str = "HM_VERIFY";
pub(crate) const CACHE_MAX_AGE: &str = "HM_CACHE_MAX_AGE";
pub(crate) const CACHE_MAX_SIZE: &str = "HM_CACHE_MAX_SIZE";
pub(crate) const CACHE_MIN_FREE: &str = "HM_CACHE_MIN_FREE";
pub(crate) const DOCKER_HOST: &str = "DOCKER_HOST";
pub(crate) const REMOTE_CACHE: &str = "HM_REMOTE_CACHE";
pub(crate) const REMOTE_CACHE_SCOPE: &str = "HM_REMOTE_CACHE_SCOPE";
pub(crate) const REMOTE_JOBS: &str = "HM_REMOTE_JOBS";

/// All variables. If several set the same key, the first one that is set takes precedence. Others that begin
/// with `HM_` are ignored.
pub(crate) const VARIABLES: &[Variable] = &[
    of_key("HM_BACKEND", "backend"),
    of_key("HM_API_URL", "cloud.api_url"),
    of_key("HM_CLOUD__API_URL", "cloud.api_url"),
    of_key("HM_APP_URL", "cloud.app_url"),
    of_key("HM_CLOUD__APP_URL", "cloud.app_url"),
    of_key("HM_ORG", "cloud.org"),
    of_key("HM_CLOUD__ORG", "cloud.org"),
    of_key("HM_CLOUD__PIPELINE", "cloud.pipeline"),
    of_key("HM_PREFERENCES__FORMAT", "preferences.format"),
    of_key("HM_PREFERENCES__AUTO_WATCH", "preferences.auto_watch"),
    secret(API_TOKEN, None),
    secret("HM_LOGIN_CODE", None),
    of_key("HM_REMOTE", "remote.endpoint"),
    of_key("HM_REMOTE_INSTANCE", "remote.instance"),
    of_key("HM_REMOTE_LOGS", "remote.logs"),
    secret("HM_REMOTE_HEADER", Some("remote.headers")),
    of_key(REMOTE_JOBS, "remote.jobs"),
    of_key(REMOTE_CACHE, "remote.cache"),
    of_key(REMOTE_CACHE_SCOPE, "remote.cache_scope"),
    of_key("HM_REMOTE_CACHE_KEYS", "remote.cache_keys"),
    of_key("HM_REMOTE_CACHE_SIGNING_KEY", "remote.cache_signing_key"),
    of_key("HM_REMOTE_CA", "remote.ca"),
    of_key("HM_REMOTE_CERT", "remote.cert"),
    of_key("HM_REMOTE_KEY", "remote.key"),
    of_key(DOCKER_HOST, "docker.host"),
    of_key("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "otlp.endpoint"),
    of_key("OTEL_EXPORTER_OTLP_ENDPOINT", "otlp.endpoint"),
    secret("OTEL_EXPORTER_OTLP_TRACES_HEADERS", None),
    secret("OTEL_EXPORTER_OTLP_HEADERS", None),
    alone("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT"),
    alone("OTEL_EXPORTER_OTLP_TIMEOUT"),
    alone("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"),
    alone("OTEL_EXPORTER_OTLP_PROTOCOL"),
    alone("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION"),
    alone("OTEL_EXPORTER_OTLP_COMPRESSION"),
    alone("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE"),
    alone("OTEL_EXPORTER_OTLP_CERTIFICATE"),
    alone("OTEL_SERVICE_NAME"),
    alone("OTEL_RESOURCE_ATTRIBUTES"),
    alone("OTEL_SDK_DISABLED"),
    alone("OTEL_TRACES_EXPORTER"),
    alone("TRACEPARENT"),
    alone("TRACESTATE"),
    alone("HM_CACHE_DIR"),
    alone("HM_CACHE_GC"),
    alone(CACHE_MAX_SIZE),
    alone(CACHE_MIN_FREE),
    alone(CACHE_MAX_AGE),
    alone("HM_NETWORK"),
    alone("HM_DSL"),
    alone("HM_PYTHON"),
    alone("HM_NODE"),
    alone("HM_HARMONT_TS"),
    alone("HM_RENDER_ENV"),
    alone("HM_RENDER_TIMEOUT"),
    alone("HM_REGISTRY_MIRROR"),
    alone("HM_INSECURE_REGISTRIES"),
    alone("HM_MAX_IMAGE_BYTES"),
    alone("DOCKER_CONFIG"),
    alone("HM_TRUST"),
    alone(CACHE_SHADOW),
    alone(VERIFY),
    alone("HM_STEP"),
    alone("HM_LOG"),
    alone("NO_COLOR"),
    alone("CLICOLOR_FORCE"),
];

/// The variables that are set. An empty one counts as unset.
#[derive(Clone, Default)]
pub(crate) struct Environment(BTreeMap<&'static str, OsString>);

impl Environment {
    /// Returns the environment of this process.
    pub(crate) fn of_process() -> Self {
        Self::of(|name| env::var_os(name))
    }

    /// Returns an environment in which `get` looks up variables.
    pub(crate) fn of(get: impl Fn(&str) -> Option<OsString>) -> Self {
        let values = VARIABLES.iter().filter_map(|variable| Some((variable.name, get(variable.name)?)));
        Self(values.filter(|(_, value)| !value.is_empty()).collect())
    }

    /// Returns the variables that do not describe an engine.
    pub(crate) fn without_engine(mut self) -> Self {
        self.0.retain(|name, _| !name.starts_with("HM_REMOTE"));
        self
    }

    /// Returns the text of a variable.
    pub(crate) fn text(&self, name: &str) -> Outcome<Option<String>> {
        let not_text = |_| Failure::input(format_args!("{name} is not UTF-8"));
        self.0.get(name).cloned().map(OsString::into_string).transpose().map_err(not_text)
    }

    /// Returns the path that a variable names.
    pub(crate) fn path(&self, name: &str) -> Option<PathBuf> {
        self.0.get(name).map(PathBuf::from)
    }

    /// Returns the variable that sets a key, and its text.
    pub(crate) fn of_key(&self, key: &str) -> Outcome<Option<(&'static str, String)>> {
        let mut names = VARIABLES.iter().filter(|variable| variable.key == Some(key)).map(|variable| variable.name);
        let Some(name) = names.find(|name| self.0.contains_key(name)) else { return Ok(None) };
        Ok(self.text(name)?.map(|text| (name, text)))
    }

    /// Returns the variables that are set, in the order of [`VARIABLES`].
    pub(crate) fn set(&self) -> impl Iterator<Item = (Variable, String)> {
        let text = |variable: &Variable| Some((*variable, self.0.get(variable.name)?.to_string_lossy().into_owned()));
        VARIABLES.iter().filter_map(text)
    }
}
