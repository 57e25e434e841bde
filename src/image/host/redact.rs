//! Redacts world-readable files that may contain a user's name and password in addresses, as in
//! `https://user:password@host/`, or a token in a setting.

use std::path::Path;

/// Larger files are not lists of servers.
pub(super) const MAX_BYTES: u64 = 1 << 20;

/// What is examined in a file besides addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Nothing.
    Addresses,
    /// Each line is a setting. A setting that names a secret is removed.
    Settings,
    /// A shell script. An assignment that names a secret is replaced by a command that does nothing.
    Script,
}

/// Files where package managers and similar programs find servers, proxies and tokens. Everything below a
/// listed directory counts. Listed files in large directories are examined even though nothing else there is.
const FILES: [(&str, Kind); 35] = [
    ("etc/apt", Kind::Addresses),
    ("etc/apk", Kind::Addresses),
    ("etc/bash.bashrc", Kind::Script),
    ("etc/bashrc", Kind::Script),
    ("etc/conda", Kind::Settings),
    ("etc/curlrc", Kind::Settings),
    ("etc/dnf", Kind::Settings),
    ("etc/environment", Kind::Settings),
    ("etc/environment.d", Kind::Settings),
    ("etc/gemrc", Kind::Settings),
    ("etc/gitconfig", Kind::Settings),
    ("etc/hgrc", Kind::Settings),
    ("etc/mercurial", Kind::Settings),
    ("etc/npmrc", Kind::Settings),
    ("etc/pacman.conf", Kind::Settings),
    ("etc/pacman.d", Kind::Settings),
    ("etc/pip.conf", Kind::Settings),
    ("etc/pip", Kind::Settings),
    ("etc/profile", Kind::Script),
    ("etc/profile.d", Kind::Script),
    ("etc/subversion", Kind::Settings),
    ("etc/svn", Kind::Settings),
    ("etc/uv", Kind::Settings),
    ("etc/wgetrc", Kind::Settings),
    ("etc/xdg/pip/pip.conf", Kind::Settings),
    ("etc/yum.conf", Kind::Settings),
    ("etc/yum.repos.d", Kind::Settings),
    ("etc/zypp", Kind::Settings),
    ("usr/etc/gitconfig", Kind::Settings),
    ("usr/etc/npmrc", Kind::Settings),
    ("usr/lib/node_modules/npm/npmrc", Kind::Settings),
    ("usr/local/cargo/config.toml", Kind::Settings),
    ("usr/local/etc/gitconfig", Kind::Settings),
    ("usr/local/etc/npmrc", Kind::Settings),
    ("usr/local/lib/node_modules/npm/npmrc", Kind::Settings),
];

/// Parts of the names of secrets, in lower case: npm's `_authToken` and `_password`, git's `extraHeader`,
/// curl's `proxy-user`.
const SECRET: [&str; 10] = [
    "_auth",
    "api_key",
    "apikey",
    "extraheader",
    "passwd",
    "password",
    "proxy-user",
    "secret",
    "token",
    "oauth2-bearer",
];

/// Settings of curl that are secrets if the whole name matches.
const WHOLE: [&str; 2] = ["user", "u"];

/// Parts of values that are secrets regardless of their names: a header, the output of a git credential
/// helper.
const IN_VALUES: [&str; 3] = ["authorization:", "password=", "-token:"];

/// Returns whether the file at `path`, relative to the root, is one of these files.
pub(super) fn may_have_passwords(path: &Path) -> bool {
    kind(path).is_some()
}

/// Returns the files below `dir` that are listed individually.
pub(super) fn named(dir: &Path) -> impl Iterator<Item = &'static Path> {
    FILES.iter().map(|(file, _)| Path::new(*file)).filter(move |file| file.starts_with(dir))
}

/// Returns the text of the file at `path` without passwords, or `None` if there are none.
pub(super) fn without_secrets(path: &Path, text: &[u8]) -> Option<Vec<u8>> {
    let settings = match kind(path)? {
        Kind::Addresses => None,
        Kind::Settings => without_settings(text, b""),
        Kind::Script => without_settings(text, b":\n"),
    };
    let addresses = without_passwords(settings.as_deref().unwrap_or(text));
    addresses.or(settings)
}

fn kind(path: &Path) -> Option<Kind> {
    FILES.iter().find(|(file, _)| path.starts_with(file)).map(|(_, kind)| *kind)
}

/// Returns the text with each line that sets a secret, and its continuation lines, replaced by `instead`.
/// Returns `None` if there is no such line.
fn without_settings(text: &[u8], instead: &[u8]) -> Option<Vec<u8>> {
    let mut clean = Vec::new();
    let (mut found, mut goes_on) = (false, false);
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let is_secret = goes_on || sets_secret(line, !instead.is_empty());
        goes_on = is_secret && line.trim_ascii_end().ends_with(b"\\");
        found |= is_secret;
        clean.extend_from_slice(if is_secret { instead } else { line });
    }
    found.then_some(clean)
}

/// Returns whether a line sets a secret. In a script, the line must be an assignment and nothing else, with
/// its quotes closed: anything else may be part of a longer command.
fn sets_secret(line: &[u8], in_script: bool) -> bool {
    let line = String::from_utf8_lossy(line).to_ascii_lowercase();
    let line = line.trim();
    if in_script {
        let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
        let Some((name, value)) = line.split_once('=') else { return false };
        let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let is_whole = ['"', '\''].iter().all(|quote| value.matches(*quote).count() % 2 == 0) && !value.ends_with('\\');
        return is_name && is_whole && SECRET.iter().any(|word| name.contains(word));
    }
    // Git accepts a setting on the same line as the section's name.
    let setting = match line.strip_prefix('[') {
        Some(section) => section.split_once(']').map_or("", |(_, setting)| setting),
        None => line,
    };
    let name = setting.split('=').next().unwrap_or_default().trim_start_matches(['-', '#', ';', ' ', '\t']);
    let name = name.split_ascii_whitespace().next().unwrap_or_default();
    SECRET.iter().any(|word| name.contains(word))
        || WHOLE.contains(&name)
        || IN_VALUES.iter().any(|word| setting.contains(word))
}

/// Returns the text without the part before the `@` of each address, or `None` if there is no such part.
fn without_passwords(text: &[u8]) -> Option<Vec<u8>> {
    let mut clean = Vec::new();
    let (mut kept, mut at) = (0, 0);
    while let Some(found) = text[at..].windows(3).position(|three| three == b"://") {
        let start = at + found + 3;
        let ends = |byte: &u8| byte.is_ascii_whitespace() || b"/\"'<>?#]".contains(byte);
        let end = text[start..].iter().position(ends).map_or(text.len(), |len| start + len);
        // A password may itself contain an `@`.
        if let Some(len) = text[start..end].iter().rposition(|byte| *byte == b'@') {
            clean.extend_from_slice(&text[kept..start]);
            kept = start + len + 1;
        }
        at = end;
    }
    if kept == 0 {
        return None;
    }
    clean.extend_from_slice(&text[kept..]);
    Some(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_before_the_host_goes_and_nothing_else() {
        let clean = |text: &str| without_passwords(text.as_bytes()).map(|text| String::from_utf8(text).unwrap());
        for (text, wanted) in [
            ("deb https://bob:s3cret@apt.example/debian stable main\n", "deb https://apt.example/debian stable main\n"),
            ("deb [arch=amd64] https://token@h/ x\n# http://a:b@c", "deb [arch=amd64] https://h/ x\n# http://c"),
            ("URIs: http://a:p@ss@h:80/x http://plain/y\n", "URIs: http://h:80/x http://plain/y\n"),
            ("P \"http://u:p@proxy:3128\";", "P \"http://proxy:3128\";"),
            ("https://bob:s3cret@", "https://"),
        ] {
            assert_eq!(clean(text).as_deref(), Some(wanted));
        }
        for text in ["", "deb http://deb.debian.org/debian bookworm main", "mail@host ://", "http://h/path@2.0", "://"]
        {
            assert_eq!(clean(text), None, "{text}");
        }
    }

    #[test]
    fn a_setting_that_names_a_secret_is_left_out_with_all_of_its_lines() {
        let clean = |path: &str, text: &str| {
            without_secrets(Path::new(path), text.as_bytes()).map(|text| String::from_utf8(text).unwrap())
        };
        for (path, text, wanted) in [
            (
                "etc/npmrc",
                "registry=https://u:p@npm.example/\n//npm.example/:_authToken=s3cret\n_password = s3cret\nca=x",
                "registry=https://npm.example/\nca=x",
            ),
            (
                "etc/gitconfig",
                "[url \"https://t0ken@git.example/\"]\n\tinsteadOf = x:\n[http \"https://token.example\"]\n\
                 \textraHeader = AUTHORIZATION: \\\n  basic s3cret\n\tsslVerify = true\n",
                "[url \"https://git.example/\"]\n\tinsteadOf = x:\n[http \"https://token.example\"]\n\tsslVerify = true\n",
            ),
            ("etc/curlrc", "user = \"bob:s3cret\"\nuser-agent = x\n--proxy-user a:b\n", "user-agent = x\n"),
            ("etc/curlrc", "header = \"PRIVATE-TOKEN: s3cret\"\nheader \"Authorization: x\"\n# a\n", "# a\n"),
            ("etc/gitconfig", "a\n[http] extraheader = x: y\n\thelper = \"!echo password=s3cret\"\n", "a\n"),
            ("etc/environment", "PATH=/bin\nNPM_TOKEN=s3cret", "PATH=/bin\n"),
            (
                "etc/profile.d/x.sh",
                "if true; then\n  export NPM_TOKEN='s3cret'\nfi\nX=https://u:p@h/\n",
                "if true; then\n:\nfi\nX=https://h/\n",
            ),
        ] {
            assert_eq!(clean(path, text).as_deref(), Some(wanted), "{path}");
        }
        // What may be part of a longer command is not changed.
        let script = "if [ -n \"$TOKEN\" ]; then :; fi\nTOKEN=\"a\nb\"\nX=1 \\\n";
        assert_eq!(clean("etc/profile.d/x.sh", script), None);
        for (path, text) in [
            ("etc/apt/apt.conf", "token=1"),
            ("etc/pip.conf", "index-url = https://h/token/x"),
            ("etc/passwd", "password=x"),
        ] {
            assert_eq!(clean(path, text), None, "{path}");
        }
    }

    #[test]
    fn the_files_are_those_of_package_managers() {
        for path in
            ["etc/apt/sources.list", "etc/apt/sources.list.d/x.sources", "etc/yum.repos.d/x.repo", "etc/pip.conf"]
        {
            assert!(may_have_passwords(Path::new(path)), "{path}");
        }
        assert!(!may_have_passwords(Path::new("etc/aptitude")) && !may_have_passwords(Path::new("etc/passwd")));
    }
}
