//! Events as JSON. Fields that an event of another program lacks have defaults. Events of an unknown kind are
//! kept unchanged.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use serde_json::{Map, Value};

use super::BuildEvent;

/// The tags that [`BuildEvent`] knows: an event with one of these that does not decode is an error, not an
/// unknown event.
const KNOWN_KINDS: [&str; 15] = [
    "build_start",
    "build_accepted",
    "step_queued",
    "step_start",
    "step_log",
    "step_log_lost",
    "step_cache_hit",
    "step_cache_miss",
    "step_retry",
    "step_end",
    "chain_failed",
    "connection",
    "progress",
    "step_shadow",
    "build_end",
];

impl Serialize for BuildEvent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Unknown(fields) => fields.serialize(serializer),
            // The inherent function that the derive generates because of `remote`.
            known => Self::serialize(known, serializer),
        }
    }
}

impl<'de> Deserialize<'de> for BuildEvent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut fields = Map::deserialize(deserializer)?;
        let Some(Value::String(kind)) = fields.get("kind") else {
            return Err(D::Error::custom("the event has no `kind`"));
        };
        let exit_code = fields.get("exit_code").and_then(Value::as_i64);
        let status = match kind.as_str() {
            "step_end" => exit_code.map(step_status),
            "build_end" => exit_code.map(build_status),
            known if KNOWN_KINDS.contains(&known) => None,
            _ => return Ok(Self::Unknown(fields)),
        };
        if let Some(status) = status {
            fields.entry("status").or_insert_with(|| status.into());
        }
        Self::deserialize(Value::Object(fields)).map_err(D::Error::custom)
    }
}

/// Returns the status of a step whose event has none.
const fn step_status(exit_code: i64) -> &'static str {
    match exit_code {
        0 => "passed",
        124 => "timed_out",
        130 => "canceled",
        _ => "failed",
    }
}

/// Returns the status of a build whose event has none.
const fn build_status(exit_code: i64) -> &'static str {
    match exit_code {
        3 => "infrastructure",
        code => step_status(code),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_unknown_kind_is_kept_as_it_came() {
        let value = json!({"kind": "step_danced", "seq": 7, "steps": [1, {"a": null}], "x": 1.5});
        let event: BuildEvent = serde_json::from_value(value.clone()).unwrap();
        assert!(matches!(event, BuildEvent::Unknown(_)));
        assert_eq!(event.seq(), 7);
        assert_eq!(serde_json::to_value(&event).unwrap(), value);
    }

    #[test]
    fn a_known_kind_that_is_wrong_is_an_error() {
        for kind in KNOWN_KINDS {
            let error = serde_json::from_value::<BuildEvent>(json!({"kind": kind, "step_id": 1})).unwrap_err();
            assert!(
                error.to_string().contains("missing field") || error.to_string().contains("invalid type"),
                "{error}"
            );
        }
        for value in [json!({}), json!({"kind": 1}), json!([]), json!("build_end")] {
            assert!(serde_json::from_value::<BuildEvent>(value).is_err());
        }
    }

    #[test]
    fn a_status_that_is_not_there_follows_from_the_exit_code() {
        for (code, step, build) in [
            (0, "passed", "passed"),
            (1, "failed", "failed"),
            (3, "failed", "infrastructure"),
            (124, "timed_out", "timed_out"),
            (130, "canceled", "canceled"),
            (-1, "failed", "failed"),
        ] {
            let step_id = "00000000-0000-0000-0000-000000000001";
            let ended =
                json!({"kind": "step_end", "step_id": step_id, "exit_code": code, "duration_ms": 1, "snapshot": null});
            let event: BuildEvent = serde_json::from_value(ended).unwrap();
            assert_eq!(serde_json::to_value(&event).unwrap()["status"], step);
            let ended = json!({"kind": "build_end", "exit_code": code, "duration_ms": 1});
            let event: BuildEvent = serde_json::from_value(ended).unwrap();
            assert_eq!(serde_json::to_value(&event).unwrap()["status"], build);
        }
    }
}
