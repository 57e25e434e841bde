//! Any bytes as a trace: they are refused, or what they decode to survives a round trip.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| hm_exec::jail::trace::check_decoder(bytes));
