//! Any bytes as test results: they are read, or refused with a place, and the size of reads does not matter.

#![no_main]

use hm_exec::outputs::read_junit;
use libfuzzer_sys::fuzz_target;

#[path = "../../src/outputs/junit_oracle.rs"]
mod junit_oracle;

fuzz_target!(|document: &[u8]| junit_oracle::check(document));
