//! Files that name servers, and may have a user's name and password in the addresses:
//! `https://user:password@host/`.

use std::path::Path;

/// Larger files are no lists of servers.
pub(super) const MAX_BYTES: u64 = 1 << 20;

/// Package managers' lists of servers, and where proxies are set. All below a directory counts.
const FILES: [&str; 16] = [
    "etc/apt",
    "etc/apk",
    "etc/bash.bashrc",
    "etc/conda",
    "etc/dnf",
    "etc/environment",
    "etc/gemrc",
    "etc/npmrc",
    "etc/pacman.conf",
    "etc/pacman.d",
    "etc/pip.conf",
    "etc/profile.d",
    "etc/wgetrc",
    "etc/yum.conf",
    "etc/yum.repos.d",
    "etc/zypp",
];

/// Returns whether the file at `path`, relative to the root, is one of those.
pub(super) fn may_have_passwords(path: &Path) -> bool {
    FILES.iter().any(|file| path.starts_with(file))
}

/// Returns the text without what stands before the `@` of an address. `None` if there is nothing of that
/// kind.
pub(super) fn without_passwords(text: &[u8]) -> Option<Vec<u8>> {
    let mut clean = Vec::new();
    let (mut kept, mut at) = (0, 0);
    while let Some(found) = text[at..].windows(3).position(|three| three == b"://") {
        let start = at + found + 3;
        let ends = |byte: &u8| byte.is_ascii_whitespace() || b"/\"'<>?#]".contains(byte);
        let end = text[start..].iter().position(ends).map_or(text.len(), |len| start + len);
        // A password may itself have an `@` in it.
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
    fn the_files_are_those_of_package_managers() {
        for path in
            ["etc/apt/sources.list", "etc/apt/sources.list.d/x.sources", "etc/yum.repos.d/x.repo", "etc/pip.conf"]
        {
            assert!(may_have_passwords(Path::new(path)), "{path}");
        }
        assert!(!may_have_passwords(Path::new("etc/aptitude")) && !may_have_passwords(Path::new("etc/passwd")));
    }
}
