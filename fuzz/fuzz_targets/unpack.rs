//! Any archive: it becomes the tree that the model predicts, or is refused, and nothing is written elsewhere.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/it/support/unpack_oracle.rs"]
mod unpack_oracle;

fuzz_target!(|bytes: &[u8]| unpack_oracle::check(&unpack_oracle::members_of(bytes)));
