//! Normalizes URLs of git remotes: keeps what all clones of a repository have in common, without secrets.

use std::path::PathBuf;

/// What a remote's URL refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// A repository on a server: `host[:port]/path`, without scheme, credentials and `.git`.
    Remote(String),
    /// A directory of this machine.
    Local(PathBuf),
    /// A URL without a known normal form, such as the address of a remote helper.
    Opaque,
}

/// Schemes in which the same host and path name the same repository, with their default ports.
const SCHEMES: [(&str, &str); 9] = [
    ("ssh", "22"),
    ("git+ssh", "22"),
    ("ssh+git", "22"),
    ("https", "443"),
    ("http", "80"),
    ("git", "9418"),
    ("ftp", "21"),
    ("ftps", "990"),
    ("git+https", "443"),
];

/// The user whose home directory is the root of a git server's repositories, by convention.
const SERVICE_USER: &str = "git";

/// Parses a URL as git does.
pub(super) fn parse(url: &str) -> Origin {
    let url = url.trim();
    if url.is_empty() || url.chars().any(|c| c.is_control() || c == char::REPLACEMENT_CHARACTER) {
        return Origin::Opaque;
    }
    if let Some((scheme, rest)) = url.split_once("://") {
        let is_scheme = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        return match scheme.to_ascii_lowercase().as_str() {
            _ if !scheme.chars().all(is_scheme) => Origin::Opaque,
            "file" => local(rest),
            scheme => with_scheme(scheme, rest),
        };
    }
    match url.split_once(':') {
        // The helper's address may be anything, even a command.
        Some((before, after)) if !before.contains(['/', '[']) && after.starts_with(':') => Origin::Opaque,
        Some((before, _)) if !before.contains('/') => like_scp(url),
        _ => Origin::Local(url.into()),
    }
}

/// Parses `file://[HOST]/PATH`.
fn local(rest: &str) -> Origin {
    match rest.find('/') {
        Some(at) if matches!(&rest[..at], "" | "localhost") => Origin::Local(decode(&rest[at..]).into()),
        _ => Origin::Opaque,
    }
}

/// Parses `SCHEME://[USER[:PASSWORD]@]HOST[:PORT]/PATH`.
fn with_scheme(scheme: &str, rest: &str) -> Origin {
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
    let known = SCHEMES.iter().find(|(known, _)| *known == scheme);
    let host = host.to_ascii_lowercase();
    let (host, port) = split_port(&host);
    let port = port.filter(|port| known.is_none_or(|(_, default)| port != default));
    let path = decode(path);
    let home = path.strip_prefix("/~/").map(|path| (user, path));
    let prefix = if known.is_some() { String::new() } else { format!("{scheme}://") };
    match join(host, port, home, &path) {
        Some(joined) => Origin::Remote(prefix + &joined),
        None => Origin::Opaque,
    }
}

/// Parses `[USER@]HOST:PATH`.
fn like_scp(url: &str) -> Origin {
    let (user, rest) = match url.split_once('@') {
        Some((user, rest)) if !user.contains([':', '/']) => (Some(user), rest),
        _ => (None, url),
    };
    let split = match rest.strip_prefix('[') {
        // `[::1]:PATH`, and git's own `[HOST:PORT]:PATH`.
        Some(bracketed) => bracketed.split_once("]:").map(|(host, path)| {
            let host = if host.matches(':').count() > 1 { format!("[{host}]") } else { host.to_owned() };
            (host, path)
        }),
        None => rest.split_once(':').map(|(host, path)| (host.to_owned(), path)),
    };
    let Some((host, path)) = split else { return Origin::Opaque };
    let host = host.to_ascii_lowercase();
    let (host, port) = split_port(&host);
    let path_in_home = path.strip_prefix("~/").unwrap_or(path);
    let home = (!path.starts_with('/')).then_some((user, path_in_home));
    join(host, port.filter(|port| *port != "22"), home, path).map_or(Origin::Opaque, Origin::Remote)
}

/// Splits a port off a host, which may be an IP address in brackets.
fn split_port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port).filter(|port| !port.is_empty())),
        _ => (host, None),
    }
}

/// Joins the parts. A path in a user's home directory belongs to that user, unless the user is the git
/// server's service user.
fn join(host: &str, port: Option<&str>, home: Option<(Option<&str>, &str)>, path: &str) -> Option<String> {
    let host = host.trim_end_matches('.');
    if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c == '/') {
        return None;
    }
    let (path, query) = match path.split_once(['?', '#']) {
        Some((path, query)) => (path, Some(query)),
        None => (path, None),
    };
    let path = home.map_or(path, |(_, path)| path.split(['?', '#']).next().unwrap_or_default());
    let mut names: Vec<&str> = path.split('/').filter(|name| !matches!(*name, "" | ".")).collect();
    if let Some(last) = names.pop() {
        let bare = last.strip_suffix(".git").unwrap_or(last);
        names.extend(Some(bare).filter(|bare| !bare.is_empty()));
    }
    if names.is_empty() && query.is_none() {
        return None;
    }
    let mut joined = host.to_owned();
    if let Some(port) = port {
        joined.push_str(&format!(":{port}"));
    }
    if let Some((user, _)) = home
        && user.map(name_of) != Some(SERVICE_USER)
    {
        joined.push_str(&format!("/~{}", user.map(name_of).unwrap_or_default()));
    }
    for name in names {
        joined.push('/');
        joined.push_str(name);
    }
    // A query may name the repository, or be a token, so it is included only as a hash.
    if let Some(query) = query {
        joined.push_str(&format!("?{}", &blake3::hash(query.as_bytes()).to_hex()[..16]));
    }
    Some(joined)
}

/// Returns a user's name without the password.
fn name_of(user: &str) -> &str {
    user.split(':').next().unwrap_or_default()
}

/// Decodes escapes of characters that need no escaping.
fn decode(path: &str) -> String {
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        decoded.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 3).and_then(|digits| u8::from_str_radix(digits, 16).ok()).map(char::from);
        match code.filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '~' | '+' | '@' | ' ')) {
            Some(c) => {
                decoded.push(c);
                rest = &rest[at + 3..];
            }
            None => {
                decoded.push('%');
                rest = &rest[at + 1..];
            }
        }
    }
    decoded + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_repository_is_one() {
        for url in [
            "https://github.com/owner/repo",
            "https://github.com/owner/repo.git",
            "https://github.com/owner/repo/",
            "https://github.com/owner/repo.git/",
            "https://GitHub.COM/owner/repo",
            "https://github.com.:443//owner/./repo.git",
            "HTTPS://token@github.com/owner/repo",
            "https://user:p%40ss:w@rd@github.com/owner/repo.git",
            "http://github.com:80/owner/repo",
            "ssh://git@github.com/owner/repo.git",
            "ssh://git@github.com:22/owner/repo.git",
            "ssh://alice@github.com/owner/repo",
            "git+ssh://git@github.com/owner/repo",
            "git://github.com/owner/repo.git",
            "git@github.com:owner/repo.git",
            "git@GITHUB.com:owner/repo",
            "git@github.com:/owner/repo.git",
            "ssh://git@github.com/~/owner/repo",
            "https://github.com/%6Fwner/repo",
            " https://github.com/owner/repo ",
        ] {
            assert_eq!(parse(url), Origin::Remote("github.com/owner/repo".into()), "{url}");
        }
    }

    #[test]
    fn what_may_be_another_repository_is_another() {
        for (url, expected) in [
            ("https://github.com/Owner/repo", "github.com/Owner/repo"),
            ("ssh://git@host:2222/o/r.git", "host:2222/o/r"),
            ("https://host:8443/o/r", "host:8443/o/r"),
            ("[git.host:2222]:o/r.git", "git.host:2222/~/o/r"),
            ("git@[::1]:o/r", "[::1]/o/r"),
            ("ssh://git@[FE80::1]:22/o/r", "[fe80::1]/o/r"),
            ("https://host/git/.git", "host/git"),
            ("https://host/o/r.git.git", "host/o/r.git"),
            // A repository in a user's home directory belongs to that user.
            ("alice@host:r", "host/~alice/r"),
            ("bob@host:r", "host/~bob/r"),
            ("host:r", "host/~/r"),
            ("ssh://alice:secret@host/~/r", "host/~alice/r"),
            ("ssh://host/~bob/r", "host/~bob/r"),
            ("s3://bucket/r", "s3://bucket/r"),
            ("https://host/o%2Fr", "host/o%2Fr"),
        ] {
            assert_eq!(parse(url), Origin::Remote(expected.into()), "{url}");
        }
        let query = |url| match parse(url) {
            Origin::Remote(text) => text,
            other => panic!("{other:?}"),
        };
        let (a, b) = (query("https://host/git?p=a"), query("https://host/git?p=b"));
        assert!(a.starts_with("host/git?") && a != b && !a.contains("p=a"), "{a} {b}");
    }

    #[test]
    fn paths_are_local_and_what_is_not_understood_is_opaque() {
        for (url, path) in [
            ("/srv/git/r.git", "/srv/git/r.git"),
            ("../r", "../r"),
            ("r", "r"),
            ("./a:b", "./a:b"),
            ("file:///srv/r%20x.git", "/srv/r x.git"),
            ("file://localhost/srv/r", "/srv/r"),
        ] {
            assert_eq!(parse(url), Origin::Local(path.into()), "{url}");
        }
        for url in [
            "",
            "ext::sh -c evil",
            "codecommit::eu-west-1://profile@repo",
            "file://other/srv/r",
            "https://",
            "https:///o/r",
            "https://host",
            "https://host/",
            "git@:o/r",
            "[::1",
            "https://host/o\nr",
            "https://host/\u{fffd}",
        ] {
            assert_eq!(parse(url), Origin::Opaque, "{url}");
        }
    }

    #[test]
    fn no_password_is_kept() {
        for url in [
            "https://user:s3cret@host/o/r",
            "https://s3cret@host/o/r",
            "ssh://user:s3cret@host/~/o/r",
            "https://host/o/r?access_token=s3cret",
            "https://host/o/r#s3cret",
            "https://a:s3cret@b@host/o/r",
        ] {
            assert!(!format!("{:?}", parse(url)).contains("s3cret"), "{url}: {:?}", parse(url));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[a-z%:/@\\[\\]?#.~é]{0,40}") {
            parse(&text);
        }
    }
}
