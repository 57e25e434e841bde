//! Any journal, truncated anywhere: yields whole events, or a typed error. The first two bytes determine
//! where it is truncated, and whether the rest is a journal or records separated by zero bytes.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/it/support/journal_oracle.rs"]
#[allow(dead_code)]
mod journal_oracle;
#[path = "../../tests/it/support/run_meta.rs"]
mod run_meta;

const FIXTURE: &[u8] = include_bytes!("../../tests/fixtures/journal/v1/journal");

fuzz_target!(|bytes: &[u8]| {
    let [cut, is_raw, rest @ ..] = bytes else { return };
    let records = || journal_oracle::with_records(FIXTURE, rest.split(|byte| *byte == 0xff));
    let journal = if is_raw % 2 == 1 { rest.to_vec() } else { records() };
    journal_oracle::check_journal(&journal, journal.len() * usize::from(*cut) / 256);
});
