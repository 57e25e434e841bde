//! The cache directories of a step in its `runner_args`.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, de};

/// The maximum number of cache directories of a step.
const MAX_CACHES: usize = 32;

/// The maximum length of a name, in bytes.
const MAX_NAME_BYTES: usize = 100;

/// The directories that every step has mounted, or that hold its source.
const TAKEN: [&str; 4] = ["/proc", "/sys", "/dev", "/run/secrets"];

/// The directory of the source.
const WORKSPACE: &str = "/workspace";

/// A directory of a step that persists between runs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheArg {
    /// The path in the step.
    pub path: PathBuf,
    /// Which steps share it.
    pub scope: CacheScope,
}

/// Which steps share a cache directory with the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CacheScope {
    /// Those of the pipeline.
    #[default]
    Pipeline,
    /// Those of the project.
    Project,
    /// All steps of the user.
    User,
}

/// The forms in which a cache directory is written.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a path, or an object with `path` and optionally `scope`")]
enum CacheArgForm {
    /// The path.
    Path(String),
    /// The path and the scope.
    Full(FullCacheArg),
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct FullCacheArg {
    /// The path in the step.
    path: String,
    /// Which steps share it.
    #[serde(default)]
    scope: CacheScope,
}

impl JsonSchema for CacheArg {
    fn schema_name() -> Cow<'static, str> {
        "CacheArg".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        CacheArgForm::json_schema(generator)
    }
}

impl<'de> Deserialize<'de> for CacheArg {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (path, scope) = match CacheArgForm::deserialize(deserializer)? {
            CacheArgForm::Path(path) => (path, CacheScope::default()),
            CacheArgForm::Full(FullCacheArg { path, scope }) => (path, scope),
        };
        let mount_point = mount_point(&path);
        mount_point
            .map(|path| Self { path, scope })
            .map_err(|why| de::Error::custom(format_args!("`{path}` cannot be a cache directory: {why}")))
    }
}

/// Returns a path in a step in its plain form, or the reason why there are no files of the step's own.
pub(crate) fn step_path(path: &str) -> Result<PathBuf, String> {
    let parts: Vec<Component<'_>> = Path::new(path).components().collect();
    let is_plain = parts.split_first().is_some_and(|(root, rest)| {
        *root == Component::RootDir && rest.iter().all(|part| matches!(part, Component::Normal(_)))
    });
    // A trailing or a double slash is harmless: components do not have it.
    if !is_plain || path.contains('\0') {
        return Err("write an absolute path without `..`".into());
    }
    let clean: PathBuf = parts.iter().collect();
    match TAKEN.iter().find(|taken| overlap(&clean, Path::new(taken))) {
        Some(taken) => Err(format!("{taken} belongs to the sandbox")),
        None => Ok(clean),
    }
}

/// Returns a path in a step in its plain form, or the reason why nothing can be mounted there.
pub(crate) fn mount_point(path: &str) -> Result<PathBuf, String> {
    match step_path(path)? {
        clean if Path::new(WORKSPACE).starts_with(&clean) => Err("it holds the whole source".into()),
        clean => Ok(clean),
    }
}

/// Returns whether one path is the other or lies in it.
pub(crate) fn overlap(a: &Path, b: &Path) -> bool {
    a.starts_with(b) || b.starts_with(a)
}

/// Reads the cache directories of a step, by name.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, CacheArg>, D::Error> {
    let caches = BTreeMap::<String, CacheArg>::deserialize(deserializer)?;
    if caches.len() > MAX_CACHES {
        return Err(de::Error::custom(format_args!("a step has at most {MAX_CACHES} cache directories")));
    }
    let is_name = |name: &str| {
        let is_letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        (1..=MAX_NAME_BYTES).contains(&name.len()) && name.chars().all(is_letter)
    };
    if let Some(name) = caches.keys().find(|name| !is_name(name)) {
        return Err(de::Error::custom(format_args!(
            "`{}` is no name of a cache directory: use letters, digits, `_`, `-` and `.`",
            name.escape_debug()
        )));
    }
    for (name, cache) in &caches {
        let other = caches.iter().find(|(other, it)| *other != name && overlap(&it.path, &cache.path));
        if let Some((other, _)) = other {
            return Err(de::Error::custom(format_args!("the cache directories `{name}` and `{other}` overlap")));
        }
    }
    Ok(caches)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{super::Limits, *};

    fn parse(caches: &Value) -> Result<BTreeMap<String, CacheArg>, String> {
        let limits: Result<Limits, _> = serde_json::from_value(json!({ "caches": caches }));
        limits.map(|limits| limits.caches).map_err(|error| error.to_string())
    }

    #[test]
    fn a_cache_directory_is_a_path_or_a_path_with_a_scope() {
        let caches = parse(&json!({ "a": "/root/.cargo//registry/", "b": { "path": "/x", "scope": "user" } })).unwrap();
        assert_eq!(caches["a"], CacheArg { path: "/root/.cargo/registry".into(), scope: CacheScope::Pipeline });
        assert_eq!(caches["b"], CacheArg { path: "/x".into(), scope: CacheScope::User });
    }

    #[test]
    fn what_a_step_has_mounted_is_no_cache_directory() {
        for path in [
            "/",
            "",
            "target",
            "/a/../b",
            "/workspace",
            "/proc/x",
            "/run",
            "/run/secrets/x",
            "/dev",
            "~/.cargo",
            "/a\0",
        ] {
            assert!(parse(&json!({ "a": path })).is_err(), "{path}");
        }
        for path in ["/workspace/target", "/run/x", "/tmp", "/procedures"] {
            assert!(parse(&json!({ "a": path })).is_ok(), "{path}");
        }
        let overlap = parse(&json!({ "a": "/x", "b": "/x/y" })).unwrap_err();
        assert!(overlap.contains("`a` and `b` overlap"), "{overlap}");
        assert!(parse(&json!({ "a b": "/x" })).is_err() && parse(&json!({ "": "/x" })).is_err());
        assert!(parse(&json!({ "a": { "path": "/x", "scope": "world" } })).is_err());
        assert!(parse(&json!({ "a": { "path": "/x", "sope": "user" } })).is_err());
    }
}
