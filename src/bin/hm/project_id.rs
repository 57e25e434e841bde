//! Whose cached results a run finds and creates: the project's own, those of an id that the user gave it, or
//! shared ones.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use hm_exec::cache::{CacheMode, ProjectId};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de};

/// Longer than any name in use.
const MAX_NAME_BYTES: usize = 200;

/// `[project."/path"]`, in the user's own `hm.toml`: directories, and the ids of the projects there.
pub(crate) type ProjectTables = BTreeMap<PathBuf, ProjectTable>;

/// What the user configures for one project.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(crate) struct ProjectTable {
    /// The project's id. Directories with the same id share their results.
    #[schemars(with = "String")]
    pub(crate) id: Name,
}

/// `[cache]`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(crate) struct CacheTable {
    /// Which results are reused.
    pub(crate) mode: Option<CacheMode>,
    /// Results are shared with every project that has the same value here; in a project's file only.
    #[schemars(with = "Option<String>")]
    pub(crate) share: Option<Name>,
}

/// A name under which results are found: not empty, and of printable characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name(pub(crate) String);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        if name.trim().is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
            return Err(de::Error::custom("expected a name of printable characters, at most 200 bytes"));
        }
        Ok(Self(name))
    }
}

/// Returns the project id of `source`: the name that it shares, else the user's id for it, else the id of the
/// checkout.
pub(crate) fn of_source(source: &Path, named: &ProjectTables, share: Option<&Name>) -> ProjectId {
    if let Some(Name(name)) = share {
        return ProjectId::shared(name);
    }
    let source = source.canonicalize().unwrap_or_else(|_| source.to_owned());
    let found = named.iter().filter_map(|(dir, table)| {
        let dir = dir.canonicalize().ok()?;
        let below = source.strip_prefix(&dir).ok()?.to_owned();
        Some((dir.components().count(), &table.id, below))
    });
    // The nearest directory above takes precedence.
    match found.max_by_key(|(depth, ..)| *depth) {
        Some((_, Name(id), below)) => ProjectId::named(id).below(&below),
        None => ProjectId::of_checkout(&source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct File {
        #[serde(default)]
        project: ProjectTables,
        #[serde(default)]
        cache: CacheTable,
    }

    fn file(text: &str) -> Result<File, String> {
        toml::from_str(text).map_err(|error| error.message().to_owned())
    }

    #[test]
    fn the_nearest_directory_that_the_user_names_decides_and_sharing_decides_before_it() {
        let top = tempfile::tempdir().unwrap();
        let dir = |path: &str| {
            std::fs::create_dir_all(top.path().join(path)).unwrap();
            top.path().join(path).canonicalize().unwrap()
        };
        let (a, sub, b) = (dir("a"), dir("a/sub"), dir("b"));
        let text = format!(
            "[project.'{}']\nid = 'one'\n[project.'{}']\nid = 'two'\n[project.'/nonexistent']\nid = 'none'\n",
            top.path().display(),
            sub.display()
        );
        let named = file(&text).unwrap().project;
        let id = |dir: &Path| of_source(dir, &named, None).to_string();
        assert_eq!((id(&a), id(&sub), id(&b)), ("id:one//a".into(), "id:two".into(), "id:one//b".into()));
        assert_eq!(of_source(&b, &ProjectTables::new(), None), ProjectId::of_directory(&b));
        let cache = file("[cache]\nshare = 'team'\n").unwrap().cache;
        assert_eq!(of_source(&sub, &named, cache.share.as_ref()).as_str(), "share:team");
    }

    #[test]
    fn a_table_for_all_projects_and_odd_names_are_refused() {
        assert!(file("[project]\nid = 'all'\n").is_err());
        for name in ["", "  ", "a\\nb", &"x".repeat(201)] {
            assert!(file(&format!("[cache]\nshare = \"{name}\"\n")).is_err(), "{name:?}");
        }
        assert!(file("[cache]\nshared = 'x'\n").is_err());
    }
}
