//! Determines which steps can be cached.

use std::time::Duration;

use serde_json::Value;

use crate::ir::{Cache, CommandStep};

/// The cache policy of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cacheable<'a> {
    /// The key that the pipeline's language computed.
    pub dsl_key: &'a str,
    /// The maximum age of an entry.
    pub max_age: Option<Duration>,
}

impl<'a> Cacheable<'a> {
    /// Returns the policy of `step`, or `None` if it is never cached: it has no policy, or one without a key.
    #[must_use]
    pub fn of(step: &'a CommandStep) -> Option<Self> {
        let Cache { policy, key, parameters } = step.cache.as_deref()?;
        let dsl_key = key.as_deref().filter(|key| **policy != *"none" && !key.is_empty())?;
        let mut max_age = lifetime(policy, |name| parameters.get(name));
        if **policy == *"compose"
            && let Some(parts) = parameters.get("sub_policies").and_then(Value::as_array)
        {
            max_age = parts.iter().filter_map(shortest).min();
        }
        Some(Self { dsl_key, max_age })
    }
}

/// Returns the shortest lifetime in a composed policy, at any depth.
fn shortest(policy: &Value) -> Option<Duration> {
    let (mut found, mut rest) = (None::<Duration>, vec![policy]);
    while let Some(policy) = rest.pop() {
        let own = policy.get("policy").and_then(Value::as_str).and_then(|name| lifetime(name, |it| policy.get(it)));
        found = found.into_iter().chain(own).min();
        rest.extend(policy.get("sub_policies").and_then(Value::as_array).into_iter().flatten());
    }
    found
}

/// Returns the lifetime of a result of `policy`. If the duration of a `ttl` cannot be read, the lifetime is
/// zero.
fn lifetime<'v>(policy: &str, parameter: impl Fn(&str) -> Option<&'v Value>) -> Option<Duration> {
    (policy == "ttl").then(|| {
        let seconds = parameter("duration_seconds").and_then(Value::as_f64).unwrap_or_default();
        Duration::try_from_secs_f64(seconds).unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cacheable(cache: &str) -> Option<(String, Option<u64>)> {
        let json = format!(r#"{{"key":"s","cmd":"true","cache":{cache}}}"#);
        let step: CommandStep = serde_json::from_str(&json).unwrap();
        Cacheable::of(&step).map(|it| (it.dsl_key.to_owned(), it.max_age.map(|age| age.as_secs())))
    }

    #[test]
    fn steps_with_a_policy_and_a_key_are_cached_for_as_long_as_the_policy_says() {
        let of = |cache| cacheable(cache).map(|(_, age)| age);
        assert_eq!(cacheable("null"), None);
        assert_eq!(of(r#"{"policy":"none","key":"k"}"#), None);
        assert_eq!(of(r#"{"policy":"forever"}"#), None);
        assert_eq!(of(r#"{"policy":"forever","key":""}"#), None);
        assert_eq!(cacheable(r#"{"policy":"forever","key":"k"}"#), Some(("k".into(), None)));
        assert_eq!(of(r#"{"policy":"on_change","key":"k","paths":["a"]}"#), Some(None));
        assert_eq!(of(r#"{"policy":"ttl","key":"k","duration_seconds":60}"#), Some(Some(60)));
        assert_eq!(of(r#"{"policy":"ttl","key":"k"}"#), Some(Some(0)));
        assert_eq!(of(r#"{"policy":"ttl","key":"k","duration_seconds":-1}"#), Some(Some(0)));
        let deep = r#"{"policy":"compose","key":"k","sub_policies":[{"policy":"ttl","duration_seconds":90},
            {"policy":"compose","sub_policies":[{"policy":"on_change"},{"policy":"ttl","duration_seconds":30}]}]}"#;
        assert_eq!(of(deep), Some(Some(30)));
        assert_eq!(of(r#"{"policy":"compose","key":"k","sub_policies":[{"policy":"forever"}]}"#), Some(None));
    }
}
