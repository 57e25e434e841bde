//! Any packets of a step, in any order, with any events between them: the table of its connections does what
//! the model says.

#![no_main]
#![allow(dead_code, unused_imports, reason = "parts of a module that does more")]

use libfuzzer_sys::fuzz_target;

/// The part of the crate that the sources below name.
mod jail {
    pub(crate) use hm_exec::jail::network;
}

#[path = "../../src/network"]
mod network {
    pub(crate) mod addresses;
    pub(crate) mod nat;
    pub(crate) mod nat_oracle;
    pub(crate) mod packet;
}

fuzz_target!(|script: &[u8]| network::nat_oracle::check(script));
