//! What runs a machine's instructions.

use std::{
    fmt,
    fs::{self, OpenOptions},
    path::Path,
};

use crate::store::Store;

const DEVICE: &str = "/dev/kvm";

/// The file, beside templates, that names the boot of this machine in which KVM was no use.
const NOTE: &str = "no-kvm";

/// What runs a machine's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Accelerator {
    /// The processor, through the kernel's virtual machines.
    Kvm,
    /// QEMU itself, which translates them: anywhere, and some ten times slower.
    Tcg,
}

impl Accelerator {
    /// What to try first: KVM where this user may open it, and it was not found to hang since this machine was started.
    pub(super) fn first_choice(place: &Path, store: &Store) -> Self {
        let usable = OpenOptions::new().read(true).write(true).open(DEVICE).is_ok();
        let hangs = fs::read_to_string(place.join(NOTE)).is_ok_and(|boot| boot == store.boot_name());
        if usable && !hangs { Self::Kvm } else { Self::Tcg }
    }

    /// Remembers that KVM is no use here: where it opens but hangs, finding out takes time.
    pub(super) fn avoid_kvm(place: &Path, store: &Store) {
        if let Err(error) = fs::write(place.join(NOTE), store.boot_name()) {
            tracing::debug!(%error, "KVM will be tried again");
        }
    }

    /// As QEMU calls it, and the processor that its machines have.
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
            Self::Tcg => "TCG: without KVM, machines run some ten times slower",
        })
    }
}
