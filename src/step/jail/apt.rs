//! APT without users.
//!
//! APT downloads as a user of its own, `_apt`, and fails if the change of its ids has no effect. With a
//! single id no change has one. APT works as root if its configuration says so, which a step gets by a
//! variable and a file in `/dev`: both are in no layer.

use std::{ffi::CStr, os::fd::OwnedFd};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

use super::{JailPlace, JailSpec, SetupError, error::ResultExt, spec::UserNamespace};

const NAME: &CStr = c"apt.conf";
const CONTENT: &[u8] = b"APT::Sandbox::User \"root\";\n";
/// APT reads the file that it names before all other configuration, which can override it.
const VARIABLE: &CStr = c"APT_CONFIG=/dev/apt.conf";

/// Returns the variable that names the file, unless the step has ids to change to or its own value.
pub(super) fn variable(spec: &JailSpec) -> Option<&'static CStr> {
    (applies(spec) && !spec.env.iter().any(|variable| variable.to_bytes().starts_with(b"APT_CONFIG=")))
        .then_some(VARIABLE)
}

/// Writes the file in the step's `/dev`.
pub(super) fn write(dev: &OwnedFd, spec: &JailSpec) -> Result<(), SetupError> {
    if !applies(spec) {
        return Ok(());
    }
    let write = || -> Result<(), Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dev, NAME, flags, Mode::from_raw_mode(0o444))?;
        rustix::io::write(file, CONTENT).map(drop)
    };
    write().doing(|| "write APT's configuration in /dev".into())
}

fn applies(spec: &JailSpec) -> bool {
    spec.user_namespace == UserNamespace::Single && spec.place == JailPlace::Root && spec.root.memory().is_none()
}
