//! Any bytes as a runner's input: this crate agrees with the published one.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/it/support/input_oracle.rs"]
mod input_oracle;

fuzz_target!(|json: &[u8]| input_oracle::check(json));
