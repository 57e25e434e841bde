//! The hosted service: its URLs, the organization and the pipeline, and the token that belongs to a URL.

use std::{fmt, net::IpAddr};

use hm_exec::project::ProjectDir;

use super::{
    credentials, file,
    keys::{Sourced, ValueSource},
    sources::{ConfigSources, Project},
    variables::{API_TOKEN, Environment},
};
use crate::{
    failure::{Failure, Outcome},
    reporter::to_stderr,
};

/// The URL of the service if none is configured.
const DEFAULT_API_URL: &str = "https://api.harmont.dev";

/// The hosted service. URLs have no `/` at their end.
#[derive(Debug, Clone)]
pub(crate) struct CloudConfig {
    /// The service.
    pub(crate) api_url: Sourced<String>,
    /// Its pages, for links.
    pub(crate) app_url: Sourced<String>,
    pub(crate) org: Option<Sourced<String>>,
    pub(crate) pipeline: Option<Sourced<String>>,
    /// Whether the user, or the default, names `api_url`. If so, it may receive the user's variable.
    is_users: bool,
    /// The token in the environment.
    token: Option<Token>,
}

/// A secret that identifies the user to the service.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token(String);

impl Token {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Returns the secret.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl CloudConfig {
    /// Returns the settings of commands that are not about one build: variables, the user's files, and those
    /// keys of the project that need no consent.
    pub(crate) fn of_verbs(project: Option<&ProjectDir>) -> Outcome<Self> {
        let mut sources = ConfigSources {
            variables: Environment::of_process(),
            project: project.map(file::read_project).unwrap_or_default().check()?.file,
            user: file::read_user().check()?.file,
            ..ConfigSources::default()
        };
        sources.remove_unpermitted();
        Self::of(&sources)
    }

    /// Resolves the settings. The user must have consented to the project's requests.
    pub(super) fn of(sources: &ConfigSources) -> Outcome<Self> {
        let api_url = api_url(sources, Project::Counts)?;
        let app_url = app_url(sources, Project::Counts, &api_url)?;
        Ok(Self {
            is_users: !api_url.source.is_projects()
                || comparable(&api_url.value) == comparable(&self::api_url(sources, Project::IsIgnored)?.value),
            api_url,
            app_url,
            org: sources.text("cloud.org", Project::Counts)?,
            pipeline: sources.text("cloud.pipeline", Project::Counts)?,
            token: sources.variables.text(API_TOKEN)?.map(Token),
        })
    }

    /// Returns whether the service may receive the token of the environment.
    pub(super) fn is_users(&self) -> bool {
        self.is_users
    }

    /// Returns the token for the service, and where it came from. Returns `None` if the user is not logged
    /// in.
    pub(crate) fn token(&self) -> Outcome<Option<Sourced<Token>>> {
        let url = &self.api_url.value;
        let token = match &self.token {
            Some(token) if self.is_users => Some(Sourced::new(token.clone(), ValueSource::Variable(API_TOKEN))),
            other => {
                if other.is_some() {
                    to_stderr(&format!(
                        "note: {API_TOKEN} is not sent to {url}, which only the project names: set HM_API_URL, or run \
                         `hm cloud login`"
                    ));
                }
                credentials::stored(url)?
            }
        };
        if token.is_some() {
            self.check_encrypted()?;
        }
        Ok(token)
    }

    /// Returns an error if others can read what is sent to the service.
    pub(crate) fn check_encrypted(&self) -> Outcome<()> {
        let url = &self.api_url.value;
        if is_encrypted(url) {
            return Ok(());
        }
        Err(Failure::input(format_args!("refusing to send a token to {url}, which has no encryption"))
            .hint("use an address that begins with https://"))
    }
}

/// Returns the URL of the service.
pub(super) fn api_url(sources: &ConfigSources, project: Project) -> Outcome<Sourced<String>> {
    match sources.text("cloud.api_url", project)? {
        Some(url) => checked("cloud.api_url", url),
        None => Ok(Sourced::new(DEFAULT_API_URL.to_owned(), ValueSource::Default)),
    }
}

/// Returns the URL of the pages of the service at `api_url`.
pub(super) fn app_url(
    sources: &ConfigSources,
    project: Project,
    api_url: &Sourced<String>,
) -> Outcome<Sourced<String>> {
    match sources.text("cloud.app_url", project)? {
        Some(url) => checked("cloud.app_url", url),
        None => Ok(Sourced::new(pages_of(&api_url.value), api_url.source.clone())),
    }
}

/// Returns a URL in the form in which URLs are compared: without a `/` at the end, scheme and host in lower
/// case.
pub(super) fn comparable(url: &str) -> String {
    let url = url.trim_end_matches('/');
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    format!("{}://{}{path}", scheme.to_ascii_lowercase(), host.to_ascii_lowercase())
}

/// Returns the address of the pages that belong to a service.
fn pages_of(api_url: &str) -> String {
    match api_url.split_once("://api.") {
        Some((scheme, rest)) => format!("{scheme}://app.{rest}"),
        None => api_url.to_owned(),
    }
}

/// Checks a URL, and removes `/` at its end. The message does not repeat it, because it may contain a
/// password.
fn checked(key: &str, Sourced { value, source }: Sourced<String>) -> Outcome<Sourced<String>> {
    let refused = |why: &str| {
        Err(Failure::input(format_args!("`{key}` ({source}) {why}"))
            .hint(format_args!("write it as in {DEFAULT_API_URL}")))
    };
    let url = value.trim().trim_end_matches('/').to_owned();
    let Some((scheme, rest)) = url.split_once("://") else { return refused("is not a URL") };
    if !scheme.eq_ignore_ascii_case("https") && !scheme.eq_ignore_ascii_case("http") {
        return refused("must begin with https:// or http://");
    }
    let host = rest.split('/').next().unwrap_or_default();
    if host.is_empty() || host.starts_with(':') || !rest.chars().all(|c| c.is_ascii_graphic()) {
        return refused("is not a URL");
    }
    if host.contains('@') {
        return refused("must not contain a user or a password");
    }
    if rest.contains(['?', '#', '\\']) {
        return refused("must not contain a query");
    }
    Ok(Sourced::new(url, source))
}

/// Returns whether a token may be sent to this URL: if others cannot read it on the way.
pub(crate) fn is_encrypted(url: &str) -> bool {
    let Some((scheme, rest)) = url.split_once("://") else { return false };
    if scheme.eq_ignore_ascii_case("https") {
        return true;
    }
    let host = rest.split('/').next().unwrap_or_default();
    let host = match host.strip_prefix('[') {
        Some(address) => address.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_checked_and_pages_are_beside_the_service() {
        let check = |url: &str| checked("cloud.api_url", Sourced::new(url.to_owned(), ValueSource::Default));
        for (url, expected) in [
            ("https://api.example/", "https://api.example"),
            (" http://localhost:4000// ", "http://localhost:4000"),
            ("HTTPS://api.example/v1/", "HTTPS://api.example/v1"),
        ] {
            assert_eq!(check(url).unwrap().value, expected);
        }
        for url in [
            "",
            "api.example",
            "ftp://a",
            "https://",
            "https://:1",
            "https://u:s3cret@a",
            "https://a?t=s3cret",
            "https://a#s3cret",
            "https://a b",
            "https://a\\@b",
        ] {
            let error = format!("{:?}", check(url).unwrap_err());
            assert!(!error.contains("s3cret"), "{error}");
        }
        assert_eq!(pages_of(DEFAULT_API_URL), "https://app.harmont.dev");
        assert_eq!(pages_of("http://localhost:4000"), "http://localhost:4000");
        assert_eq!(comparable("HTTPS://Api.Example/Path/"), "https://api.example/Path");
    }

    #[test]
    fn without_encryption_only_this_machine_gets_a_token() {
        for url in ["https://a", "http://localhost:1", "http://127.0.0.1/x", "http://[::1]:1", "http://127.8.0.1"] {
            assert!(is_encrypted(url), "{url}");
        }
        for url in ["http://a", "http://localhost.a", "http://10.0.0.1", "http://[::2]", "http://127.0.0.1.a", "x"] {
            assert!(!is_encrypted(url), "{url}");
        }
    }
}
