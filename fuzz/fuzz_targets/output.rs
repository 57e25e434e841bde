//! Any output in any pieces: every byte is kept, and readers get its lines. Bytes 0xfe and 0xff separate the
//! pieces, and select the stream of the next one.

#![no_main]

use hm_exec::event::StdStream::{Stderr, Stdout};
use libfuzzer_sys::fuzz_target;

#[path = "../../tests/it/support/journal_oracle.rs"]
#[allow(dead_code)]
mod journal_oracle;
#[path = "../../tests/it/support/run_meta.rs"]
mod run_meta;

fuzz_target!(|bytes: &[u8]| {
    let pieces = bytes.split_inclusive(|byte| *byte >= 0xfe);
    let pieces: Vec<_> =
        pieces.map(|piece| (if piece.last() == Some(&0xff) { Stderr } else { Stdout }, piece)).collect();
    journal_oracle::check_output(&pieces);
});
