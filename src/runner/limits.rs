//! The resource limits of a step in its `runner_args`: one type, with one meaning, for every runner that
//! enforces limits.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt,
    num::{NonZeroU16, NonZeroU64},
};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};
use serde_json::Value;

use super::{
    ArgsError, RunnerError,
    caches::{self, CacheArg},
    services::{self, ServiceArg},
};
use crate::size;

/// The limits of a step: its `runner_args`, on runners with the [`limits`](super::RunnerCapabilities::limits)
/// capability.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Limits {
    /// The most memory that the step's processes may use together, swap included. A step that exceeds it
    /// fails as out of memory.
    pub memory: Option<MemorySize>,
    /// The most processors that the step may keep busy, such as 0.5 or 2.
    pub cpus: Option<Cpus>,
    /// The most processes and threads at a time.
    pub pids: Option<NonZeroU64>,
    /// The step's access to the network.
    pub network: Network,
    /// The ports of this machine's loopback that a step with a private network reaches as `host.hm.internal`.
    #[serde(deserialize_with = "ports")]
    #[schemars(with = "Vec<NonZeroU16>")]
    pub host_ports: Vec<u16>,
    /// Directories that persist between runs, by name: a path, or an object with a path and a scope.
    #[serde(deserialize_with = "caches::deserialize")]
    pub caches: BTreeMap<String, CacheArg>,
    /// The services beside the step, by name. In a pipeline also a list of names, of services in `hm.toml`.
    #[serde(deserialize_with = "services::deserialize")]
    pub services: BTreeMap<String, ServiceArg>,
}

impl Limits {
    /// Reads the limits of a step from its `runner_args`, which binding has already checked.
    ///
    /// # Errors
    /// Returns an error if `args` are not limits.
    pub fn of_args(args: Option<&Value>) -> Result<Self, RunnerError> {
        match args {
            None | Some(Value::Null) => Ok(Self::default()),
            Some(args) => {
                Self::deserialize(args).map_err(|error| RunnerError::unsupported(format!("wrong runner_args: {error}")))
            }
        }
    }
}

/// Checks the network of a step on a runner whose steps may have one of their own.
pub(crate) fn check_network(args: &Value) -> Result<(), ArgsError> {
    if is_private(args) || !(has_host_ports(args) || has_services(args)) {
        return Ok(());
    }
    if has_services(args) {
        let message = "services run in the step's own network: set `\"network\": \"private\"`";
        return Err(ArgsError { path: "runner_args.services".into(), message: message.into() });
    }
    let message = "these ports are for steps with a network of their own: set `\"network\": \"private\"`";
    Err(ArgsError { path: "runner_args.host_ports".into(), message: message.into() })
}

/// Checks the network of a step on a runner whose steps have the machine's, or none.
pub(crate) fn check_shared_network(args: &Value) -> Result<(), ArgsError> {
    if args["caches"].as_object().is_some_and(|caches| !caches.is_empty()) {
        let message = "this runner has no cache directories: run the step on `sandbox`";
        return Err(ArgsError { path: "runner_args.caches".into(), message: message.into() });
    }
    if has_services(args) {
        let message = "this runner has no services: run the step on `sandbox`";
        return Err(ArgsError { path: "runner_args.services".into(), message: message.into() });
    }
    let name = match is_private(args) {
        true => "network",
        false if has_host_ports(args) => "host_ports",
        false => return Ok(()),
    };
    let message = "this runner has no private networks: use \"host\" or \"none\"";
    Err(ArgsError { path: format!("runner_args.{name}"), message: message.into() })
}

/// Returns whether a step asks for a network of its own, which a runner cannot always provide.
pub(crate) fn is_private(args: &Value) -> bool {
    args["network"] == "private"
}

fn has_services(args: &Value) -> bool {
    args["services"].as_object().is_some_and(|services| !services.is_empty())
}

fn has_host_ports(args: &Value) -> bool {
    args["host_ports"].as_array().is_some_and(|ports| !ports.is_empty())
}

/// The network access of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// The network of this machine. This is the default because CI steps install packages.
    #[default]
    Host,
    /// A network of the step's own, with its own ports and loopback. Names and other machines are reachable,
    /// this machine is not.
    Private,
    /// Only a loopback device of its own.
    None,
}

fn ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u16>, D::Error> {
    Vec::<NonZeroU16>::deserialize(deserializer).map(|ports| ports.into_iter().map(NonZeroU16::get).collect())
}

/// A number of bytes: a JSON number, or text such as `512m`, with the suffixes `k`, `m`, `g` and `t` in
/// powers of 1024.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemorySize {
    /// The size in bytes; at least [`MemorySize::MIN_BYTES`].
    pub bytes: u64,
}

impl MemorySize {
    /// The minimum: with less memory not even a shell starts.
    pub const MIN_BYTES: u64 = 4 << 20;
}

impl<'de> Deserialize<'de> for MemorySize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = MemorySize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a number of bytes of at least {}, or text such as \"512m\"", MemorySize::MIN_BYTES)
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<MemorySize, E> {
                if bytes < MemorySize::MIN_BYTES {
                    return Err(E::invalid_value(de::Unexpected::Unsigned(bytes), &self));
                }
                Ok(MemorySize { bytes })
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<MemorySize, E> {
                match size::parse(text) {
                    Ok(bytes) => self.visit_u64(bytes),
                    Err(_) => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for MemorySize {
    fn schema_name() -> Cow<'static, str> {
        "MemorySize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Bytes, or text such as \"512m\" (k, m, g, t: powers of 1024).",
            "anyOf": [
                { "type": "integer", "minimum": Self::MIN_BYTES },
                { "type": "string", "pattern": "^ *[0-9]+ *([kKmMgGtT]i?)?[bB]? *$" },
            ],
        })
    }
}

/// A number of processors above zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cpus(pub f64);

impl<'de> Deserialize<'de> for Cpus {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let cpus = f64::deserialize(deserializer)?;
        // The kernel refuses a quota below a hundredth of a processor.
        if (0.01..=4096.0).contains(&cpus) {
            Ok(Self(cpus))
        } else {
            Err(de::Error::invalid_value(de::Unexpected::Float(cpus), &"a number of processors from 0.01 to 4096"))
        }
    }
}

impl JsonSchema for Cpus {
    fn schema_name() -> Cow<'static, str> {
        "Cpus".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "description": "Processors.", "type": "number", "minimum": 0.01, "maximum": 4096 })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parse(args: Value) -> Result<Limits, String> {
        serde_json::from_value(args).map_err(|error| error.to_string())
    }

    #[test]
    fn memory_is_a_number_or_text() {
        for (text, bytes) in [
            (json!("512m"), 512 << 20),
            (json!("1G"), 1 << 30),
            (json!("2 GiB"), 2 << 30),
            (json!(5_000_000), 5_000_000),
        ] {
            assert_eq!(parse(json!({ "memory": text })).unwrap().memory, Some(MemorySize { bytes }));
        }
        for wrong in [json!("much"), json!(-1), json!(1), json!("99999999999999t"), json!(""), json!("m"), json!(1.5)] {
            assert!(parse(json!({ "memory": wrong })).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_network_of_its_own_needs_a_runner_that_has_one() {
        let private = json!({ "network": "private", "host_ports": [5000] });
        assert_eq!(parse(private.clone()).unwrap().host_ports, [5000]);
        assert_eq!(check_network(&private), Ok(()));
        let error = check_shared_network(&private).unwrap_err();
        assert_eq!(error.path, "runner_args.network");
        for args in [json!({ "host_ports": [1] }), json!({ "network": "none", "host_ports": [1] })] {
            for check in [check_network, check_shared_network] {
                assert_eq!(check(&args).unwrap_err().path, "runner_args.host_ports");
            }
        }
        let caches = json!({ "caches": { "cargo": "/root/.cargo" } });
        assert_eq!(check_network(&caches), Ok(()));
        assert_eq!(check_shared_network(&caches).unwrap_err().path, "runner_args.caches");
        for args in [json!({}), json!(null), json!({ "network": "host", "host_ports": [] })] {
            assert_eq!((check_network(&args), check_shared_network(&args)), (Ok(()), Ok(())));
        }
        assert!(parse(json!({ "host_ports": [0] })).is_err());
    }

    #[test]
    fn what_is_not_known_is_refused() {
        assert!(parse(json!({ "memroy": 1 })).unwrap_err().contains("memroy"));
        assert!(parse(json!({ "network": "bridge" })).unwrap_err().contains("bridge"));
        assert!(parse(json!({ "cpus": 0 })).is_err());
        assert!(parse(json!({ "pids": 0 })).is_err());
        assert_eq!(parse(json!({})).unwrap(), Limits::default());
    }
}
