//! Any graph and any course of a build: the policy agrees with the model. The first eight bytes determine the
//! graph.

#![no_main]
#![allow(dead_code)]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/it/support/graphs.rs"]
mod graphs;
#[path = "../../tests/it/support/model/policy.rs"]
mod model;
#[path = "../../tests/it/support/policy_oracle.rs"]
mod policy_oracle;

fuzz_target!(|bytes: &[u8]| {
    let Some((seed, operations)) = bytes.split_first_chunk() else { return };
    policy_oracle::check(&hm_exec_fuzz::value_of(&policy_oracle::scenarios(), *seed).with_operations(operations));
});
