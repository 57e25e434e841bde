//! The accelerator that executes a machine's instructions.

use std::{
    fmt,
    fs::{self, OpenOptions},
    path::Path,
};

use crate::store::Store;

const DEVICE: &str = "/dev/kvm";

/// The file, in the directory of templates, that records the boot of this machine in which KVM did not work.
const NOTE: &str = "no-kvm";

/// The accelerator that executes a machine's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Accelerator {
    /// The processor itself, through KVM.
    Kvm,
    /// QEMU, which translates instructions: works anywhere, but is some ten times slower.
    Tcg,
}

impl Accelerator {
    /// Returns the accelerator to try first: KVM if this user may open it, and it did not hang since this
    /// machine was booted.
    pub(super) fn first_choice(place: &Path, store: &Store) -> Self {
        let usable = OpenOptions::new().read(true).write(true).open(DEVICE).is_ok();
        let hangs = fs::read_to_string(place.join(NOTE)).is_ok_and(|boot| boot == store.instance().boot());
        if usable && !hangs { Self::Kvm } else { Self::Tcg }
    }

    /// Records that KVM does not work here: detecting that it opens but hangs takes time.
    pub(super) fn avoid_kvm(place: &Path, store: &Store) {
        if let Err(error) = fs::write(place.join(NOTE), store.instance().boot()) {
            tracing::debug!(%error, "KVM will be tried again");
        }
    }

    /// Returns QEMU's name for the accelerator, and the processor model of its machines.
    pub(super) fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Kvm => ("kvm", "host"),
            Self::Tcg => ("tcg", "max"),
        }
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "KVM",
            Self::Tcg => "TCG: without KVM, machines run about ten times slower",
        })
    }
}
