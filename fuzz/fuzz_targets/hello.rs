//! Any first bytes of a connection, in any pieces: the reader of the server's name comes to one result.

#![no_main]
#![allow(dead_code, unused_imports, reason = "parts of a module that does more")]

use libfuzzer_sys::fuzz_target;

#[path = "../../src/network"]
mod network {
    pub(crate) mod hello;
    pub(crate) mod hello_oracle;
}

fuzz_target!(|script: &[u8]| network::hello_oracle::check(script));
