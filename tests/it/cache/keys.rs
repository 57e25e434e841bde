//! Cache keys: the committed keys stay the same, and every part of a key matters.

use std::{collections::BTreeMap, fs, path::Path};

use hm_exec::{
    cache::{BasePart, KeyParts},
    source::SourceTimes,
};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

/// The owned parts of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Parts {
    dsl_key: String,
    /// Whether the step boots from a snapshot rather than from an image.
    is_snapshot: bool,
    base: String,
    command: String,
    env: BTreeMap<String, String>,
    runner: String,
    runner_version: u32,
    os: String,
    arch: String,
    mode: String,
    runner_args: String,
    project: String,
    source_times: SourceTimes,
    inputs: Option<[u8; 32]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    step_inputs: Option<[u8; 32]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source_ignore: Option<[u8; 32]>,
}

impl Parts {
    fn key(&self) -> String {
        let Self { dsl_key, is_snapshot, base, command, env, runner, runner_version, os, arch, mode, .. } = self;
        let Self { runner_args, project, source_times, inputs, .. } = self;
        let base = if *is_snapshot { BasePart::Snapshot(base) } else { BasePart::Image(base) };
        let (runner_version, source_times, inputs) = (*runner_version, *source_times, inputs.as_ref());
        let parts = KeyParts {
            dsl_key,
            base,
            command,
            env,
            runner,
            runner_version,
            os,
            arch,
            mode,
            runner_args,
            project,
            source_times,
            inputs,
            step_inputs: self.step_inputs.as_ref(),
            source_ignore: self.source_ignore.as_ref(),
        };
        parts.key().to_string()
    }

    /// Returns all text parts, in the order of the key.
    fn texts(&mut self) -> Vec<&mut String> {
        let Self { dsl_key, base, command, env, runner, os, arch, mode, runner_args, project, .. } = self;
        let mut texts = vec![dsl_key, base, command];
        texts.extend(env.values_mut());
        texts.extend([runner, os, arch, mode, runner_args, project]);
        texts
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Vector {
    parts: Parts,
    key: String,
}

/// Set `HM_UPDATE_FIXTURES` to regenerate the keys, and only together with a new version in the key.
#[test]
fn keys_match_the_committed_ones() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cache/keys-v3.json");
    let mut vectors: Vec<Vector> = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    assert!(vectors.len() >= 5);
    if std::env::var_os("HM_UPDATE_FIXTURES").is_some() {
        vectors.iter_mut().for_each(|vector| vector.key = vector.parts.key());
        fs::write(&path, serde_json::to_string_pretty(&vectors).unwrap() + "\n").unwrap();
    }
    for Vector { parts, key } in &vectors {
        assert_eq!(parts.key(), *key, "{parts:?}");
    }
}

fn parts() -> impl Strategy<Value = Parts> {
    let text = || "[a-z\\x00é=]{0,6}";
    let env = proptest::collection::btree_map("[A-Z=]{0,3}", text(), 0..4);
    let inputs = prop::option::of(prop::array::uniform32(0..2_u8));
    let times = any::<bool>().prop_map(|real| if real { SourceTimes::Real } else { SourceTimes::Normal });
    let more = (text(), text(), times, inputs.clone(), inputs.clone(), inputs);
    (text(), any::<bool>(), text(), text(), env, text(), 0..3_u32, text(), text(), text(), more).prop_map(
        |(dsl_key, is_snapshot, base, command, env, runner, runner_version, os, arch, mode, more)| Parts {
            dsl_key,
            is_snapshot,
            base,
            command,
            env,
            runner,
            runner_version,
            os,
            arch,
            mode,
            runner_args: more.0,
            project: more.1,
            source_times: more.2,
            inputs: more.3,
            step_inputs: more.4,
            source_ignore: more.5,
        },
    )
}

proptest! {
    #[test]
    fn different_parts_have_different_keys(a in parts(), b in parts()) {
        prop_assert_eq!(a == b, a.key() == b.key());
    }

    #[test]
    fn moving_a_letter_to_the_next_part_changes_the_key(parts in parts(), which in any::<prop::sample::Index>()) {
        let mut moved = parts.clone();
        {
            let mut texts = moved.texts();
            let at = which.index(texts.len() - 1);
            if let Some(letter) = texts[at].pop() {
                texts[at + 1].insert(0, letter);
            }
        }
        prop_assert_eq!(parts == moved, parts.key() == moved.key());
    }

    #[test]
    fn every_single_change_changes_the_key(parts in parts(), which in any::<prop::sample::Index>()) {
        let key = parts.key();
        let mut changes = vec![parts.clone(); 8];
        changes[0].is_snapshot ^= true;
        changes[1].runner_version += 1;
        changes[2].env.insert("ADDED".into(), String::new());
        changes[4].inputs = match parts.inputs {
            Some(_) => None,
            None => Some([0; 32]),
        };
        changes[6].step_inputs = match parts.step_inputs {
            Some(_) => None,
            None => Some([0; 32]),
        };
        changes[7].source_ignore = match parts.source_ignore {
            Some(_) => None,
            None => Some([0; 32]),
        };
        changes[5].source_times = match parts.source_times {
            SourceTimes::Normal => SourceTimes::Real,
            SourceTimes::Real => SourceTimes::Normal,
        };
        let mut texts = changes[3].texts();
        let at = which.index(texts.len());
        texts[at].push('x');
        for changed in changes {
            prop_assert_ne!(changed.key(), key.clone(), "{:?}", changed);
        }
    }

    #[test]
    fn moving_a_value_to_another_name_changes_the_key(parts in parts(), value in "[a-z]{0,4}") {
        let with = |name: &str| {
            let mut with = parts.clone();
            with.env.insert(name.into(), value.clone());
            with.key()
        };
        prop_assert_ne!(with("NEW_A"), with("NEW_B"));
    }
}
