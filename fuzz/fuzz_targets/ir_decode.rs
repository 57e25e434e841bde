//! Any bytes as IR: no panic, and this crate agrees with the published reader.
//!
//! `cargo +nightly fuzz run ir_decode -- -max_len=4096 -dict=fuzz/ir_decode.dict`

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/it/support/ir_oracle.rs"]
mod ir_oracle;

fuzz_target!(|json: &[u8]| ir_oracle::check(json));
