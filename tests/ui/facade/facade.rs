//! A crate that hands `hm_exec` on.

pub use hm_exec;
