//! `[step."glob"]` of `hm.toml`: arguments for the steps whose key or label matches a glob.

use std::{borrow::Cow, collections::BTreeMap, path::Path};

use hm_exec::{
    plan::{StepTable, engine_args_schema},
    runner::Limits,
};
use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings};
use serde_json::Value;
use toml::de::{DeTable, DeValue};

use super::{
    keys::{self, KeyValue},
    schema::{ConfigFile, KnownKeys},
    sources::ConfigSources,
};
use crate::{
    failure::{Failure, Outcome},
    trust::{self, Permission},
};

/// The name of the table.
pub(super) const TABLE: &str = "step";

/// The schema of one table: the arguments of the engine and of the runners.
pub(super) struct StepTableSchema;

impl JsonSchema for StepTableSchema {
    fn schema_name() -> Cow<'static, str> {
        "StepTable".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut properties = serde_json::Map::new();
        for schema in [Limits::json_schema(generator), engine_args_schema()] {
            properties.extend(schema.get("properties").and_then(Value::as_object).cloned().unwrap_or_default());
        }
        schemars::json_schema!({
            "description": "Arguments of steps, as in their `runner_args`.",
            "type": "object",
            "properties": properties,
            "additionalProperties": false,
        })
    }
}

/// Returns the schemas of the arguments of steps, by name.
pub(crate) fn step_args_schema() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let schema = StepTableSchema::json_schema(&mut settings.into_generator());
    schema.get("properties").cloned().unwrap_or_default()
}

/// Returns the first mistake in a file's `[step]` tables: a glob that is not valid, or an argument that no
/// runner has. Whether a value is right depends on the runners of the steps that match.
pub(super) fn mistake(file: &DeTable<'_>) -> Option<(usize, String)> {
    let tables = file.get(TABLE).and_then(|tables| tables.get_ref().as_table())?;
    let known = KnownKeys::new();
    for (glob, table) in tables {
        if let Err(invalid) = StepTable::new(glob.get_ref()) {
            return Some((glob.span().start, invalid.to_string()));
        }
        let DeValue::Table(args) = table.get_ref() else { continue };
        for name in args.keys() {
            let path = [TABLE.to_owned(), glob.get_ref().to_string(), name.get_ref().to_string()];
            if !known.has(&path) {
                let near = known.nearest(&path).and_then(|near| near.last().cloned());
                let near = near.map(|near| format!(", did you mean `{near}`?")).unwrap_or_default();
                return Some((name.span().start, format!("unknown argument `{}` of steps{near}", name.get_ref())));
            }
        }
    }
    None
}

/// Returns the tables of a file, in the order of their first lines.
fn tables(file: &ConfigFile) -> Outcome<Vec<StepTable>> {
    let mut found: BTreeMap<&str, (usize, StepTable)> = BTreeMap::new();
    for (path, KeyValue { value, place }) in &file.keys {
        let [TABLE, glob, name] = path.iter().map(String::as_str).collect::<Vec<_>>()[..] else { continue };
        let (line, table) = match found.remove(glob) {
            Some(found) => found,
            // The files were checked when they were read.
            None => {
                let table = StepTable::new(glob).map_err(Failure::input)?;
                (usize::MAX, if place.is_projects { table } else { table.general() })
            }
        };
        let source = format!("{} in {place}", header(glob));
        found.insert(glob, (line.min(place.line), table.arg(name, value.clone(), source)));
    }
    let mut found: Vec<_> = found.into_values().collect();
    found.sort_by_key(|(line, _)| *line);
    Ok(found.into_iter().map(|(_, table)| table).collect())
}

/// Returns a table's header as it is written in the file, for messages.
fn header(glob: &str) -> String {
    format!("[{}]", keys::dotted(&[TABLE, glob]))
}

/// Returns what the project's tables request beyond the sandbox.
pub(super) fn permissions(file: &ConfigFile, project: Option<&Path>) -> Vec<Permission> {
    let mut permissions = Vec::new();
    for (path, key) in &file.keys {
        let [TABLE, glob, name] = path.iter().map(String::as_str).collect::<Vec<_>>()[..] else { continue };
        let request = trust::of_step_arg(name, &key.value, project);
        permissions.extend(request.map(|(value, effect)| {
            Permission::new(format!("[{TABLE}] {}", keys::dotted(&[glob, name])), value, effect)
        }));
    }
    permissions
}

impl ConfigSources {
    /// Returns the `[step]` tables of all files, lowest precedence first.
    pub(crate) fn step_tables(&self) -> Outcome<Vec<StepTable>> {
        let (mut all, own) = (tables(&self.user)?, tables(&self.project)?);
        all.extend(own);
        Ok(all)
    }
}
