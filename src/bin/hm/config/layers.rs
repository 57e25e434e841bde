//! `[remote]` of `hm.toml`, and the same settings from arguments and from variables: which of them name the
//! engine, and which of them may be sent there.
//!
//! Four places can name an engine: the command line, the environment, the project, and the user's own
//! `hm.toml`. Headers, certificates and keys belong to the engine that was named in the same place, and are
//! sent to no other.

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    rc::Rc,
};

use hm_exec::{project::ProjectDir, remote::EndpointOptions};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    ProjectFiles,
    args::Sharing,
    engine_args::{NamedEngine, pems},
};
use crate::failure::Outcome;

/// The settings of one place. Paths of the user's file are absolute; paths of the project's file are as
/// written there.
#[derive(Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct RemoteTable {
    /// The URL of the engine: grpc://HOST:PORT, or grpcs://HOST:PORT with TLS.
    pub(super) endpoint: Option<String>,
    /// The name of the engine's instance.
    pub(super) instance: Option<String>,
    /// The URL of the service for live output, if it is not the engine itself.
    pub(super) logs: Option<String>,
    /// Headers of every call, by name. All of them count as secret.
    pub(super) headers: BTreeMap<String, String>,
    /// Properties that workers must have, by name.
    pub(super) platform: BTreeMap<String, String>,
    /// The maximum number of steps in flight there.
    pub(super) jobs: Option<NonZeroUsize>,
    /// Whether results of all runners are shared through the engine.
    pub(super) cache: Option<Sharing>,
    /// The scope of the results that are shared: `trusted`, or the name of a branch or pull request.
    pub(super) cache_scope: Option<String>,
    /// The public keys of minisign by which results of `trusted` must be signed.
    pub(super) cache_keys: Option<Vec<String>>,
    /// A file with the secret key of minisign that signs results.
    pub(super) cache_signing_key: Option<PathBuf>,
    /// A PEM file of certificate authorities to trust instead of the system's.
    pub(super) ca: Option<PathBuf>,
    /// A PEM file of the client certificate.
    pub(super) cert: Option<PathBuf>,
    /// A PEM file of the client certificate's key.
    pub(super) key: Option<PathBuf>,
}

impl RemoteTable {
    /// Returns whether the table has anything that identifies the user to an engine.
    fn has_credentials(&self) -> bool {
        !self.headers.is_empty() || self.ca.is_some() || self.cert.is_some() || self.key.is_some()
    }
}

/// A place of settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConfigPlace {
    Arguments,
    Environment,
    Project,
    User,
}

/// All settings of an engine, each place separately.
#[derive(Clone, Default)]
pub(super) struct RemoteLayers {
    pub(super) arguments: RemoteTable,
    pub(super) environment: RemoteTable,
    pub(super) project: RemoteTable,
    pub(super) user: RemoteTable,
    pub(super) files: Rc<ProjectFiles>,
}

/// The places in order of precedence, highest first.
const ORDER: [ConfigPlace; 4] =
    [ConfigPlace::Arguments, ConfigPlace::Environment, ConfigPlace::Project, ConfigPlace::User];

impl RemoteLayers {
    pub(super) fn table(&self, place: ConfigPlace) -> &RemoteTable {
        match place {
            ConfigPlace::Arguments => &self.arguments,
            ConfigPlace::Environment => &self.environment,
            ConfigPlace::Project => &self.project,
            ConfigPlace::User => &self.user,
        }
    }

    /// Returns the engine's URL, and the place that names it.
    pub(super) fn url(&self) -> Option<(&str, ConfigPlace)> {
        ORDER.into_iter().find_map(|place| Some((self.table(place).endpoint.as_deref()?, place)))
    }

    /// Returns the first value, in order of precedence. The user's own file is skipped if only the project
    /// names the engine.
    pub(super) fn first<T>(&self, of: impl Fn(&RemoteTable) -> Option<&T>) -> Option<&T> {
        let is_projects = self.url().is_some_and(|(url, _)| !self.is_users(url));
        let mut places = ORDER.into_iter().filter(|place| !is_projects || *place != ConfigPlace::User);
        places.find_map(|place| of(self.table(place)))
    }

    /// Returns the first value that the user sets. A project decides nothing about whom its user trusts.
    pub(super) fn users<T>(&self, of: impl Fn(&RemoteTable) -> Option<&T>) -> Option<&T> {
        ORDER.into_iter().filter(|place| *place != ConfigPlace::Project).find_map(|place| of(self.table(place)))
    }

    /// Returns platform properties, by name.
    pub(super) fn platform(&self) -> BTreeMap<String, String> {
        let is_projects = self.url().is_some_and(|(url, _)| !self.is_users(url));
        let mut platform = BTreeMap::new();
        for place in ORDER.into_iter().rev().filter(|place| !is_projects || *place != ConfigPlace::User) {
            platform.extend(self.table(place).platform.clone());
        }
        platform
    }

    /// Returns the engine and its log service, with what is sent to each. Returns `None` if no place names an
    /// engine.
    pub(super) fn named(&self, project: Option<&ProjectDir>) -> Outcome<Option<NamedEngine>> {
        let Some((url, _)) = self.url() else { return Ok(None) };
        let read = |places: &[ConfigPlace]| self.options(url, places, project);
        let engine = read(&ORDER)?;
        let logs = match self.logs(url) {
            None => None,
            // Credentials for an engine that the user named are not sent to a log service that a project
            // names.
            Some((logs, ConfigPlace::Project)) if self.is_users(url) => Some(EndpointOptions::new(logs)),
            Some((logs, ConfigPlace::Project)) => Some(read(&[ConfigPlace::Project])?.beside(logs)),
            Some((logs, _)) => {
                let users = ORDER.into_iter().filter(|place| *place != ConfigPlace::Project);
                Some(read(&users.collect::<Vec<_>>())?.beside(logs))
            }
        };
        Ok(Some(NamedEngine { engine, logs }))
    }

    /// Returns the places whose headers and keys are not sent because they belong to another engine. Only
    /// places that the user may expect to apply to this call are returned.
    pub(super) fn withheld(&self) -> Vec<ConfigPlace> {
        let Some((url, _)) = self.url() else { return Vec::new() };
        let places = [ConfigPlace::Arguments, ConfigPlace::Environment].into_iter();
        places.filter(|place| self.table(*place).has_credentials() && !self.belongs(*place, url)).collect()
    }

    /// Returns whether the user names this engine.
    pub(super) fn is_users(&self, url: &str) -> bool {
        [&self.arguments, &self.environment, &self.user].into_iter().any(|table| names(table, url))
    }

    /// Returns whether the credentials of a place belong to the engine at `url`: they belong to the engine
    /// that the same place names. If the place names none, they belong to the one named by the next place of
    /// the user's in order of precedence, else to any that the user names. The project's belong to it unless
    /// the project names another engine.
    pub(super) fn belongs(&self, place: ConfigPlace, url: &str) -> bool {
        let below: &[&RemoteTable] = match place {
            // A project's credentials are not the user's secrets.
            ConfigPlace::Project => return self.project.endpoint.is_none() || names(&self.project, url),
            ConfigPlace::Arguments => &[&self.arguments, &self.environment, &self.user],
            ConfigPlace::Environment => &[&self.environment, &self.user],
            ConfigPlace::User => &[&self.user],
        };
        match below.iter().find(|table| table.endpoint.is_some()) {
            Some(table) => names(table, url),
            None => self.is_users(url),
        }
    }

    /// Returns the URL of the log service, and the place that names it.
    fn logs(&self, url: &str) -> Option<(&str, ConfigPlace)> {
        let may = |place: &ConfigPlace| *place == ConfigPlace::Arguments || self.belongs(*place, url);
        ORDER.into_iter().filter(may).find_map(|place| Some((self.table(place).logs.as_deref()?, place)))
    }

    /// Returns the options of the engine at `url`, from those of `places` whose settings belong to it.
    fn options(&self, url: &str, places: &[ConfigPlace], project: Option<&ProjectDir>) -> Outcome<EndpointOptions> {
        let mut options = EndpointOptions::new(url);
        options.instance = self.first(|table| table.instance.as_ref()).cloned().unwrap_or_default();
        let places: Vec<ConfigPlace> = places.iter().copied().filter(|place| self.belongs(*place, url)).collect();
        let mut headers = BTreeMap::new();
        for place in places.iter().rev() {
            let own = self.table(*place).headers.iter();
            headers.extend(own.map(|(name, value)| (name.to_ascii_lowercase(), value.clone())));
        }
        options.headers = headers.into_iter().collect();
        let first = |of: fn(&RemoteTable) -> Option<&PathBuf>| {
            places.iter().find_map(|place| Some((of(self.table(*place))?.as_path(), *place == ConfigPlace::Project)))
        };
        let read = |(path, is_projects): (&Path, bool)| match project.filter(|_| is_projects) {
            Some(project) => self.files.read(project, path),
            None => super::read_users(path),
        };
        let (ca, cert, key) = (first(|it| it.ca.as_ref()), first(|it| it.cert.as_ref()), first(|it| it.key.as_ref()));
        (options.ca_pem, options.client_pem) = pems(ca, cert, key, read)?;
        Ok(options)
    }
}

/// Returns whether a place names the engine at `url`.
fn names(table: &RemoteTable, url: &str) -> bool {
    let plain = |url: &str| url.trim_end_matches('/').to_ascii_lowercase();
    table.endpoint.as_deref().is_some_and(|own| plain(own) == plain(url))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(endpoint: &str, logs: &str, token: &str) -> RemoteTable {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let headers = some(token).map(|token| ("authorization".to_owned(), token));
        RemoteTable {
            endpoint: some(endpoint),
            logs: some(logs),
            headers: headers.into_iter().collect(),
            ..RemoteTable::default()
        }
    }

    const A: &str = "grpcs://a:1";
    const B: &str = "grpcs://b:1";
    const P: &str = "grpcs://project:1";

    /// Returns what is sent to the engine, and to its log service, given (engine, token) of the four places.
    #[track_caller]
    fn sent(places: [(&str, &str); 4]) -> (String, Option<String>) {
        let [arguments, environment, project, user] = places.map(|(endpoint, token)| table(endpoint, "", token));
        let layers = RemoteLayers { arguments, environment, project, user, ..RemoteLayers::default() };
        let named = layers.named(None).unwrap().unwrap();
        (named.engine.url, named.engine.headers.into_iter().map(|(_, value)| value).next())
    }

    #[test]
    fn what_is_kept_for_one_engine_is_sent_to_no_other() {
        let token = |text: &str| Some(text.to_owned());
        for (what, places, url, expected) in [
            ("all of the file", [("", ""), ("", ""), ("", ""), (A, "file")], A, token("file")),
            ("of the environment", [("", ""), (A, "env"), ("", ""), ("", "")], A, token("env")),
            (
                "an argument for an engine of the environment",
                [("", "arg"), (A, ""), ("", ""), ("", "")],
                A,
                token("arg"),
            ),
            ("an argument for one of the file", [("", "arg"), ("", ""), ("", ""), (A, "file")], A, token("arg")),
            ("a variable for one of the file", [("", ""), ("", "env"), ("", ""), (A, "file")], A, token("env")),
            ("a variable for one of the arguments", [(A, ""), ("", "env"), ("", ""), ("", "")], A, token("env")),
            ("a file's for one of the environment", [("", ""), (A, ""), ("", ""), ("", "file")], A, token("file")),
            ("another engine on the command line", [(B, ""), (A, "env"), ("", ""), ("", "")], B, None),
            (
                "the same engine there",
                [("grpcs://A:1/", ""), (A, "env"), ("", ""), ("", "")],
                "grpcs://A:1/",
                token("env"),
            ),
            ("another one than the file's", [(B, ""), ("", ""), ("", ""), (A, "file")], B, None),
            ("a variable, and another one than the file's", [(B, ""), ("", "env"), ("", ""), (A, "")], B, None),
            ("another one in the environment", [("", ""), (B, ""), ("", ""), (A, "file")], B, None),
            ("the project's, and a variable", [("", ""), ("", "env"), (P, ""), ("", "")], P, None),
            ("the project's, and an argument", [("", "arg"), ("", ""), (P, ""), ("", "")], P, None),
            ("the project's, and the file", [("", ""), ("", ""), (P, ""), (A, "file")], P, None),
            ("the project's, and a file without an engine", [("", ""), ("", ""), (P, ""), ("", "file")], P, None),
            ("the project's own header", [("", ""), ("", "env"), (P, "own"), (A, "file")], P, token("own")),
            ("the project's header for another engine", [(A, ""), ("", ""), (P, "own"), ("", "")], A, None),
            ("the project names what the file names", [("", ""), ("", ""), (A, ""), (A, "file")], A, token("file")),
            ("and what the environment names", [("", ""), (P, "env"), (P, ""), (A, "file")], P, token("env")),
            ("the project's header over the file's", [("", ""), ("", ""), ("", "own"), (A, "file")], A, token("own")),
        ] {
            assert_eq!(sent(places), (url.to_owned(), expected), "{what}");
        }
    }

    #[test]
    fn a_log_service_gets_what_belongs_to_the_people_who_name_it() {
        for (what, layers, expected) in [
            ("the user's file", [("", "", ""), ("", "", ""), (A, "grpcs://a:2", "file")], Some(("grpcs://a:2", true))),
            (
                "the project's",
                [("", "", ""), (P, "grpcs://p:2", "own"), (A, "grpcs://a:2", "f")],
                Some(("grpcs://p:2", true)),
            ),
            (
                "beside ours",
                [("", "", ""), ("", "grpcs://p:2", ""), (A, "grpcs://a:2", "f")],
                Some(("grpcs://p:2", false)),
            ),
            ("named by both", [(P, "", "arg"), (P, "grpcs://p:2", "own"), (A, "", "")], Some(("grpcs://p:2", false))),
            ("elsewhere", [(B, "", "arg"), (P, "grpcs://p:2", "own"), (A, "grpcs://a:2", "f")], None),
            (
                "all arguments",
                [(B, "grpcs://b:2", "arg"), (P, "grpcs://p:2", ""), (A, "", "")],
                Some(("grpcs://b:2", true)),
            ),
            (
                "our logs, their engine",
                [("", "grpcs://b:2", "arg"), (P, "", "own"), (A, "", "f")],
                Some(("grpcs://b:2", false)),
            ),
            ("no encryption", [(B, "grpc://b:2", "arg"), ("", "", ""), ("", "", "")], Some(("grpc://b:2", false))),
        ] {
            let [arguments, project, user] = layers.map(|(endpoint, logs, token)| table(endpoint, logs, token));
            let layers = RemoteLayers { arguments, project, user, ..RemoteLayers::default() };
            let logs = layers.named(None).unwrap().unwrap().logs;
            assert_eq!(logs.as_ref().map(|logs| (&*logs.url, !logs.headers.is_empty())), expected, "{what}");
        }
    }

    #[test]
    fn headers_and_keys_that_are_not_sent_are_told() {
        let environment = RemoteTable { key: Some("/key.pem".into()), ..table("", "", "") };
        let layers = RemoteLayers { environment, project: table(P, "", ""), ..RemoteLayers::default() };
        assert_eq!(layers.withheld(), [ConfigPlace::Environment]);
        let layers = RemoteLayers { arguments: table(P, "", "mine"), environment: table(A, "", "env"), ..layers };
        assert_eq!(layers.withheld(), [ConfigPlace::Environment]);
        assert!(RemoteLayers { environment: RemoteTable::default(), ..layers }.withheld().is_empty());
    }
}
