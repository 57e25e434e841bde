//! The resource limits of a step in its `runner_args`: one type, with one meaning, for every runner that
//! enforces limits.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt,
    num::{NonZeroU16, NonZeroU64},
    sync::Arc,
};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};
use serde_json::Value;

use super::{
    ArgsError, RunnerError,
    caches::{self, CacheArg},
    services::{self, ServiceArg, ServicesForm},
};
use crate::{model::EgressRule, size, source::HiddenFiles};

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
    /// The only destinations that a step with a private network may reach, besides `host_ports`: names, names
    /// below a domain, addresses and networks, each with or without a port, such as `crates.io:443`,
    /// `*.debian.org` and `10.0.0.0/8`.
    #[serde(deserialize_with = "egress")]
    #[schemars(with = "Vec<String>")]
    pub egress: Option<Arc<[EgressRule]>>,
    /// Directories that persist between runs, by name: a path, or an object with a path and a scope.
    #[serde(deserialize_with = "caches::deserialize")]
    pub caches: BTreeMap<String, CacheArg>,
    /// The files of the source that the step does not see: patterns as in a `.gitignore` file.
    #[schemars(with = "Vec<String>")]
    pub ignore: Option<HiddenFiles>,
    /// The services beside the step, by name. A pipeline may also have a list of names, of services that
    /// `hm.toml` defines.
    #[serde(deserialize_with = "services::deserialize")]
    #[schemars(with = "ServicesForm")]
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

/// Checks the network of a step on a runner whose steps may have one of their own, which is the default.
pub(crate) fn check_network(args: &Value) -> Result<(), ArgsError> {
    refuse_list(args)?;
    if has_hidden(args) && args["caches"].as_object().is_some_and(|caches| !caches.is_empty()) {
        // They are compared with the whole source that they were made from.
        let message = "a step with cache directories sees all files of the source: leave `ignore` or `caches` out";
        return Err(ArgsError { path: "runner_args.ignore".into(), message: message.into() });
    }
    check_service_network(args, "leave `network` out, and use `egress = []` if nothing else is to be reached")?;
    match for_private_networks(args) {
        Some(name) if !wants_private(Some(args)) => {
            let message = "this is for steps with a network of their own: leave `network` out";
            Err(ArgsError { path: format!("runner_args.{name}"), message: message.into() })
        }
        _ => Ok(()),
    }
}

/// Does the same as [`check_network`] for a runner whose steps cannot reach ports of the machine.
pub(crate) fn check_listed_network(args: &Value) -> Result<(), ArgsError> {
    if has_host_ports(args) {
        let message = "this runner's machines cannot reach ports of this machine: use the runner `sandbox`";
        return Err(ArgsError { path: "runner_args.host_ports".into(), message: message.into() });
    }
    refuse_caches(args)?;
    refuse_ignore(args)?;
    refuse_services(args)?;
    check_network(args)
}

/// Does the same as [`check_network`] for a runner that connects the networks of steps by other means than
/// this program.
pub(crate) fn check_bridged_network(args: &Value) -> Result<(), ArgsError> {
    refuse_list(args)?;
    refuse_caches(args)?;
    refuse_ignore(args)?;
    check_service_network(args, "leave `network` out")?;
    match for_private_networks(args) {
        Some(name) => {
            let message = "this runner connects steps by a bridge, which has no such list: use the runner `sandbox`";
            Err(ArgsError { path: format!("runner_args.{name}"), message: message.into() })
        }
        None => Ok(()),
    }
}

/// Checks the network of a step on a runner whose steps have the machine's, or none.
pub(crate) fn check_shared_network(args: &Value) -> Result<(), ArgsError> {
    refuse_list(args)?;
    refuse_caches(args)?;
    refuse_ignore(args)?;
    refuse_services(args)?;
    let name = match for_private_networks(args) {
        _ if is_private(&args["network"]) => "network",
        Some(name) => name,
        None => return Ok(()),
    };
    let message = "this runner has no private networks: use \"host\" or \"none\"";
    Err(ArgsError { path: format!("runner_args.{name}"), message: message.into() })
}

/// Refuses a list, which would be read as the values of the fields in their order.
fn refuse_list(args: &Value) -> Result<(), ArgsError> {
    match args {
        Value::Array(_) => Err(ArgsError { path: "runner_args".into(), message: "expected an object".into() }),
        _ => Ok(()),
    }
}

/// Refuses cache directories, for a runner that has none.
fn refuse_caches(args: &Value) -> Result<(), ArgsError> {
    if args["caches"].as_object().is_none_or(|caches| caches.is_empty()) {
        return Ok(());
    }
    let message = "this runner has no cache directories: run the step on `sandbox`";
    Err(ArgsError { path: "runner_args.caches".into(), message: message.into() })
}

/// Refuses patterns of hidden files, for a runner whose steps see the whole source.
fn refuse_ignore(args: &Value) -> Result<(), ArgsError> {
    if !has_hidden(args) {
        return Ok(());
    }
    let message = "this runner cannot hide files of the source: run the step on `sandbox`, or use `ignore` of [source]";
    Err(ArgsError { path: "runner_args.ignore".into(), message: message.into() })
}

fn has_hidden(args: &Value) -> bool {
    args["ignore"].as_array().is_some_and(|patterns| !patterns.is_empty())
}

/// Refuses services, for a runner that has none.
fn refuse_services(args: &Value) -> Result<(), ArgsError> {
    if !has_services(args) {
        return Ok(());
    }
    let message = "this runner has no services: run the step on `sandbox` or `docker`";
    Err(ArgsError { path: "runner_args.services".into(), message: message.into() })
}

/// Refuses services of a step without a network that they could share, with this advice.
fn check_service_network(args: &Value, advice: &str) -> Result<(), ArgsError> {
    if !has_services(args) || wants_private(Some(args)) {
        return Ok(());
    }
    let message = format!("services share the step's own network: {advice}");
    Err(ArgsError { path: "runner_args.services".into(), message })
}

fn has_services(args: &Value) -> bool {
    match &args["services"] {
        Value::Object(services) => !services.is_empty(),
        value => !value.is_null(),
    }
}

/// Returns whether a step with these arguments has a network of its own, on a runner that has such.
pub(crate) fn wants_private(args: Option<&Value>) -> bool {
    args.and_then(|args| args.get("network")).is_none_or(is_private)
}

/// Returns whether the value of `network` is that of a network of the step's own, in any of its spellings.
fn is_private(network: &Value) -> bool {
    Network::deserialize(network).is_ok_and(|network| network == Network::Private)
}

/// Returns the first argument that only steps with a network of their own have.
fn for_private_networks(args: &Value) -> Option<&'static str> {
    // An empty list allows nothing.
    let has_egress = !args["egress"].is_null();
    if has_host_ports(args) { Some("host_ports") } else { has_egress.then_some("egress") }
}

fn has_host_ports(args: &Value) -> bool {
    args["host_ports"].as_array().is_some_and(|ports| !ports.is_empty())
}

/// The network access of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// The network of this machine.
    Host,
    /// A network of the step's own, with its own ports and loopback. Names and other machines are reachable,
    /// this machine is not. This is the default, on runners that have such networks.
    #[default]
    Private,
    /// Only a loopback device of its own.
    None,
}

fn egress<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Arc<[EgressRule]>>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let rules = texts.iter().map(|text| {
        text.parse().map_err(|error| de::Error::custom(format_args!("wrong entry `{text}` of `egress`: {error}")))
    });
    rules.collect::<Result<Arc<_>, _>>().map(Some)
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
        for (network, allowed) in [("host", false), ("none", false), ("private", true)] {
            let args = json!({ "network": network, "host_ports": [1] });
            assert_eq!(check_network(&args).is_ok(), allowed, "{network}");
        }
        let ports = json!({ "host_ports": [1] });
        assert_eq!(check_network(&ports), Ok(()), "the default");
        for check in [check_bridged_network, check_shared_network] {
            assert_eq!(check(&ports).unwrap_err().path, "runner_args.host_ports");
        }
        let caches = json!({ "caches": { "cargo": "/root/.cargo" } });
        assert_eq!(check_network(&caches), Ok(()));
        for check in [check_network, check_listed_network, check_bridged_network, check_shared_network] {
            assert_eq!(check(&json!([])).unwrap_err().path, "runner_args");
        }
        for check in [check_listed_network, check_bridged_network, check_shared_network] {
            assert_eq!(check(&caches).unwrap_err().path, "runner_args.caches");
        }
        let hidden = json!({ "ignore": ["*.md"], "caches": {} });
        assert_eq!(check_network(&hidden), Ok(()));
        for check in [check_listed_network, check_bridged_network, check_shared_network] {
            assert_eq!(check(&hidden).unwrap_err().path, "runner_args.ignore");
            assert_eq!(check(&json!({ "ignore": [], "network": "host" })), Ok(()));
        }
        let both = json!({ "ignore": ["*.md"], "caches": { "cargo": "/root/.cargo" } });
        assert_eq!(check_network(&both).unwrap_err().path, "runner_args.ignore");
        let services = json!({ "services": { "db": { "image": "redis:7" } } });
        assert_eq!(check_network(&services), Ok(()));
        for network in ["host", "none"] {
            let mut shared = services.clone();
            shared["network"] = network.into();
            for (check, has_lists) in [(check_network as fn(&_) -> _, true), (check_bridged_network, false)] {
                let ArgsError { path, message } = check(&shared).unwrap_err();
                assert_eq!((&*path, message.contains("egress")), ("runner_args.services", has_lists));
            }
        }
        assert_eq!(check_bridged_network(&services), Ok(()));
        for check in [check_listed_network, check_shared_network] {
            assert_eq!(check(&services).unwrap_err().path, "runner_args.services");
        }
        for args in [json!({}), json!(null), json!({ "network": "host", "host_ports": [], "services": {} })] {
            for check in [check_network, check_bridged_network, check_shared_network] {
                assert_eq!(check(&args), Ok(()));
            }
        }
        assert_eq!(check_bridged_network(&json!({ "network": "private" })), Ok(()));
        assert!(parse(json!({ "host_ports": [0] })).is_err());
        for check in [check_bridged_network, check_shared_network] {
            assert_eq!(check(&json!({ "egress": [] })).unwrap_err().path, "runner_args.egress");
        }
        assert_eq!(check_listed_network(&json!({ "egress": [] })), Ok(()));
        assert_eq!(check_listed_network(&ports).unwrap_err().path, "runner_args.host_ports");
        let shared = json!({ "network": "host", "egress": ["a.example"] });
        assert_eq!(check_network(&shared).unwrap_err().path, "runner_args.egress");
        assert_eq!(parse(json!({})).unwrap().network, Network::Private);
        assert!(wants_private(None) && wants_private(Some(&json!({ "memory": 1 }))));
        assert!(!wants_private(Some(&json!({ "network": "host" }))));
        let spelled = json!({ "network": { "private": null } });
        assert!(wants_private(Some(&spelled)) && check_shared_network(&spelled).is_err());
    }

    #[test]
    fn destinations_are_read_and_a_wrong_one_is_named() {
        let egress = json!({ "network": "private", "egress": ["crates.io:443", "10.0.0.0/8"] });
        assert_eq!(check_network(&egress), Ok(()));
        assert_eq!(parse(egress).unwrap().egress.unwrap().len(), 2);
        assert_eq!(parse(json!({ "egress": [] })).unwrap().egress.unwrap().len(), 0);
        assert_eq!(parse(json!({})).unwrap().egress, None);
        let error = parse(json!({ "egress": ["a.example", "https://b.example"] })).unwrap_err();
        assert!(error.contains("`https://b.example`") && error.contains("URL"), "{error}");
        assert!(parse(json!({ "egress": "a.example" })).is_err());
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
