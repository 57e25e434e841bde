//! Malformed and hostile inputs.

use std::fs;

use hm_exec::step::{Exit, Lower};
use serde_json::{Value, json};

use crate::support::step::{Action, everybody};

#[test]
fn malformed_input_is_reported() {
    for who in everybody().into_iter().take(1) {
        let action = Action::new(who, "true");
        for (text, word) in [("", "format of version 1"), ("[1, 2", "format"), (r#"{"version":7}"#, "version 7")] {
            let ended = action.run_with(text.as_bytes());
            let (message, retry) = ended.failure();
            assert!(message.contains(word) && !retry, "{text}: {message}");
        }
    }
}

#[test]
fn a_hostile_input_is_refused() {
    for who in everybody().into_iter().take(1) {
        let action = Action::new(who, "true");
        let good = serde_json::to_value(&action.input).unwrap();
        let layer = |path: &str| json!([{ "kind": "layer", "path": path, "diff_id": "sha256:00" }]);
        let many: Vec<Value> = (0..600).map(|_| json!({ "kind": "workspace", "path": "source" })).collect();
        for (key, value, word) in [
            ("stack", layer("../outside"), "is not below the input's directory"),
            ("stack", layer("/etc/passwd"), "is not below the input's directory"),
            ("stack", layer("layers/./../../etc"), "is not below the input's directory"),
            ("stack", layer(""), "is not below the input's directory"),
            ("stack", layer("layers/missing"), "failed to find \"layers/missing\""),
            ("stack", layer("layers"), "layers"),
            ("stack", json!(many), "600 layers"),
            ("stack", json!([]), "enter /workspace"),
            ("command", json!("echo \u{0}"), "NUL byte"),
            ("workdir", json!("relative"), "not an absolute path"),
            ("workdir", json!("/nowhere"), "enter /nowhere"),
            ("env", json!({ "A=B": "" }), "invalid variable name"),
            ("env", json!({ "": "" }), "invalid variable name"),
            ("env", json!({ "A": "\u{0}" }), "NUL byte"),
        ] {
            let mut input = good.clone();
            input[key] = value;
            let ended = action.run_with(&serde_json::to_vec(&input).unwrap());
            let (message, _) = ended.failure();
            assert!(message.contains(word), "{key}: {message}");
            assert_eq!(action.names(), ["hm-step", "input.json", "layers", "result.json", "source"]);
        }
    }
}

#[test]
fn time_limits_beyond_the_clock_are_never_reached() {
    for who in everybody().into_iter().take(1) {
        let mut action = Action::new(who, "echo ran");
        action.input.timeout_ms = Some(u64::MAX);
        action.input.grace_ms = u64::MAX;
        assert_eq!(action.run().stdout(), "ran\n");
    }
}

#[test]
fn a_damaged_layer_is_a_retryable_error() {
    for who in everybody() {
        let action = Action::new(who, "true");
        let path = action.dir().join("layers/0");
        let whole = fs::read(&path).unwrap();
        for damaged in [&whole[..whole.len() / 2], b"no archive at all", &[&whole[..], b"more"].concat()] {
            fs::write(&path, damaged).unwrap();
            let ended = action.run();
            let (message, retry) = ended.failure();
            assert!(message.contains("layers/0") && retry, "{message}");
        }
    }
}

#[test]
fn a_layer_with_another_digest_is_detected() {
    for who in everybody().into_iter().take(1) {
        let mut action = Action::new(who, "true");
        if let Some(Lower::Layer { diff_id, .. }) = action.input.stack.first_mut() {
            *diff_id = format!("sha256:{}", "0".repeat(64));
        }
        let ended = action.run();
        let (message, retry) = ended.failure();
        assert!(message.contains("but the step expects sha256:000") && retry, "{message}");
    }
}

#[test]
fn the_result_of_an_earlier_attempt_is_removed() {
    for who in everybody().into_iter().take(1) {
        let action = Action::new(who, "exit 3");
        fs::write(action.dir().join("result.json"), "stale").unwrap();
        assert_eq!(action.run().exit(), &Exit::exited(3));
    }
}
