//! `credentials.toml`: the tokens that the user keeps, by the URL of the service. The published `hm` has the
//! same file: `[entries.harmont-cloud]`, with URLs as keys.
//!
//! A token is sent to the URL under which it was stored, and to no other. A damaged file is an error, and is
//! never replaced.

use std::{
    fs::{File, Permissions},
    io::Read,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use hm_exec::project::CONFIG_BYTES;
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};
use toml::de::{DeTable, DeValue};
use toml_edit::{DocumentMut, Item, Table};

use super::{
    cloud::{Token, comparable},
    file,
    keys::{self, FilePlace, Sourced, ValueSource},
    write::LockedDir,
};
use crate::{
    failure::{Failure, Outcome},
    reporter::to_stderr,
};

const NAME: &str = "credentials.toml";
const ENTRIES: &str = "entries";
const SERVICE: &str = "harmont-cloud";

/// A stored token, and the URL as it is spelled in the file.
#[derive(Debug)]
struct Entry {
    url: String,
    token: Token,
    place: FilePlace,
}

/// Returns the token that is stored for the service at `url`, and where.
pub(crate) fn stored(url: &str) -> Outcome<Option<Sourced<Token>>> {
    stored_in(&files(), url)
}

/// Stores a token for the service at `url`. Returns the file.
pub(crate) fn store(url: &str, token: &Token) -> Outcome<PathBuf> {
    store_in(&files(), url, token)
}

/// Removes the tokens of the service at `url`. Returns whether there was one.
pub(crate) fn forget(url: &str) -> Outcome<bool> {
    forget_in(&files(), url)
}

fn stored_in(files: &[PathBuf], url: &str) -> Outcome<Option<Sourced<Token>>> {
    let mut entries = Vec::new();
    for path in files {
        entries.extend(read(path)?.map(|text| entries_of(path, &text)).transpose()?.unwrap_or_default());
    }
    // The exact spelling takes precedence, then the first file.
    let exact = entries.iter().position(|entry| entry.url == url);
    let found = exact.or_else(|| entries.iter().position(|entry| comparable(&entry.url) == comparable(url)));
    Ok(found.map(|at| entries.swap_remove(at)).map(|entry| Sourced::new(entry.token, ValueSource::File(entry.place))))
}

/// Returns the URLs for which tokens are stored, and where.
pub(super) fn urls() -> Outcome<Vec<(String, FilePlace)>> {
    let mut urls = Vec::new();
    for path in files() {
        let entries = read(&path)?.map(|text| entries_of(&path, &text)).transpose()?.unwrap_or_default();
        urls.extend(entries.into_iter().map(|entry| (entry.url, entry.place)));
    }
    Ok(urls)
}

fn store_in(files: &[PathBuf], url: &str, token: &Token) -> Outcome<PathBuf> {
    // The file whose token would be used, else the first that exists, else a new one.
    let used = stored_in(files, url)?.and_then(|found| match found.source {
        ValueSource::File(place) => files.iter().find(|path| ***path == *place.path),
        _ => None,
    });
    let existing = || files.iter().find(|path| path.exists());
    let path = used.or_else(existing).or_else(|| files.first()).ok_or_else(|| {
        Failure::input("no directory to store a token in: neither XDG_CONFIG_HOME nor HOME is set")
            .hint("set one of them, or set HM_API_TOKEN instead of storing a token")
    })?;
    edit(path, |entries| {
        let spelled = spelled(entries, url);
        let spelled = if spelled.is_empty() { vec![url.to_owned()] } else { spelled };
        for url in spelled {
            entries.insert(&url, toml_edit::value(token.reveal()));
        }
        true
    })?;
    Ok(path.clone())
}

fn forget_in(files: &[PathBuf], url: &str) -> Outcome<bool> {
    let mut was_there = false;
    for path in files {
        let Some(text) = read(path)? else { continue };
        if !entries_of(path, &text)?.iter().any(|entry| comparable(&entry.url) == comparable(url)) {
            continue;
        }
        was_there |= edit(path, |entries| {
            let spelled = spelled(entries, url);
            spelled.iter().for_each(|url| drop(entries.remove(url)));
            !spelled.is_empty()
        })?;
    }
    Ok(was_there)
}

/// Returns the keys that are the URL in any spelling.
fn spelled(entries: &Table, url: &str) -> Vec<String> {
    entries.iter().map(|(key, _)| key.to_owned()).filter(|key| comparable(key) == comparable(url)).collect()
}

/// Returns the paths of the files, highest precedence first.
fn files() -> Vec<PathBuf> {
    file::user_dirs().into_iter().map(|dir| dir.join(NAME)).collect()
}

/// Reads a file, if there is one. It must be the user's own; access by others is removed.
fn read(path: &Path) -> Outcome<Option<String>> {
    let failed = |error: std::io::Error| {
        Failure::infrastructure(format_args!("failed to read the tokens in {}", path.display())).because(error)
    };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(Errno::LOOP) => return Err(refused(path, "is a link", "replace it with the file itself")),
        Err(errno) => return Err(failed(errno.into())),
    };
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(refused(path, "is not a regular file", "remove it"));
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(refused(path, "belongs to another user", "remove it, or change its owner"));
    }
    if metadata.mode() & 0o077 != 0 {
        let shown = path.display();
        match file.set_permissions(Permissions::from_mode(0o600)) {
            Ok(()) => to_stderr(&format!(
                "warning: other users could access {shown}, which has tokens: its mode was {:03o} and is now 600",
                metadata.mode() & 0o777
            )),
            Err(error) => to_stderr(&format!("warning: other users can access {shown}, which has tokens: {error}")),
        }
    }
    let mut bytes = Vec::new();
    file.take(CONFIG_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > CONFIG_BYTES {
        return Err(refused(path, "is larger than 1 MiB", "remove what is no token"));
    }
    String::from_utf8(bytes).map(Some).map_err(|_| damaged(path, 1))
}

fn refused(path: &Path, why: &str, remedy: &str) -> Failure {
    Failure::input(format_args!("{} {why}, so hm does not use its tokens", path.display()))
        .hint(format_args!("{remedy}, or set HM_API_TOKEN"))
}

/// Returns the failure for a file that cannot be understood. The message does not quote it.
fn damaged(path: &Path, line: usize) -> Failure {
    Failure::input(format_args!("{}, line {line}: this is no table of tokens", path.display()))
        .hint("correct the file, or remove it and run `hm cloud login`")
}

/// Returns the entries of the service.
fn entries_of(path: &Path, text: &str) -> Outcome<Vec<Entry>> {
    let at = |at| damaged(path, keys::line_at(text, at));
    let root = DeTable::parse(text).map_err(|error| at(error.span().map_or(0, |span| span.start)))?;
    let mut table = root.get_ref();
    for name in [ENTRIES, SERVICE] {
        match table.iter().find(|(key, _)| *key.get_ref() == name) {
            None => return Ok(Vec::new()),
            Some((_, below)) => match below.get_ref() {
                DeValue::Table(below) => table = below,
                _ => return Err(at(below.span().start)),
            },
        }
    }
    let shared: Arc<Path> = path.into();
    table
        .iter()
        .map(|(url, token)| {
            let text_of_token = token.get_ref().as_str().ok_or_else(|| at(token.span().start))?;
            let place = FilePlace { path: Arc::clone(&shared), line: keys::line(text, url), is_projects: false };
            Ok(Entry { url: url.get_ref().to_string(), token: Token::new(text_of_token), place })
        })
        .collect()
}

/// Changes the entries of the service in a file, whole or not at all. `change` returns whether it changed
/// them.
fn edit(path: &Path, change: impl FnOnce(&mut Table) -> bool) -> Outcome<bool> {
    let failed = |error: std::io::Error| {
        Failure::infrastructure(format_args!("failed to write the tokens in {}", path.display())).because(error)
    };
    let dir = LockedDir::create(path.parent().unwrap_or(path)).map_err(failed)?;
    // Another process may have changed it before the lock was taken.
    let text = read(path)?.unwrap_or_default();
    entries_of(path, &text)?;
    let mut document: DocumentMut = text.parse().map_err(|_| damaged(path, 1))?;
    let mut table = document.as_table_mut();
    for name in [ENTRIES, SERVICE] {
        let below = table.entry(name).or_insert_with(|| {
            let mut table = Table::new();
            table.set_implicit(name == ENTRIES);
            Item::Table(table)
        });
        if let Some(inline) = below.as_inline_table() {
            *below = Item::Table(inline.clone().into_table());
        }
        table = below.as_table_mut().ok_or_else(|| damaged(path, 1))?;
    }
    if !change(table) {
        return Ok(false);
    }
    dir.replace(NAME.as_ref(), document.to_string().as_bytes(), Mode::RUSR | Mode::WUSR).map_err(failed)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    const A: &str = "https://a.example";

    fn files(dir: &Path) -> Vec<PathBuf> {
        ["xdg", "home"].map(|name| dir.join(name).join(NAME)).to_vec()
    }

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    }

    fn token(files: &[PathBuf], url: &str) -> Option<String> {
        stored_in(files, url).unwrap().map(|found| found.value.reveal().to_owned())
    }

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().mode() & 0o777
    }

    #[test]
    fn a_token_belongs_to_its_url_and_others_stay() {
        let top = tempfile::tempdir().unwrap();
        let files = files(top.path());
        assert_eq!(store_in(&files, A, &Token::new("one")).unwrap(), files[0]);
        assert_eq!((mode(&files[0]), mode(files[0].parent().unwrap())), (0o600, 0o700));
        store_in(&files, "http://localhost:4000", &Token::new("two")).unwrap();
        assert_eq!((token(&files, A), token(&files, "https://b.example")), (Some("one".into()), None));
        assert_eq!(token(&files, "HTTPS://A.example/"), Some("one".into()));
        assert_eq!(token(&files, "https://a.example/other"), None);
        store_in(&files, "https://a.example/", &Token::new("three")).unwrap();
        assert_eq!(token(&files, A), Some("three".into()));
        assert!(forget_in(&files, A).unwrap() && !forget_in(&files, A).unwrap());
        assert_eq!((token(&files, A), token(&files, "http://localhost:4000")), (None, Some("two".into())));
    }

    #[test]
    fn a_file_of_the_published_command_is_used_in_its_place() {
        let top = tempfile::tempdir().unwrap();
        let files = files(top.path());
        // As the published `hm` writes it; another program has an entry, too.
        let text = "[entries.harmont-cloud]\n\"https://a.example/\" = \"old\" # mine\n\n[entries.other]\nkey = \"x\"\n";
        write(&files[1], text);
        assert_eq!(token(&files, A), Some("old".into()));
        assert_eq!(store_in(&files, A, &Token::new("new")).unwrap(), files[1]);
        let written = fs::read_to_string(&files[1]).unwrap();
        assert!(written.contains("\"https://a.example/\" = \"new\"") && written.contains("key = \"x\""), "{written}");
        assert!(!files[0].exists());
        let found = stored_in(&files, A).unwrap().unwrap();
        assert!(found.source.to_string().ends_with("home/credentials.toml:2"), "{}", found.source);
        assert!(!format!("{found:?}").contains("new\""), "{found:?}");
    }

    #[test]
    fn a_token_is_stored_where_it_is_looked_up() {
        let top = tempfile::tempdir().unwrap();
        let files = files(top.path());
        // The exact spelling is in the second file.
        write(&files[0], "[entries.harmont-cloud]\n'https://a.example/' = 'first'\n");
        write(&files[1], "[entries.harmont-cloud]\n'https://a.example' = 'second'\n");
        for url in [A, "https://a.example/", "HTTPS://A.example"] {
            let before = stored_in(&files, url).unwrap().unwrap();
            let stored = store_in(&files, url, &Token::new(format!("new for {url}"))).unwrap();
            assert_eq!(token(&files, url), Some(format!("new for {url}")));
            assert!(before.source.to_string().starts_with(stored.to_str().unwrap()), "{}", before.source);
        }
    }

    #[test]
    fn what_is_damaged_or_not_the_users_is_never_replaced() {
        let top = tempfile::tempdir().unwrap();
        let files = files(top.path());
        for text in [
            "[entries",
            "entries = 3",
            "[entries]\nharmont-cloud = 's3cret'",
            "[entries.harmont-cloud]\n'https://a' = 3",
            "[entries.harmont-cloud]\n'https://a' = s3cret",
        ] {
            write(&files[0], text);
            for failed in [stored_in(&files, A).err(), store_in(&files, A, &Token::new("t")).err()] {
                let error = format!("{:?}", failed.unwrap());
                assert!(error.contains("credentials.toml") && !error.contains("s3cret"), "{error}");
            }
            assert!(forget_in(&files, A).is_err());
            assert_eq!(fs::read_to_string(&files[0]).unwrap(), text);
        }
        fs::remove_file(&files[0]).unwrap();
        write(&top.path().join("elsewhere"), "[entries.harmont-cloud]\n'https://a.example' = 'x'\n");
        symlink(top.path().join("elsewhere"), &files[0]).unwrap();
        assert!(stored_in(&files, A).is_err() && store_in(&files, A, &Token::new("t")).is_err());
        fs::remove_file(&files[0]).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &files[0], rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(stored_in(&files, A).is_err());
        fs::remove_file(&files[0]).unwrap();
        write(&files[0], &"#".repeat(2 << 20));
        assert!(stored_in(&files, A).is_err());
    }

    #[test]
    fn access_by_others_is_removed() {
        let top = tempfile::tempdir().unwrap();
        let files = files(top.path());
        write(&files[0], "[entries.harmont-cloud]\n'https://a.example' = 'x'\n");
        fs::set_permissions(&files[0], Permissions::from_mode(0o644)).unwrap();
        assert_eq!(token(&files, A), Some("x".into()));
        assert_eq!(mode(&files[0]), 0o600);
    }

    #[test]
    fn writers_at_once_lose_nothing() {
        let top = tempfile::tempdir().unwrap();
        let files = files(top.path());
        std::thread::scope(|scope| {
            for at in 0..8 {
                let files = &files;
                scope.spawn(move || {
                    store_in(files, &format!("https://{at}.example"), &Token::new(format!("t{at}"))).unwrap()
                });
            }
        });
        for at in 0..8 {
            assert_eq!(token(&files, &format!("https://{at}.example")), Some(format!("t{at}")));
        }
    }
}
