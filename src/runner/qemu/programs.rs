//! The programs that a machine consists of, as found on this host.

use std::path::PathBuf;

use super::{error::Missing, kernel::Kernel};
use crate::{
    programs::find as on_path,
    step::{self, StepProgram},
};

/// The directories that distributions use for `virtiofsd`, which users do not call themselves.
const VIRTIOFSD_PLACES: [&str; 3] = ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/lib/virtiofsd"];

/// The paths that the caller has set.
#[derive(Debug, Clone, Default)]
pub(super) struct Places {
    pub(super) qemu: Option<PathBuf>,
    pub(super) virtiofsd: Option<PathBuf>,
    pub(super) kernel: Option<PathBuf>,
    pub(super) modules: Option<PathBuf>,
    pub(super) guest: Option<PathBuf>,
}

/// All programs and files that a machine consists of.
#[derive(Debug)]
pub(super) struct Programs {
    pub(super) qemu: PathBuf,
    pub(super) virtiofsd: PathBuf,
    pub(super) kernel: Kernel,
    /// A static `hm-step`.
    pub(super) guest: StepProgram,
}

impl Programs {
    /// Finds the programs.
    pub(super) fn find(places: &Places) -> Result<Self, Missing> {
        if !cfg!(target_arch = "x86_64") {
            return Err(Missing::Architecture);
        }
        let qemu = places.qemu.clone().or_else(|| on_path("qemu-system-x86_64"));
        let qemu = qemu.filter(|path| path.is_file()).ok_or(Missing::Program {
            program: "qemu-system-x86_64",
            hint: "install QEMU (Debian's `qemu-system-x86`)",
        })?;
        let usual = || VIRTIOFSD_PLACES.iter().map(PathBuf::from).find(|path| path.is_file());
        let virtiofsd = places.virtiofsd.clone().or_else(|| on_path("virtiofsd")).or_else(usual);
        let virtiofsd = virtiofsd.filter(|path| path.is_file()).ok_or(Missing::Program {
            program: "virtiofsd",
            hint: "install it (Debian's `virtiofsd`, or in release 12 `qemu-system-common`)",
        })?;
        let kernel = Kernel::find(places.kernel.as_deref(), places.modules.as_deref())?;
        let guest = step::locate(places.guest.as_deref())?;
        if !guest.is_static() {
            return Err(Missing::NotStatic { guest });
        }
        Ok(Self { qemu, virtiofsd, kernel, guest })
    }
}
