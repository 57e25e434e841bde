//! The wire types between the engine and the zygote.
//!
//! They are encoded with postcard behind a version number. Paths and arguments are C strings: bytes as the
//! kernel takes them.

use std::ffi::CString;

use serde::{Deserialize, Serialize};

use super::SetupError;
use crate::tree::{IdMap, PackLimits, Retimed, Retiming, UnpackError, UnpackLimits, Unpacked};

/// The version of every type in this file. Increase it with any change to one of them.
pub(crate) const SPEC_VERSION: u32 = 15;

/// The start of a helper's greeting. [`greeting`] appends the rest.
pub const GREETING: &str = "hm-sandbox ";

/// Returns the first message of a helper: the versions of this protocol and of the crate. It is text, so that
/// every version can read it.
pub fn greeting() -> String {
    format!("{GREETING}{SPEC_VERSION} {}", env!("CARGO_PKG_VERSION"))
}

/// The mapping of ids inside the step to ids outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum UserNamespace {
    /// No user namespace: root is root.
    None,
    /// 0 is the user; 1 and up are the user's subordinate ids.
    Range,
    /// 0 is the user, and there are no other ids.
    Single,
}

impl UserNamespace {
    /// Returns the name, as a helper gets it in its arguments: `none`, `range` or `single`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Range => "range",
            Self::Single => "single",
        }
    }

    /// Returns how to interpret the owners of a layer that a step in this user namespace wrote.
    #[must_use]
    pub fn id_map(self) -> IdMap {
        match self {
            Self::None => IdMap::Root,
            Self::Range => IdMap::Range,
            Self::Single => IdMap::Single,
        }
    }

    /// Returns the user namespace with this name.
    pub(super) fn named(name: &str) -> Option<Self> {
        [Self::None, Self::Range, Self::Single].into_iter().find(|it| it.as_str() == name)
    }
}

/// The system calls that mount overlays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountApi {
    /// `fsopen` with a `lowerdir+` per layer: Linux 6.7 and up.
    New,
    /// `mount(2)`: its options fit one page, so the layers are named by short links.
    Legacy,
}

impl Root {
    /// Returns the [`MemoryRoot`], if the root is one.
    #[must_use]
    pub(crate) fn memory(&self) -> Option<&MemoryRoot> {
        match self {
            Self::Memory(root) => Some(root),
            Self::Overlay(_) | Self::Dir(_) => None,
        }
    }
}

impl MountApi {
    /// Returns the best one that the running kernel has, by its version.
    #[must_use]
    pub fn of_this_kernel() -> Self {
        let uname = rustix::system::uname();
        if version(&uname.release().to_string_lossy()) >= (6, 7) { Self::New } else { Self::Legacy }
    }
}

/// Returns the first two numbers of a kernel's release.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|digits| digits.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// The number of the first descriptor that a command gets in addition to its three streams.
pub const FIRST_FD: u32 = 32;

/// A request to the zygote: one message, with its spec in a memory file and a socket for the answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Runs a step. Descriptors: status socket, [`JailSpec`], the network namespace if one is given, the file
    /// for the trace if the step is traced, standard output, standard error, then the optional ones: standard
    /// input, and those that the command gets from [`FIRST_FD`] on.
    Step {
        /// The network.
        network: StepNetwork,
        /// Whether [`JailSpec::trace`] is set.
        traced: bool,
    },
    /// Makes a network namespace: see [`network`](super::network). Descriptor: status socket.
    Network,
    /// Runs a step without isolation, in a zygote without namespaces. Descriptors: status socket,
    /// [`ProcessSpec`], standard output, standard error.
    Process,
    /// Runs a [`TreeOp`] in the zygote's user namespace. Descriptors: status socket, the operation, and the
    /// file that it reads or writes, if there is one.
    Tree,
}

/// The network namespace of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StepNetwork {
    /// The zygote's, which is the machine's.
    Shared,
    /// A new one that has only a loopback device.
    Loopback,
    /// One that [`Request::Network`] made.
    Given,
}

/// Operations on file trees whose owners, or mounts, exist only in the zygote's namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TreeOp {
    /// Removes a tree.
    Remove(CString),
    /// Renames a file or a directory.
    Rename {
        /// The old name.
        from: CString,
        /// The new name.
        to: CString,
    },
    /// Mounts overlays for steps that start later. They stay until their mount points are removed.
    Mount {
        /// The screens, which are mounted first because the overlays show them.
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
    /// Writes a layer, in the format of images, to the third descriptor.
    LayerTar {
        /// Its directory.
        root: CString,
    },
    /// Copies a layer, with other times, into a directory.
    Retime {
        /// The layer.
        layer: CString,
        /// The directory.
        into: CString,
        /// What its times depend on.
        request: Retiming,
    },
    /// Unpacks an image's layer, which is a part of the third descriptor's file, into a directory.
    Unpack {
        /// The offset of the part, in bytes.
        offset: u64,
        /// The length of the part, in bytes.
        length: u64,
        /// The directory.
        into: CString,
        /// The limits on the layer's content.
        limits: UnpackLimits,
    },
}

/// A message on a status socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// The step's pid 1 is running. Descriptor: its pidfd.
    Started,
    /// The step could not be started, or a tree operation failed.
    Failed(SetupError),
    /// The command ended.
    Exited {
        /// Its exit code, or 128+n after signal n.
        code: i32,
        /// The processor time of the command and of every process that was waited for, in microseconds.
        cpu_micros: u64,
        /// The largest resident set among them, in bytes.
        max_rss_bytes: u64,
    },
    /// The step exceeded its memory limit, as seen by polling, and was ended.
    OutOfMemory,
    /// The step exceeded its limit on processes, as seen by polling, and was ended.
    TooManyProcesses,
    /// A program of the step needs seccomp in a way that a traced step cannot have. The step was ended, and
    /// must run untraced.
    Untraceable,
    /// Processes of a step without isolation are still running after being killed: they are stuck in a system
    /// call, or belong to another user.
    StillRunning,
    /// A tree operation is done, or the zygote is ready.
    Done,
    /// A layer was unpacked, or could not be.
    Unpacked(Result<Unpacked, UnpackError>),
    /// A layer was copied, or need not or cannot be.
    Retimed(Retimed),
    /// A network namespace is ready. Descriptors: the namespace, its TUN device, and the listeners for IPv4
    /// and, if the kernel has it, IPv6.
    Network {
        /// Whether the namespace can be used again after a step.
        reusable: bool,
    },
    /// The zygote is in its user namespace and waits for the ids to be mapped.
    NeedsIdMap,
}

/// An overlay file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// Lower directories, topmost first.
    pub lowers: Vec<CString>,
    /// The directory that receives writes.
    pub upper: CString,
    /// An empty directory on the same file system as `upper`.
    pub work: CString,
}

/// An overlay in a step's files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InnerOverlay {
    /// The overlay.
    pub overlay: Overlay,
    /// The path in the step.
    pub target: CString,
}

/// An overlay that is mounted before the steps that it is shown to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountedOverlay {
    /// The overlay.
    pub overlay: Overlay,
    /// The directory that it is mounted on.
    pub on: CString,
    /// Whether the upper directory gets the owner of the topmost lower one. That owner may exist only in the
    /// steps' user namespace.
    pub takes_owner: bool,
}

/// A read-only view of a directory. Through it, root sees and reads only what other users may.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Screen {
    /// The directory.
    pub dir: CString,
    /// An empty directory that others may read: an overlay needs at least two lower directories.
    pub empty: CString,
    /// The directory that it is mounted on.
    pub on: CString,
}

/// The root of a step's files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Root {
    /// An overlay, made for the step.
    Overlay(Overlay),
    /// An existing directory, with all mounts in it.
    Dir(CString),
    /// A small tmpfs, for a command that only reads what is bound into it.
    Memory(MemoryRoot),
}

/// A root in memory. Its command gets no capabilities, no sysfs and no unix sockets: the files that it is
/// shown are the host's own, with their real owners.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRoot {
    /// The maximum size of its content, in bytes.
    pub max_bytes: u64,
    /// The maximum number of files and directories.
    pub max_files: u64,
    /// The initial content, parents before children.
    pub entries: Vec<MemoryEntry>,
    /// The files of the views that are shown empty.
    pub hidden: Vec<CString>,
    /// The user and the group that the command runs as, if they are not the jail's root.
    pub run_as: Option<(u32, u32)>,
}

/// A file of a root in memory. Paths are relative to the root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemoryEntry {
    /// A directory.
    Dir {
        /// The path.
        path: CString,
        /// The mode.
        mode: u32,
    },
    /// A symbolic link.
    Link {
        /// The path.
        path: CString,
        /// The target.
        target: CString,
    },
    /// A regular file that everyone can read.
    File {
        /// The path.
        path: CString,
        /// The content.
        content: Vec<u8>,
    },
}

/// Where a step's files are visible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum JailPlace {
    /// They are the command's root. The command sees no other files.
    Root,
    /// They are at the mount point, and the command runs with the host's files as its root. It may show the
    /// step's files to others.
    Beside,
}

/// A view of a file or a directory of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// The path on the host.
    pub source: CString,
    /// The path in the step.
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

/// Limits that pid 1 of the step enforces by polling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Watch {
    /// The limit on the sum of the resident sets, in bytes.
    pub memory_bytes: Option<u64>,
    /// The limit on the number of processes.
    pub pids: Option<u64>,
}

/// A control group of the step, as the step sees it: read-only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupView {
    /// The name of its hierarchy below `/sys/fs/cgroup`. Empty for that directory itself, as with version 2.
    pub dir: CString,
    /// The name of its hierarchy below `/sys/fs/cgroup`. Empty for that directory itself, as with version 2.
    pub name: CString,
}

/// What the tracer of a step must know of its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceSpec {
    /// Every directory that receives writes of the step.
    pub uppers: Vec<UpperDir>,
}

/// The upper directory of an overlay that a step sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpperDir {
    /// The path on the host.
    pub source: CString,
    /// The path in the step that the overlay is mounted on.
    pub target: CString,
}

/// The default environment of a command, unless the image or the step sets it: the search path of programs,
/// root's home, and the variables by which programs detect a container and CI. It is the same for every step
/// on every machine, so no cache key includes it.
pub const DEFAULT_ENV: [(&str, &str); 4] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("container", "hm"),
    ("CI", "true"),
];

/// The specification of one step's jail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JailSpec {
    /// How ids are mapped. Overlays keep their marks in `user.overlay.*` in a user namespace, otherwise in
    /// `trusted.overlay.*`.
    pub user_namespace: UserNamespace,
    /// How overlays are mounted.
    pub mount_api: MountApi,
    /// Any directory of the host: the new root is mounted over it, in the step's mount namespace only.
    pub mountpoint: CString,
    /// The root.
    pub root: Root,
    /// Where its files are visible.
    pub place: JailPlace,
    /// Views of host files in the root, parents before children.
    pub binds: Vec<Bind>,
    /// Overlays in the root, over the views.
    pub overlays: Vec<InnerOverlay>,
    /// The content of the step's `/etc/resolv.conf`, if it is not the image's own or a view. A step without
    /// such a file gets none. With [`JailPlace::Beside`] it is that of the command.
    pub resolver: Option<Vec<u8>>,
    /// Further names of 127.0.0.1 in the step's `/etc/hosts`.
    pub own_names: Vec<String>,
    /// Files at `/run/secrets`.
    pub secrets: Vec<SecretFile>,
    /// Whether the step shares its network with processes that are not its own. It then gets no raw sockets,
    /// and cannot connect to abstract unix sockets of others.
    pub shares_network: bool,
    /// `cgroup.procs` files that the command enters before it runs.
    pub cgroups: Vec<CString>,
    /// The control groups that it enters, as the step sees them.
    pub group_views: Vec<GroupView>,
    /// Limits enforced by polling, if there are no cgroups.
    pub watch: Option<Watch>,
    /// The step's memory limit, in bytes, which also bounds the size of its tmpfs file systems.
    pub memory_bytes: Option<u64>,
    /// The working directory of the command, a path in the files that it runs on.
    pub workdir: CString,
    /// The program, a path in the same files, and its arguments. If it is empty, the jail is made and torn
    /// down, as a test.
    pub argv: Vec<CString>,
    /// Files that are written to standard output as a tar stream, instead of running a program.
    pub pack: Option<Pack>,
    /// What to trace, if the step is traced.
    pub trace: Option<TraceSpec>,
    /// Whether standard input is a terminal. It becomes the command's controlling terminal.
    pub terminal: bool,
    /// The environment, as `NAME=value`.
    pub env: Vec<CString>,
}

/// Files to write as a tar stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pack {
    /// The file or tree at a path in the step.
    Path(CString),
    /// The same without owners and times: see [`pack_plain`](crate::tree::pack_plain).
    Plain(CString),
    /// The regular files that match patterns of paths in the step.
    Matching {
        /// The patterns.
        patterns: Vec<String>,
        /// How much is written at most.
        limits: PackLimits,
    },
    /// Not files: the answers to the paths of a trace, which is standard input. See
    /// [`Answer`](super::trace::Answer).
    Answers,
}

/// The specification of a step without isolation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// The working directory.
    pub workdir: CString,
    /// The program and its arguments.
    pub argv: Vec<CString>,
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
