//! What the engine tells the zygote: the wire types.
//!
//! Encoded with postcard behind a version number. Paths and arguments are C strings: bytes as the kernel takes them.

use std::ffi::CString;

use serde::{Deserialize, Serialize};

use super::SetupError;
use crate::tree::{UnpackError, UnpackLimits, Unpacked};

/// The version of every type in this file. Raised with any change to one of them.
pub(crate) const SPEC_VERSION: u32 = 9;

/// What a helper begins its greeting with. What follows is [`greeting`]'s.
pub(crate) const GREETING: &str = "hm-sandbox ";

/// Returns the first message of a helper, as text so that every version can read it: the versions of this
/// protocol and of the crate.
pub(crate) fn greeting() -> String {
    format!("{GREETING}{SPEC_VERSION} {}", env!("CARGO_PKG_VERSION"))
}

/// How ids inside the step relate to ids outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum UserNamespace {
    /// There is none: root is root.
    None,
    /// 0 is the user, 1 and up are the user's subordinate ids.
    Range,
    /// 0 is the user, and there are no other ids.
    Single,
}

/// How overlays are mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountApi {
    /// `fsopen` with a `lowerdir+` per layer: Linux 6.7 and up.
    New,
    /// `mount(2)`: its options fit one page, so the layers are named by short links.
    Legacy,
}

impl Root {
    /// Returns whether it is a [`MemoryRoot`], and which.
    #[must_use]
    pub(crate) fn memory(&self) -> Option<&MemoryRoot> {
        match self {
            Self::Memory(root) => Some(root),
            Self::Overlay(_) | Self::Dir(_) => None,
        }
    }
}

impl MountApi {
    /// The best one that the running kernel has, by its version.
    #[must_use]
    pub fn of_this_kernel() -> Self {
        let uname = rustix::system::uname();
        if version(&uname.release().to_string_lossy()) >= (6, 7) { Self::New } else { Self::Legacy }
    }
}

/// The first two numbers of a kernel's release.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|digits| digits.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// The number of the first descriptor that a command gets beside its three streams.
pub const FIRST_FD: u32 = 32;

/// A request to the zygote: one message, its spec in a memory file, and where the answers go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Runs a step. Descriptors: status socket, [`JailSpec`], standard output, standard error, then, where there are some,
    /// standard input, and those that the command finds from [`FIRST_FD`] on.
    Step {
        /// In a network namespace of its own, where there is only a loopback device.
        isolate_network: bool,
    },
    /// Runs a [`TreeOp`] in the zygote's user namespace. Descriptors: status socket, the operation, and
    /// the file that it reads or writes, where there is one.
    Tree,
}

/// Operations on file trees whose owners, or mounts, exist only in the zygote's namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TreeOp {
    /// Removes a tree.
    Remove(CString),
    /// Renames a file or a directory.
    Rename {
        /// What it is called.
        from: CString,
        /// What it is called afterwards.
        to: CString,
    },
    /// Mounts overlays where steps that start later find them, until somebody removes the directories that they are mounted
    /// on.
    Mount {
        /// What is mounted first, for the overlays to show.
        screens: Vec<Screen>,
        /// The overlays.
        overlays: Vec<MountedOverlay>,
        /// How ids are mapped.
        user_namespace: UserNamespace,
        /// How overlays are mounted.
        mount_api: MountApi,
    },
    /// Merges layers, topmost first, into a directory.
    Flatten {
        /// The layers.
        layers: Vec<CString>,
        /// The directory.
        into: CString,
    },
    /// Writes a layer, as images have it, to the third descriptor.
    LayerTar {
        /// Its directory.
        root: CString,
    },
    /// Unpacks an image's layer, which is a part of the third descriptor's file, into a directory.
    Unpack {
        /// Where the part begins, in bytes.
        offset: u64,
        /// How long it is, in bytes.
        length: u64,
        /// The directory.
        into: CString,
        /// What the layer may hold.
        limits: UnpackLimits,
    },
}

/// What comes back on a status socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// The step's pid 1 lives. Descriptor: its pidfd.
    Started,
    /// The step could not be made, or a tree operation failed.
    Failed(SetupError),
    /// The command ended.
    Exited {
        /// Its exit code, or 128+n after signal n.
        code: i32,
        /// Processor time of the command and the children it waited for, in microseconds.
        cpu_micros: u64,
        /// The largest resident set among them, in bytes.
        max_rss_bytes: u64,
    },
    /// The step went over its memory limit, as seen by polling, and was ended.
    OutOfMemory,
    /// The step went over its limit on processes, as seen by polling, and was ended.
    TooManyProcesses,
    /// A tree operation is done, or the zygote is ready.
    Done,
    /// A layer was unpacked, or could not be.
    Unpacked(Result<Unpacked, UnpackError>),
    /// The zygote is in its user namespace and waits for the ids to be mapped.
    NeedsIdMap,
}

/// An overlay file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// Lower directories, topmost first.
    pub lowers: Vec<CString>,
    /// Where writes go.
    pub upper: CString,
    /// An empty directory on the same file system as `upper`.
    pub work: CString,
}

/// An overlay that is there before the steps that it is shown to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountedOverlay {
    /// The overlay.
    pub overlay: Overlay,
    /// The directory that it is mounted on.
    pub on: CString,
    /// The upper directory gets the owner of the topmost lower one, whom only the steps' user namespace may know.
    pub takes_owner: bool,
}

/// A read-only view of a directory through which root sees and reads what others may, and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Screen {
    /// The directory.
    pub dir: CString,
    /// An empty directory that others may read: an overlay needs at least two lower directories.
    pub empty: CString,
    /// The directory that it is mounted on.
    pub on: CString,
}

/// What the root of a step's files is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Root {
    /// An overlay, made for the step.
    Overlay(Overlay),
    /// A directory as it is, with all that is mounted in it.
    Dir(CString),
    /// A small file system in memory, for a command that only reads what is bound into it.
    Memory(MemoryRoot),
}

/// A root in memory. Its command gets no capabilities, no sysfs and no unix sockets: the files that it is
/// shown are the machine's own, with their real owners.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRoot {
    /// The most that may be written to it, in bytes.
    pub max_bytes: u64,
    /// The most files and directories that it may hold.
    pub max_files: u64,
    /// What it holds at the start, parents before children.
    pub entries: Vec<MemoryEntry>,
    /// Files of the views that are shown empty.
    pub hidden: Vec<CString>,
    /// The user and the group that the command runs as, if they are not the jail's root.
    pub run_as: Option<(u32, u32)>,
}

/// A file of a root in memory. Paths are relative to the root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemoryEntry {
    /// A directory.
    Dir {
        /// Where.
        path: CString,
        /// Its mode.
        mode: u32,
    },
    /// A symbolic link.
    Link {
        /// Where.
        path: CString,
        /// What it says.
        target: CString,
    },
    /// A regular file, readable for everybody.
    File {
        /// Where.
        path: CString,
        /// What it holds.
        content: Vec<u8>,
    },
}

/// Who sees a step's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// The command, as its root. Nothing else is there.
    Root,
    /// Whoever the command shows them to: it runs on the host's own files, and finds the step's at the mount point.
    Beside,
}

/// A view of a file or a directory of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// On the host.
    pub source: CString,
    /// In the step.
    pub target: CString,
    /// Whether the step may write to it.
    pub writable: bool,
}

/// A file at `/run/secrets`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretFile {
    /// Its name.
    pub name: CString,
    /// Its content.
    pub value: Vec<u8>,
}

impl std::fmt::Debug for SecretFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretFile").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Limits that pid 1 of the step holds by looking at the processes now and then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Watch {
    /// The sum of the resident sets, in bytes.
    pub memory_bytes: Option<u64>,
    /// Number of processes.
    pub pids: Option<u64>,
}

/// A control group of the step, as the step sees it: read-only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupView {
    /// Its directory on the host.
    pub dir: CString,
    /// The name of its hierarchy below `/sys/fs/cgroup`. Empty for that directory itself, as with version 2.
    pub name: CString,
}

/// What a command's environment has unless the image or the step sets it: where programs are looked for,
/// root's home, and the mark that programs look for to learn that they run in a container. The same for every
/// step, so that no cache key has it.
pub const DEFAULT_ENV: [(&str, &str); 3] =
    [("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), ("HOME", "/root"), ("container", "hm")];

/// Everything about one step's jail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JailSpec {
    /// How ids are mapped. Overlays keep their marks in `user.overlay.*` in a user namespace, else `trusted.overlay.*`.
    pub user_namespace: UserNamespace,
    /// How overlays are mounted.
    pub mount_api: MountApi,
    /// Any directory of the host: the new root is mounted over it, in the step's mount namespace alone.
    pub mountpoint: CString,
    /// The root.
    pub root: Root,
    /// Who sees it.
    pub place: Place,
    /// Views of the host below it, parents before children.
    pub binds: Vec<Bind>,
    /// Files at `/run/secrets`.
    pub secrets: Vec<SecretFile>,
    /// Whether processes that are not the step's use its network. It then gets no raw sockets, and no
    /// abstract unix sockets of others.
    pub shares_network: bool,
    /// `cgroup.procs` files that the command enters before it runs.
    pub cgroups: Vec<CString>,
    /// The control groups that it enters, as it sees them.
    pub group_views: Vec<GroupView>,
    /// Limits held by polling, where there are no cgroups.
    pub watch: Option<Watch>,
    /// How large its file systems in memory may be together with everything else, in bytes.
    pub memory_bytes: Option<u64>,
    /// Where the command starts, on the files that it runs on.
    pub workdir: CString,
    /// The program, on the same files, and its arguments. None: the jail is made and let go, as a trial.
    pub argv: Vec<CString>,
    /// Instead of a program: the path, in the step, of what is written to standard output as a tar stream.
    pub pack: Option<CString>,
    /// Standard input is a terminal, and becomes the command's controlling one.
    pub terminal: bool,
    /// The environment, as `NAME=value`.
    pub env: Vec<CString>,
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn releases_have_versions() {
        assert_eq!(version("6.18.44-fc-v657"), (6, 18));
        assert_eq!(version("6.7-rc1"), (6, 7));
        assert_eq!(version("strange"), (0, 0));
    }
}
