//! The keys of configuration files, with their values and the lines where they are set.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Deserialize;
use serde_json::Value;
use toml::{
    Spanned,
    de::{DeTable, DeValue, ValueDeserializer},
};

/// A value, and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sourced<T> {
    pub(crate) value: T,
    pub(crate) source: ValueSource,
}

impl<T> Sourced<T> {
    pub(crate) fn new(value: T, source: ValueSource) -> Self {
        Self { value, source }
    }
}

impl<T: Default> Default for Sourced<T> {
    fn default() -> Self {
        Self::new(T::default(), ValueSource::Default)
    }
}

/// The origin of a value.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum ValueSource {
    /// It is the default.
    #[default]
    Default,
    /// An option on the command line.
    Argument(&'static str),
    /// An environment variable.
    Variable(&'static str),
    /// A line of a file.
    File(FilePlace),
}

impl ValueSource {
    /// Returns whether the project sets the value.
    pub(crate) fn is_projects(&self) -> bool {
        matches!(self, Self::File(place) if place.is_projects)
    }

    /// Returns whether the value is in a file that the published `hm` writes, too.
    pub(crate) fn is_in_shared_file(&self) -> bool {
        matches!(self, Self::File(place) if place.path.ends_with(super::file::SHARED_NAME))
    }
}

impl fmt::Display for ValueSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Argument(name) | Self::Variable(name) => f.write_str(name),
            Self::File(place) => place.fmt(f),
        }
    }
}

/// A line of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FilePlace {
    pub(crate) path: Arc<Path>,
    /// The line, from 1.
    pub(crate) line: usize,
    /// Whether the file is the project's.
    pub(crate) is_projects: bool,
}

impl fmt::Display for FilePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", shown(&self.path, self.is_projects), self.line)
    }
}

/// Returns a path as people write it: below `~`, or relative to the project.
fn shown(path: &Path, is_projects: bool) -> String {
    if is_projects && let Some(name) = path.file_name() {
        return Path::new(super::file::PROJECT_DIR).join(name).display().to_string();
    }
    let home = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    match home.and_then(|home| path.strip_prefix(home).ok().map(Path::to_owned)) {
        Some(below) => format!("~/{}", below.display()),
        None => path.display().to_string(),
    }
}

/// The parts of a key: `["remote", "headers", "x-token"]`.
pub(super) type KeyPath = Vec<String>;

/// The keys that one or several files set. Tables are not keys.
pub(super) type Keys = BTreeMap<KeyPath, KeyValue>;

/// The value of a key. It may be secret, so there is no `Debug`.
#[derive(Clone)]
pub(super) struct KeyValue {
    pub(super) value: Value,
    pub(super) place: FilePlace,
}

/// Returns the keys of a table, which is part of `text`.
pub(super) fn of_table(
    table: &DeTable<'_>,
    text: &str,
    place: impl Fn(usize) -> FilePlace,
) -> Result<Keys, toml::de::Error> {
    let mut keys = Keys::new();
    let mut open: Vec<(KeyPath, &DeTable<'_>)> = vec![(KeyPath::new(), table)];
    while let Some((parents, table)) = open.pop() {
        for (name, value) in table {
            let mut path = parents.clone();
            path.push(name.get_ref().to_string());
            match value.get_ref() {
                DeValue::Table(table) if !is_argument(&path) => open.push((path, table)),
                _ => {
                    let read = Value::deserialize(ValueDeserializer::from(value.clone()))?;
                    keys.insert(path, KeyValue { value: read, place: place(line(text, name)) });
                }
            }
        }
    }
    Ok(keys)
}

/// Returns whether this is an argument of a `[step]` or a `[service]` table. It is replaced as a whole, so it
/// is one key, even if it is a table.
fn is_argument(path: &[String]) -> bool {
    matches!(path, [table, _, _] if [super::steps::TABLE, super::services::TABLE].contains(&&**table))
}

/// Returns the line of a key, from 1.
pub(super) fn line<T>(text: &str, key: &Spanned<T>) -> usize {
    line_at(text, key.span().start)
}

/// Returns the line of a byte, from 1.
pub(super) fn line_at(text: &str, at: usize) -> usize {
    text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1
}

/// Returns the tables that have these keys.
pub(super) fn to_value(keys: &Keys) -> Value {
    let mut root = Value::Object(serde_json::Map::new());
    for (path, key) in keys {
        let Some((last, parents)) = path.split_last() else { continue };
        let table = parents.iter().fold(&mut root, |table, parent| &mut table[parent.as_str()]);
        table[last.as_str()] = key.value.clone();
    }
    root
}

/// Returns a key as it is written in TOML: `project."/path".id`.
pub(super) fn dotted<S: AsRef<str>>(path: &[S]) -> String {
    let is_bare =
        |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
    let part = |part: &S| {
        let part = part.as_ref();
        if is_bare(part) { part.to_owned() } else { Value::from(part).to_string() }
    };
    path.iter().map(part).collect::<Vec<_>>().join(".")
}
