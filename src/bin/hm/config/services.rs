//! `[service.NAME]` of `hm.toml`: the services that steps may name.

use std::{collections::BTreeMap, path::Path};

use hm_exec::runner::ServiceArg;
use serde::Deserialize;
use serde_json::{Map, Value};
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::{
    keys::{self, KeyValue},
    schema::{ConfigFile, KnownKeys},
    sources::ConfigSources,
};
use crate::trust::{self, Permission};

/// The name of the table.
pub(super) const TABLE: &str = "service";

/// Returns the first mistake in a file's `[service]` tables.
pub(super) fn mistake(file: &DeTable<'_>) -> Option<(usize, String)> {
    let tables = file.get(TABLE).and_then(|tables| tables.get_ref().as_table())?;
    let known = KnownKeys::new();
    for (name, table) in tables {
        let DeValue::Table(keys) = table.get_ref() else { continue };
        for key in keys.keys() {
            let path = [TABLE.to_owned(), name.get_ref().to_string(), key.get_ref().to_string()];
            if !known.has(&path) {
                let near = known.nearest(&path).and_then(|near| near.last().cloned());
                let near = near.map(|near| format!(", did you mean `{near}`?")).unwrap_or_default();
                return Some((key.span().start, format!("unknown key `{}` of services{near}", key.get_ref())));
            }
        }
        if let Err(error) = ServiceArg::deserialize(ValueDeserializer::from(table.clone())) {
            return Some((
                name.span().start,
                format!("[{}] {}", keys::dotted(&[TABLE, name.get_ref()]), error.message()),
            ));
        }
    }
    None
}

/// Returns what the project's services request beyond the sandbox: images in files outside of the project.
pub(super) fn permissions(file: &ConfigFile, project: Option<&Path>) -> Vec<Permission> {
    let mut permissions = Vec::new();
    for (path, key) in &file.keys {
        let [TABLE, name, "image"] = path.iter().map(String::as_str).collect::<Vec<_>>()[..] else { continue };
        let request = key.value.as_str().and_then(|image| trust::of_image(image, project));
        permissions.extend(request.map(|(value, effect)| {
            Permission::new(format!("[{TABLE}] {}", keys::dotted(&[name, "image"])), value, effect)
        }));
    }
    permissions
}

/// Returns the services of a file, by name.
fn services(file: &ConfigFile) -> BTreeMap<String, Value> {
    let mut found: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    for (path, KeyValue { value, .. }) in &file.keys {
        let [TABLE, name, key] = path.iter().map(String::as_str).collect::<Vec<_>>()[..] else { continue };
        found.entry(name.to_owned()).or_default().insert(key.to_owned(), value.clone());
    }
    found.into_iter().map(|(name, service)| (name, Value::Object(service))).collect()
}

impl ConfigSources {
    /// Returns the services of all files. The project's replace those of the user that have the same name.
    pub(crate) fn services(&self) -> BTreeMap<String, Value> {
        let mut all = services(&self.user);
        all.extend(services(&self.project));
        all
    }
}
