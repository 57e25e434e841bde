//! The services of a step in its `runner_args`.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    num::{NonZeroU16, NonZeroU32},
    time::Duration,
};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

/// The maximum number of services of a step.
const MAX_SERVICES: usize = 16;

/// The maximum length of a name, in bytes.
const MAX_NAME_BYTES: usize = 40;

/// How long a service has to become ready by default, in seconds.
const READY_TIMEOUT_SECONDS: NonZeroU32 = NonZeroU32::new(30).unwrap();

/// The maximum of that time.
const MAX_READY_TIMEOUT_SECONDS: u32 = 3600;

/// A program that runs beside a step, in the step's network.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "ServiceForm")]
#[non_exhaustive]
pub struct ServiceArg {
    /// What it boots from.
    pub base: ServiceBase,
    /// Its environment variables, which override those of the image.
    pub env: BTreeMap<String, String>,
    /// Its command, for a shell. By default, that of the image.
    pub cmd: Option<String>,
    /// When it is ready. By default, when it has started.
    pub ready: Option<Ready>,
    /// How long it has to become ready.
    pub ready_timeout: Duration,
    /// The secrets that it may read at `/run/secrets/NAME`.
    pub secrets: Vec<String>,
}

/// What a service boots from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServiceBase {
    /// An image.
    Image(String),
    /// The snapshot of the step of the pipeline with this key.
    Step(String),
}

/// The condition under which a service is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ready {
    /// A command in the service's files exits with 0.
    Command(String),
    /// A TCP port has a listener.
    Port(NonZeroU16),
}

/// A service as it is written.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ServiceForm {
    /// The image that it boots from.
    #[serde(default)]
    image: Option<String>,
    /// The key of the step whose snapshot it boots from, instead of an image.
    #[serde(default)]
    step: Option<String>,
    /// Its environment variables, which override those of the image.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Its command, for a shell. By default, that of the image.
    #[serde(default)]
    cmd: Option<String>,
    /// When it is ready: a command that exits with 0 then, or a TCP port. By default, when it has started.
    #[serde(default)]
    ready: Option<Ready>,
    /// How long it has to become ready, in seconds.
    #[serde(default = "ready_timeout")]
    #[schemars(range(min = 1, max = 3600))]
    ready_timeout_seconds: NonZeroU32,
    /// The secrets that it may read at `/run/secrets/NAME`.
    #[serde(default)]
    secrets: Vec<String>,
}

fn ready_timeout() -> NonZeroU32 {
    READY_TIMEOUT_SECONDS
}

impl TryFrom<ServiceForm> for ServiceArg {
    type Error = String;

    fn try_from(form: ServiceForm) -> Result<Self, String> {
        let ServiceForm { image, step, env, cmd, ready, ready_timeout_seconds, secrets } = form;
        let base = match (image, step) {
            (Some(image), None) => ServiceBase::Image(image),
            (None, Some(step)) => ServiceBase::Step(step),
            (Some(_), Some(_)) => return Err("a service boots from an `image` or from a `step`, not from both".into()),
            (None, None) => return Err("a service needs an `image`, or a `step` to boot from".into()),
        };
        if cmd.is_none()
            && let ServiceBase::Image(image) = &base
            && (image == "host" || image.starts_with("rootfs:"))
        {
            return Err(format!("a service on image `{}` needs a `cmd`: the image has none", image.escape_debug()));
        }
        if cmd.as_ref().is_some_and(|cmd| cmd.trim().is_empty()) {
            return Err("the `cmd` of a service is empty".into());
        }
        if ready_timeout_seconds.get() > MAX_READY_TIMEOUT_SECONDS {
            return Err(format!("`ready_timeout_seconds` of a service is at most {MAX_READY_TIMEOUT_SECONDS}"));
        }
        if let Some(name) = env.keys().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
            return Err(format!("`{}` is no name of a variable", name.escape_debug()));
        }
        let ready_timeout = Duration::from_secs(ready_timeout_seconds.get().into());
        Ok(Self { base, env, cmd, ready, ready_timeout, secrets })
    }
}

impl JsonSchema for ServiceArg {
    fn schema_name() -> Cow<'static, str> {
        "ServiceArg".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        ServiceForm::json_schema(generator)
    }
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

/// The services of a step as they are written: binding has replaced names by definitions before they are
/// read, so only the schema has the list.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
pub(in crate::runner) enum ServicesForm {
    /// The names of services that `hm.toml` defines.
    Names(Vec<String>),
    /// Services, by name.
    Defined(BTreeMap<String, ServiceArg>),
}

/// Reads the services of a step, by name.
pub(in crate::runner) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, ServiceArg>, D::Error> {
    let services = BTreeMap::<String, ServiceArg>::deserialize(deserializer)?;
    if services.len() > MAX_SERVICES {
        return Err(de::Error::custom(format_args!("a step has at most {MAX_SERVICES} services")));
    }
    let is_name = |name: &str| {
        // A name of a host, and the start of lines in a log.
        let is_letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        (1..=MAX_NAME_BYTES).contains(&name.len()) && name.chars().all(is_letter)
    };
    match services.keys().find(|name| !is_name(name)) {
        Some(name) => Err(de::Error::custom(format_args!(
            "`{}` is no name of a service: use letters, digits, `_`, `-` and `.`",
            name.escape_debug()
        ))),
        None => Ok(services),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{super::super::Limits, *};

    fn parse(service: &Value) -> Result<ServiceArg, String> {
        named("db", service)
    }

    fn named(name: &str, service: &Value) -> Result<ServiceArg, String> {
        let limits: Result<Limits, _> = serde_json::from_value(json!({ "services": { name: service } }));
        limits.map(|mut limits| limits.services.remove(name).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_service_boots_from_an_image_or_from_a_step() {
        let service = parse(&json!({ "image": "redis:7", "ready": 6379, "env": { "A": "b" } })).unwrap();
        assert_eq!(service.base, ServiceBase::Image("redis:7".into()));
        assert_eq!((service.ready, service.cmd), (NonZeroU16::new(6379).map(Ready::Port), None));
        assert_eq!(service.ready_timeout, Duration::from_secs(30));
        let service = parse(&json!({ "step": "seeded", "ready": "pg_isready", "ready_timeout_seconds": 90 })).unwrap();
        assert_eq!(service.base, ServiceBase::Step("seeded".into()));
        assert_eq!((service.ready, service.ready_timeout.as_secs()), (Some(Ready::Command("pg_isready".into())), 90));
    }

    #[test]
    fn what_cannot_run_is_refused() {
        for (service, expected) in [
            (json!({}), "needs an `image`, or a `step`"),
            (json!({ "image": "a", "step": "b" }), "not from both"),
            (json!({ "image": "host" }), "needs a `cmd`"),
            (json!({ "image": "rootfs:/x" }), "needs a `cmd`"),
            (json!({ "image": "a", "cmd": " " }), "`cmd` of a service is empty"),
            (json!({ "image": "a", "ready": 0 }), "the number of a TCP port"),
            (json!({ "image": "a", "ready": 65536 }), "the number of a TCP port"),
            (json!({ "image": "a", "ready": "" }), "the command is empty"),
            (json!({ "image": "a", "ready_timeout_seconds": 0 }), "nonzero"),
            (json!({ "image": "a", "ready_timeout_seconds": 4000 }), "at most 3600"),
            (json!({ "image": "a", "env": { "A=B": "c" } }), "no name of a variable"),
            (json!({ "image": "a", "command": "x" }), "unknown field `command`"),
        ] {
            let error = parse(&service).expect_err(expected);
            assert!(error.contains(expected), "{service}: {error}");
        }
        for name in ["", "a b", "a\n", "ä", "[db]"] {
            let error = named(name, &json!({ "image": "a" })).unwrap_err();
            assert!(error.contains("no name of a service"), "{error}");
        }
        let many: BTreeMap<String, Value> = (0..17).map(|at| (format!("s{at}"), json!({ "image": "a" }))).collect();
        let limits: Result<Limits, _> = serde_json::from_value(json!({ "services": many }));
        assert!(limits.unwrap_err().to_string().contains("at most 16 services"));
        let names: Result<Limits, _> = serde_json::from_value(json!({ "services": ["db"] }));
        assert!(names.is_err(), "binding replaces names");
    }
}
