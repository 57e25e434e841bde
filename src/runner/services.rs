//! The services of a step in its `runner_args`.

use std::{borrow::Cow, collections::BTreeMap, num::NonZeroU16};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

/// The maximum number of services of a step.
const MAX_SERVICES: usize = 16;

/// The maximum length of a name, in bytes.
const MAX_NAME_BYTES: usize = 40;

/// A program that runs beside a step, in the step's network.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ServiceArg {
    /// The image that it boots from.
    pub image: String,
    /// Its environment variables, beside those of the image.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Its command, for a shell. By default, that of the image.
    pub cmd: Option<String>,
    /// When it is ready. By default, when it has started.
    pub ready: Option<Ready>,
}

/// The condition under which a service is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ready {
    /// A command in the service's files exits with 0.
    Command(String),
    /// A TCP port has a listener.
    Port(NonZeroU16),
}

impl<'de> Deserialize<'de> for Ready {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a command, or the number of a TCP port")]
        enum Form {
            Port(NonZeroU16),
            Command(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Port(port) => Ok(Self::Port(port)),
            Form::Command(command) if command.trim().is_empty() => Err(de::Error::custom("the command is empty")),
            Form::Command(command) => Ok(Self::Command(command)),
        }
    }
}

impl JsonSchema for Ready {
    fn schema_name() -> Cow<'static, str> {
        "Ready".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A command, or the number of a TCP port.",
            "anyOf": [{ "type": "string" }, { "type": "integer", "minimum": 1, "maximum": 65535 }],
        })
    }
}

/// Reads the services of a step, by name.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, ServiceArg>, D::Error> {
    let services = BTreeMap::<String, ServiceArg>::deserialize(deserializer)?;
    if services.len() > MAX_SERVICES {
        return Err(de::Error::custom(format_args!("a step has at most {MAX_SERVICES} services")));
    }
    let is_name = |name: &str| {
        let is_letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        (1..=MAX_NAME_BYTES).contains(&name.len()) && name.chars().all(is_letter)
    };
    if let Some(name) = services.keys().find(|name| !is_name(name)) {
        return Err(de::Error::custom(format_args!(
            "`{}` is no name of a service: use letters, digits, `_`, `-` and `.`",
            name.escape_debug()
        )));
    }
    for (name, service) in &services {
        if service.cmd.is_none() && service.image == "host" {
            return Err(de::Error::custom(format_args!(
                "service `{name}` needs a `cmd`, because image `host` has none"
            )));
        }
    }
    Ok(services)
}
