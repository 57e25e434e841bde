//! The static `hm-step` that `build.rs` built into this crate, or the reason why there is none.

#[cfg(feature = "embed")]
include!(concat!(env!("OUT_DIR"), "/built_in.rs"));

#[cfg(not(feature = "embed"))]
pub(crate) static BUILT_IN: Result<&[u8], &str> = Err("this program was built without the feature `cli` of hm-exec");
