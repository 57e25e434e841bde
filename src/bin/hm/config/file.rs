//! The configuration files, and how they are read.
//!
//! There are two places: the project's `.hm/` and the user's own directory. Each may have two files,
//! `hm.toml` and `config.toml`, which is the name that the published `hm` knows. They have the same keys. In
//! one directory, a key of `hm.toml` takes precedence over the same key of `config.toml`.

use std::{
    collections::btree_map::Entry,
    env, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::ValueEnum;
use hm_exec::project::{CONFIG_BYTES, ProjectDir};
use serde::Deserialize;
use toml::de::{DeTable, DeValue};

use super::{
    keys::{self, FilePlace, KeyPath, KeyValue, Keys},
    schema::{ConfigFile, KnownKeys, OWN_TABLES},
    services, steps,
};
use crate::{
    failure::{Failure, Outcome},
    reporter::Format,
};

/// The directory of a project's files.
pub(super) const PROJECT_DIR: &str = ".hm";

/// The file of this `hm`, in which unknown keys are errors.
pub(super) const OWN_NAME: &str = "hm.toml";

/// The file that the published `hm` reads and writes.
pub(super) const SHARED_NAME: &str = "config.toml";

/// The names of the files in one directory, highest precedence first.
const NAMES: [&str; 2] = [OWN_NAME, SHARED_NAME];

/// The files of one place.
#[derive(Default)]
pub(super) struct PlaceConfig {
    /// The files, merged.
    pub(super) file: ConfigFile,
    /// Keys that another file of the place sets as well, with precedence.
    pub(super) overridden: Vec<(KeyPath, KeyValue)>,
    /// Keys of `config.toml` that this version does not know.
    pub(super) unknown: Vec<UnknownKey>,
    /// The files that are not valid, if the reader wants to know all of them.
    pub(super) mistakes: Vec<Failure>,
}

/// A key that this version does not know.
#[derive(Debug, Clone)]
pub(crate) struct UnknownKey {
    pub(crate) key: String,
    pub(crate) place: FilePlace,
    /// The key that was probably intended.
    pub(crate) nearest: Option<String>,
}

/// A file's text.
struct ConfigText {
    path: Arc<Path>,
    text: String,
    is_projects: bool,
}

/// Returns the user's directories for configuration, highest precedence first: the one of the XDG
/// specification, and `~/.config/hm`, which the published `hm` always uses.
pub(super) fn user_dirs() -> Vec<PathBuf> {
    let variable = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = variable("HOME").map(|home| home.join(".config"));
    let mut dirs: Vec<PathBuf> =
        variable("XDG_CONFIG_HOME").into_iter().chain(home).map(|config| config.join("hm")).collect();
    dirs.dedup();
    dirs
}

/// Returns the user's files, highest precedence first. In `~/.config/hm`, if it is not the directory of the
/// XDG specification, only the file of the published `hm` counts.
pub(super) fn user_files() -> Vec<PathBuf> {
    let dirs = user_dirs();
    let in_dir =
        |(at, dir): (usize, &PathBuf)| NAMES[at.min(1)..].iter().map(|name| dir.join(name)).collect::<Vec<_>>();
    dirs.iter().enumerate().flat_map(in_dir).collect()
}

/// Reads the project's files.
pub(super) fn read_project(project: &ProjectDir) -> PlaceConfig {
    merge(NAMES.map(|name| {
        let path = Path::new(PROJECT_DIR).join(name);
        let text = project.read_text_if_any(&path, CONFIG_BYTES)?;
        Ok(text.map(|text| ConfigText { path: project.path().join(path).into(), text, is_projects: true }))
    }))
}

/// Reads the user's own files. Their paths are relative to them.
pub(super) fn read_user() -> PlaceConfig {
    merge(user_files().into_iter().map(|path| {
        match path.metadata() {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            // A pipe without a writer would be waited for.
            Ok(metadata) if !metadata.is_file() => {
                return Err(Failure::input(format_args!("{} is not a regular file", path.display())));
            }
            _ => {}
        }
        let text = String::from_utf8(super::read_users(&path)?)
            .map_err(|_| Failure::input(format_args!("{} is not UTF-8", path.display())))?;
        Ok(Some(ConfigText { path: path.into(), text, is_projects: false }))
    }))
}

impl PlaceConfig {
    /// Returns an error if a file is not valid.
    pub(super) fn check(mut self) -> Outcome<Self> {
        if self.mistakes.is_empty() { Ok(self) } else { Err(self.mistakes.swap_remove(0)) }
    }
}

/// Merges the files of one place, highest precedence first.
fn merge(texts: impl IntoIterator<Item = Outcome<Option<ConfigText>>>) -> PlaceConfig {
    let mut place = PlaceConfig::default();
    let mut keys = Keys::new();
    for text in texts {
        let read = text.and_then(|text| text.map(|text| parse(&text)).transpose());
        match read {
            Ok(None) => {}
            Ok(Some((read, unknown))) => {
                for (path, key) in read {
                    match keys.entry(path) {
                        Entry::Vacant(vacant) => drop(vacant.insert(key)),
                        Entry::Occupied(higher) => place.overridden.push((higher.key().clone(), key)),
                    }
                }
                place.unknown.extend(unknown);
            }
            Err(failure) => place.mistakes.push(failure),
        }
    }
    match ConfigFile::of_keys(keys) {
        Ok(mut file) => {
            resolve_paths(&mut file);
            place.file = file;
        }
        // Each file is valid alone, so the messages name no value.
        Err(error) => place.mistakes.push(Failure::input("configuration files contradict each other").because(error)),
    }
    place
}

/// Parses one file. Returns its keys, and those that are unknown.
fn parse(file: &ConfigText) -> Outcome<(Keys, Vec<UnknownKey>)> {
    let text = &*file.text;
    // The parser's full message quotes the line, which may contain a token.
    let mistake = |at: usize, what: &str| {
        Failure::input(format_args!("{}, line {}: {what}", file.path.display(), keys::line_at(text, at)))
    };
    let invalid = |error: toml::de::Error| mistake(error.span().map_or(0, |span| span.start), error.message());
    let place = |line| FilePlace { path: Arc::clone(&file.path), line, is_projects: file.is_projects };
    let mut table = DeTable::parse(text).map_err(invalid)?;
    let mut unknown = Vec::new();
    if file.path.file_name().is_some_and(|name| name == SHARED_NAME) {
        let known = KnownKeys::new();
        let mut removed = Vec::new();
        remove_unknown(table.get_mut(), &known, &mut KeyPath::new(), &mut removed);
        unknown.extend(removed.into_iter().map(|(path, at)| UnknownKey {
            nearest: known.nearest(&path).map(|near| keys::dotted(&near)),
            key: keys::dotted(&path),
            place: place(keys::line_at(text, at)),
        }));
    }
    ConfigFile::deserialize(toml::Deserializer::from(table.clone())).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let near = nearest_to(table.get_ref(), &KnownKeys::new(), at);
        let near = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
        mistake(at, &format!("{}{near}", error.message()))
    })?;
    let tables = table.get_ref();
    if let Some((at, what)) = steps::mistake(tables).or_else(|| services::mistake(tables)) {
        return Err(mistake(at, &what));
    }
    let found = keys::of_table(table.get_ref(), text, place).map_err(invalid)?;
    Ok((found.into_iter().filter_map(|(path, key)| normalise(path, key, file)).collect(), unknown))
}

/// Returns the known key that the unknown one at this place of a file was probably intended to be.
fn nearest_to(table: &DeTable<'_>, known: &KnownKeys, at: usize) -> Option<String> {
    let mut open: Vec<(KeyPath, &DeTable<'_>)> = vec![(KeyPath::new(), table)];
    while let Some((parents, table)) = open.pop() {
        for (name, value) in table {
            let mut path = parents.clone();
            path.push(name.get_ref().to_string());
            if name.span().start == at {
                return known.nearest(&path)?.pop();
            }
            if let DeValue::Table(below) = value.get_ref() {
                open.push((path, below));
            }
        }
    }
    None
}

/// Removes keys that no file of this version has. Returns them, with the bytes where they are.
fn remove_unknown(table: &mut DeTable<'_>, known: &KnownKeys, path: &mut KeyPath, removed: &mut Vec<(KeyPath, usize)>) {
    let names: Vec<_> = table.keys().cloned().collect();
    for name in names {
        path.push(name.get_ref().to_string());
        let value = table.get(&name).map(|value| value.get_ref());
        if !known.has(path) || path.len() == 1 && OWN_TABLES.contains(&&*path[0]) || is_odd_format(path, value) {
            table.remove(&name);
            removed.push((path.clone(), name.span().start));
        } else if let Some(DeValue::Table(below)) = table.get_mut(&name).map(toml::Spanned::get_mut) {
            remove_unknown(below, known, path, removed);
        }
        path.pop();
    }
}

/// Returns whether this is an output format that we do not have. The published `hm` accepts any text there.
fn is_odd_format(path: &[String], value: Option<&DeValue<'_>>) -> bool {
    path == ["preferences", "format"]
        && value.and_then(DeValue::as_str).is_some_and(|name| Format::from_str(name, false).is_err())
}

/// The keys whose empty values count as unset.
const TEXTS: [&[&str]; 9] = [
    &["cloud", "api_url"],
    &["cloud", "app_url"],
    &["cloud", "org"],
    &["cloud", "pipeline"],
    &["docker", "host"],
    &["otlp", "endpoint"],
    &["remote", "endpoint"],
    &["remote", "instance"],
    &["remote", "logs"],
];

/// Makes the paths of the user's files absolute: they are relative to the file that has them. Those of a
/// project are resolved when they are read.
fn resolve_paths(file: &mut ConfigFile) {
    let (table, keys) = (&mut file.remote, &file.keys);
    for (name, path) in [
        ("ca", &mut table.ca),
        ("cert", &mut table.cert),
        ("key", &mut table.key),
        ("cache_signing_key", &mut table.cache_signing_key),
    ] {
        if let Some(key) = keys.get(&["remote".to_owned(), name.to_owned()][..])
            && !key.place.is_projects
        {
            *path = path.take().map(|path| key.place.path.parent().unwrap_or(Path::new(".")).join(path));
        }
    }
}

/// Brings a key to the form in which files are compared. Returns `None` if it counts as unset.
fn normalise(mut path: KeyPath, key: KeyValue, file: &ConfigText) -> Option<(KeyPath, KeyValue)> {
    if TEXTS.iter().any(|text| path == **text) && key.value.as_str() == Some("") {
        return None;
    }
    if let [table, headers, name] = &mut *path
        && (&**table, &**headers) == ("remote", "headers")
    {
        name.make_ascii_lowercase();
    }
    // The published `hm` writes its defaults to the file when it saves another key. This one is its default,
    // and would turn off the display for terminals.
    let is_their_default = path == ["preferences", "format"] && key.value == "human";
    (!is_their_default || file.path.file_name().is_some_and(|name| name == OWN_NAME)).then_some((path, key))
}

/// Reads one place from texts, highest precedence first, in tests.
#[cfg(test)]
pub(super) fn of_texts(dir: &str, is_projects: bool, texts: &[(&str, &str)]) -> PlaceConfig {
    merge(texts.iter().map(|(name, text)| {
        Ok(Some(ConfigText { path: Path::new(dir).join(name).into(), text: (*text).to_owned(), is_projects }))
    }))
}
