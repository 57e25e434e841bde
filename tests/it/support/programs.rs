//! The programs of this build that tests run.

use std::path::PathBuf;

/// Returns the path of the `hm` of this build, or of a copy of it if the suite runs as another user.
pub(crate) fn hm() -> PathBuf {
    std::env::var_os("HM_TEST_HM").map_or_else(|| env!("CARGO_BIN_EXE_hm").into(), PathBuf::from)
}
