//! Any graph and any course of a build: the policy agrees with the model. The first eight bytes determine the
//! graph.

#![no_main]
#![allow(dead_code)]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/it/model/policy.rs"]
mod model;
#[path = "../../tests/it/pipelines.rs"]
mod pipelines;
#[path = "../../tests/it/schedule.rs"]
mod schedule;

fuzz_target!(|bytes: &[u8]| {
    let Some((seed, operations)) = bytes.split_first_chunk() else { return };
    schedule::check(&hm_exec_fuzz::value_of(&schedule::scenarios(), *seed).with_operations(operations));
});
