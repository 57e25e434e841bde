//! The services of a step: their names, in its `runner_args`, are replaced by their definitions.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Map, Value};

use super::bind::nearest;
use crate::ir::ProblemKind;

/// The name of the argument.
const SERVICES: &str = "services";

/// Replaces the names of services by their definitions. A step that has the definitions itself keeps them.
/// Returns an error for each name that is not known.
pub(super) fn expand(args: &Value, known: &BTreeMap<String, Value>) -> Option<(Value, Vec<ProblemKind>)> {
    let names = args.get(SERVICES)?.as_array()?;
    let (mut services, mut problems) = (Map::new(), Vec::new());
    for name in names {
        match name.as_str().map(|name| (name, known.get(name))) {
            Some((name, Some(definition))) => drop(services.insert(name.to_owned(), definition.clone())),
            Some((name, None)) => {
                let names: Vec<Arc<str>> = known.keys().map(|name| name.as_str().into()).collect();
                let nearest = nearest(name, &names);
                problems.push(ProblemKind::UnknownService { name: name.to_owned(), nearest, known: names });
            }
            None => problems.push(ProblemKind::StepArg {
                path: format!("runner_args.{SERVICES}"),
                expected: "a list of names",
                found: name.to_string(),
            }),
        }
    }
    let mut args = args.as_object()?.clone();
    match services.is_empty() {
        true => drop(args.remove(SERVICES)),
        false => drop(args.insert(SERVICES.to_owned(), Value::Object(services))),
    }
    Some((Value::Object(args), problems))
}
