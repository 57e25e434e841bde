//! The repository that `origin` names, for servers that know repositories by `owner/name`.

use std::path::Path;

use super::read_origin;
use crate::project::repository_above;

/// The `origin` of a checkout.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RemoteOrigin {
    /// The URL without a user, a password and a query.
    pub url: String,
    /// `owner/name`: the last two parts of its path.
    pub repo_name: Option<String>,
}

impl RemoteOrigin {
    /// Returns the origin of the checkout that contains `dir`, if it has one. Blocks while a few small files
    /// are read.
    #[must_use]
    pub fn of_checkout(dir: &Path) -> Option<Self> {
        let dir = super::canonical(dir);
        let top = repository_above(&dir)?;
        let url = read_origin(top, &top.join(".git")).unwrap_or_else(|error| {
            tracing::warn!(%error, "failed to read the project's origin");
            None
        })?;
        let url = without_secrets(&url);
        Some(Self { repo_name: repo_name(&url), url })
    }
}

/// Returns a URL without a user, a password and a query. The user of an address such as `git@host:path` is no
/// secret.
fn without_secrets(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (host, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

/// Returns the last two parts of the path of a URL, without `.git`.
fn repo_name(url: &str) -> Option<String> {
    let path = match url.split_once("://") {
        Some((_, rest)) => rest.split_once('/')?.1,
        // `user@host:path`, or a path of this machine.
        None => url.rsplit_once(':').map_or(url, |(_, path)| path),
    };
    let path = path.trim_end_matches('/');
    let path = path.strip_suffix(".git").unwrap_or(path);
    let mut parts = path.rsplit('/').filter(|part| !part.is_empty());
    let (name, owner) = (parts.next()?, parts.next()?);
    Some(format!("{owner}/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_and_the_name_are_the_end_of_the_path() {
        for url in [
            "https://github.com/acme/app.git",
            "https://ann:hunter2@github.com/acme/app",
            "git@github.com:acme/app.git",
            "ssh://git@github.com:22/acme/app.git/",
            "https://git.example.com/group/acme/app",
            "/srv/git/acme/app.git",
        ] {
            assert_eq!(repo_name(url).as_deref(), Some("acme/app"), "{url}");
        }
        for url in ["https://github.com/app", "app", "host:app.git", ""] {
            assert_eq!(repo_name(url), None, "{url}");
        }
    }

    #[test]
    fn passwords_are_not_part_of_the_url() {
        for (url, expected) in [
            ("https://ann:hunter2@github.com/a/b@c", "https://github.com/a/b@c"),
            ("https://token@host", "https://host"),
            ("https://host/a/b.git?private_token=hunter2#x", "https://host/a/b.git"),
            ("https://host?private_token=hunter2", "https://host"),
            ("git@github.com:a/b.git", "git@github.com:a/b.git"),
        ] {
            assert_eq!(without_secrets(url), expected);
        }
    }
}
