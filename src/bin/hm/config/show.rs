//! Every value of the configuration, where it came from, and why it has no effect if it has none: for `hm
//! config`.

use std::collections::{BTreeMap, BTreeSet};

use hm_exec::project::ProjectDir;
use serde::Serialize;
use serde_json::Value;

use super::{
    args::ConfigArgs,
    cloud::{self, CloudConfig},
    credentials,
    engine_args::environment,
    file::{self, PlaceConfig, UnknownKey},
    keys::{self, FilePlace, KeyPath, KeyValue, ValueSource},
    layers::ConfigPlace,
    schema::{KnownKeys, json_schema},
    sources::{ConfigSources, Project},
    variables::{API_TOKEN, Environment},
};
use crate::{
    failure::{Failure, Outcome},
    trust,
};

/// The configuration.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    pub(crate) rows: Vec<Row>,
    /// What is not valid.
    pub(crate) mistakes: Vec<Failure>,
}

/// One value.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Row {
    pub(crate) key: String,
    /// The value; `None` if it is secret.
    pub(crate) value: Option<Value>,
    pub(crate) secret: bool,
    #[serde(serialize_with = "source")]
    pub(crate) source: ValueSource,
    #[serde(flatten)]
    pub(crate) state: RowState,
}

/// Whether a value has an effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub(crate) enum RowState {
    Effective,
    /// Another place with precedence sets the key.
    Overridden,
    Ignored {
        reason: String,
    },
}

impl RowState {
    fn ignored(reason: impl Into<String>) -> Self {
        Self::Ignored { reason: reason.into() }
    }
}

fn source<S: serde::Serializer>(source: &ValueSource, serializer: S) -> Result<S::Ok, S::Error> {
    let json = match source {
        ValueSource::Default => serde_json::json!({ "kind": "default" }),
        ValueSource::Argument(name) => serde_json::json!({ "kind": "argument", "argument": name }),
        ValueSource::Variable(name) => serde_json::json!({ "kind": "variable", "variable": name }),
        ValueSource::File(FilePlace { path, line, is_projects }) => {
            let kind = if *is_projects { "project" } else { "user" };
            serde_json::json!({ "kind": kind, "path": path.to_string_lossy(), "line": line })
        }
    };
    json.serialize(serializer)
}

/// Returns the JSON schema of the files.
pub(crate) fn schema() -> Value {
    json_schema()
}

impl Shown {
    /// Reads the configuration. `project` is the directory that contains the project's `.hm`.
    pub(crate) fn read(project: &ProjectDir) -> Self {
        let (own, user) = (file::read_project(project), file::read_user());
        Self::of(Environment::of_process(), own, user, Some(project))
    }

    pub(super) fn of(
        variables: Environment,
        mut own: PlaceConfig,
        mut user: PlaceConfig,
        project: Option<&ProjectDir>,
    ) -> Self {
        let mut mistakes: Vec<Failure> = own.mistakes.drain(..).chain(user.mistakes.drain(..)).collect();
        let overridden: Vec<_> = own.overridden.drain(..).chain(user.overridden.drain(..)).collect();
        let variables = match environment(&variables) {
            Ok(_) => variables,
            Err(failure) => {
                mistakes.push(failure);
                variables.without_engine()
            }
        };
        let mut sources = ConfigArgs::default().over(variables, own, user).unwrap_or_else(|failure| {
            mistakes.push(failure);
            ConfigSources::default()
        });
        mistakes.extend([sources.check_places().err(), sources.format().err()].into_iter().flatten());
        let asked = sources.project.keys.clone();
        if let Err(failure) = remove_refused(&mut sources, project) {
            mistakes.push(failure);
            sources.remove_unpermitted();
        }
        let mut rows = Vec::new();
        let mut candidates: BTreeMap<KeyPath, Vec<Candidate>> = BTreeMap::new();
        for candidate in of_variables(&sources).into_iter().chain(of_files(&sources, asked, overridden)) {
            candidates.entry(candidate.path.clone()).or_default().push(candidate);
        }
        for candidates in candidates.into_values() {
            let mut is_set = false;
            for candidate in candidates {
                let state = match reason(&sources, &candidate) {
                    Some(reason) => RowState::Ignored { reason },
                    None if is_set => RowState::Overridden,
                    None => RowState::Effective,
                };
                is_set |= state == RowState::Effective;
                rows.push(candidate.row(state));
            }
        }
        match defaults(&sources, &rows) {
            Ok(defaults) => rows.extend(defaults),
            Err(failure) => mistakes.push(failure),
        }
        rows.sort_by(|a, b| a.key.cmp(&b.key).then_with(|| rank(&a.state).cmp(&rank(&b.state))));
        rows.extend(alone(&sources));
        match credentials::urls() {
            Ok(urls) => rows.extend(urls.into_iter().map(|(url, place)| Row {
                key: keys::dotted(&["credentials", &url]),
                value: None,
                secret: true,
                source: ValueSource::File(place),
                state: RowState::Effective,
            })),
            Err(failure) => mistakes.push(failure),
        }
        rows.extend(sources.unknown.iter().map(of_unknown));
        Self { rows, mistakes }
    }

    /// Returns the keys that this version does not know.
    pub(crate) fn unknown(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| matches!(&row.state, RowState::Ignored { reason } if reason.starts_with(UNKNOWN)))
    }

    /// Keeps the rows of one key or table. Returns an error if there is no such key.
    pub(crate) fn select(&mut self, key: &str) -> Outcome<()> {
        let known = KnownKeys::new();
        let path: KeyPath = key.split('.').map(String::from).collect();
        let is_selected =
            |row: &Row| row.key == key || row.key.strip_prefix(key).is_some_and(|below| below.starts_with('.'));
        if !known.has(&path) && !self.rows.iter().any(is_selected) {
            let failure = Failure::input(format_args!("no configuration key is named `{key}`"));
            return Err(match known.nearest(&path) {
                Some(near) => failure.hint(format_args!("did you mean `{}`?", keys::dotted(&near))),
                None => failure.hint("run `hm schema config` for all keys"),
            });
        }
        self.rows.retain(is_selected);
        Ok(())
    }
}

const UNKNOWN: &str = "unknown key";
const NOT_ALLOWED: &str = "not allowed (see `hm trust`)";

/// Removes what the user has not allowed from the project's settings, including what would have no effect
/// now.
fn remove_refused(sources: &mut ConfigSources, project: Option<&ProjectDir>) -> Outcome<()> {
    let Some(project) = project else { return Ok(()) };
    let asked = sources.permissions(Some(project))?;
    let all = super::permissions::of(sources, Some(project), true)?;
    if !trust::missing(project.path(), &asked, false)?.is_empty() {
        sources.remove_unpermitted();
    }
    let missing = trust::missing(project.path(), &all, false)?;
    let refused: BTreeSet<String> = missing.into_iter().map(|permission| permission.dotted_key()).collect();
    sources.project.retain(|path, _| !refused.contains(&keys::dotted(path)));
    Ok(())
}

/// A value that a place sets.
struct Candidate {
    path: KeyPath,
    value: Value,
    source: ValueSource,
    place: ConfigPlace,
    is_removed: bool,
}

impl Candidate {
    fn row(self, state: RowState) -> Row {
        let secret = matches!(&*self.path, [table, headers, _] if table == "remote" && headers == "headers");
        let key = keys::dotted(&self.path);
        let value = (!secret).then(|| without_credentials(self.value));
        Row { key, value, secret, source: self.source, state }
    }
}

/// Returns the values of the variables that set keys.
fn of_variables(sources: &ConfigSources) -> Vec<Candidate> {
    let mut found = Vec::new();
    for (variable, text) in sources.variables.set() {
        let Some(key) = variable.key else { continue };
        let mut add = |path: KeyPath, value: Value| {
            let source = ValueSource::Variable(variable.name);
            found.push(Candidate { path, value, source, place: ConfigPlace::Environment, is_removed: false });
        };
        let path: KeyPath = key.split('.').map(String::from).collect();
        if key == "remote.headers" {
            for (name, value) in &sources.environment.headers {
                add(path.iter().chain([name]).cloned().collect(), Value::from(&**value));
            }
        } else {
            add(path, Value::from(text));
        }
    }
    found
}

/// Returns the values of the files, highest precedence first.
fn of_files(sources: &ConfigSources, asked: keys::Keys, overridden: Vec<(KeyPath, KeyValue)>) -> Vec<Candidate> {
    let user = sources.user.keys.iter().map(|(path, key)| (path.clone(), key.clone()));
    let mut found: Vec<Candidate> = (asked.into_iter())
        .chain(user)
        .chain(overridden)
        .map(|(path, KeyValue { value, place })| {
            let is_removed = place.is_projects && !sources.project.keys.contains_key(&path);
            let of = if place.is_projects { ConfigPlace::Project } else { ConfigPlace::User };
            Candidate { path, value, source: ValueSource::File(place), place: of, is_removed }
        })
        .collect();
    // What a file overrides in its own directory still takes precedence over the user's.
    found.sort_by_key(|candidate| candidate.place == ConfigPlace::User);
    found
}

/// Returns why a value has no effect, apart from values with precedence.
fn reason(sources: &ConfigSources, candidate: &Candidate) -> Option<String> {
    let is_projects = candidate.place == ConfigPlace::Project;
    let path: Vec<&str> = candidate.path.iter().map(String::as_str).collect();
    if path == ["preferences", "auto_watch"] {
        return Some("without effect: `hm run` waits for its build".into());
    }
    if is_projects && ["otlp", "project"].contains(&path[0]) {
        return Some("only allowed in your own file".into());
    }
    if is_projects && matches!(path[..], ["remote", "cache_scope" | "cache_keys" | "cache_signing_key"]) {
        return Some("only allowed in your own file".into());
    }
    if !is_projects && path == ["cache", "share"] {
        return Some("only allowed in a project's file".into());
    }
    if candidate.is_removed {
        return Some(NOT_ALLOWED.into());
    }
    let ["remote", name, ..] = *path else { return None };
    let layers = sources.layers();
    let has_effect = match (name, layers.url()) {
        ("headers" | "ca" | "cert" | "key" | "logs", None) => return Some("no engine is named".into()),
        ("headers" | "ca" | "cert" | "key" | "logs", Some((url, _))) => layers.belongs(candidate.place, url),
        ("endpoint", _) | (_, None) => true,
        (_, Some((url, _))) => candidate.place != ConfigPlace::User || layers.is_users(url),
    };
    (!has_effect).then(|| "for another engine".into())
}

/// Returns the defaults of keys that no place sets.
fn defaults(sources: &ConfigSources, rows: &[Row]) -> Outcome<Vec<Row>> {
    let backend = sources.backend()?;
    let api_url = cloud::api_url(sources, Project::Counts)?;
    let app_url = cloud::app_url(sources, Project::Counts, &api_url)?;
    let defaults = [
        ("backend", backend.value.as_str().to_owned(), backend.source),
        ("cache.mode", sources.cache_mode().as_str().to_owned(), ValueSource::Default),
        ("cloud.api_url", api_url.value, api_url.source),
        ("cloud.app_url", app_url.value, app_url.source),
        ("source.times", sources.source().times.as_str().to_owned(), ValueSource::Default),
    ];
    let is_set = |key: &str| rows.iter().any(|row| row.key == key && row.state == RowState::Effective);
    let missing = defaults.into_iter().filter(|(key, ..)| !is_set(key));
    let row = |(key, value, source): (&str, String, _)| Row {
        key: key.to_owned(),
        value: Some(Value::from(value)),
        secret: false,
        source,
        state: RowState::Effective,
    };
    Ok(missing.map(row).collect())
}

/// Returns the variables that set no key.
fn alone(sources: &ConfigSources) -> Vec<Row> {
    let mut rows = Vec::new();
    for (variable, text) in sources.variables.set().filter(|(variable, _)| variable.key.is_none()) {
        let is_withheld =
            variable.name == API_TOKEN && CloudConfig::of(sources).is_ok_and(|service| !service.is_users());
        rows.push(Row {
            key: variable.name.to_owned(),
            value: (!variable.is_secret).then(|| without_credentials(Value::from(text))),
            secret: variable.is_secret,
            source: ValueSource::Variable(variable.name),
            state: if is_withheld {
                RowState::ignored("only the project names the service")
            } else {
                RowState::Effective
            },
        });
    }
    rows
}

fn of_unknown(UnknownKey { key, place, nearest }: &UnknownKey) -> Row {
    let nearest = nearest.as_ref().map(|nearest| format!(": did you mean `{nearest}`?")).unwrap_or_default();
    Row {
        key: key.clone(),
        value: None,
        secret: true,
        source: ValueSource::File(place.clone()),
        state: RowState::ignored(format!("{UNKNOWN}{nearest}")),
    }
}

fn rank(state: &RowState) -> u8 {
    match state {
        RowState::Effective => 0,
        RowState::Overridden => 1,
        RowState::Ignored { .. } => 2,
    }
}

/// Hides the user, the password and the query of a URL, because each may be or have a token.
fn without_credentials(value: Value) -> Value {
    let hidden = value.as_str().and_then(|text| {
        let (scheme, rest) = text.split_once("://")?;
        let (place, query) = rest.split_once('?').map_or((rest, ""), |(place, _)| (place, "?(set)"));
        let (host, path) = place.split_at(place.find('/').unwrap_or(place.len()));
        let host = host.rsplit_once('@').map_or_else(|| host.to_owned(), |(_, name)| format!("(set)@{name}"));
        Some(format!("{scheme}://{host}{path}{query}"))
    });
    hidden.map_or(value, Value::from)
}
