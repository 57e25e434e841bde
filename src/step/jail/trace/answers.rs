//! Answers: what a filesystem has at the paths of a trace.
//!
//! Asked in a process with the rights of a step's command, over the filesystem that the step starts from. Two
//! filesystems that give the same answers are the same to the step. A confined program sees the machine's own
//! files, so they are asked for [in this process](answer_here). The design is in
//! `docs/design/trace-cache.md`.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    time::Duration,
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, fstatfs, openat2, readlinkat},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use super::format::{Kinds, MAX_ENTRIES, Trace};
use crate::tree::{entries, shared_xattrs_hash};

/// The most bytes of files that are read for one request: a sparse file may be larger than any disk.
const MAX_HASHED_BYTES: u64 = 16 << 30;

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Nothing, or nothing that can be there.
    Absent,
    /// It cannot be told. This is equal to no answer.
    Unknown(i32),
    /// Something.
    There(Node),
}

/// Something at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// The type and the mode.
    pub mode: u32,
    /// The owner.
    pub owner: (u32, u32),
    /// The device, of device nodes.
    pub device: u64,
    /// The hash of the extended attributes; zeros if there are none.
    pub attributes: [u8; 32],
    /// The hash of a file's content, of a link's target, or of the names in a directory that was listed.
    /// `None` if there is no such thing, or if it cannot be read for lack of permission.
    pub value: Option<[u8; 32]>,
    /// The size of a file.
    pub size: u64,
    /// The modification time of a file, and of a directory or link whose metadata was asked for.
    pub modified: Option<(i64, u32)>,
    /// Which file it is, of a file with several names: device and inode. Only that they are equal, or
    /// not, has a meaning: programs such as `cp -a` copy the names of one file as such.
    pub names_of: Option<(u64, u64)>,
}

impl Node {
    /// Returns its type.
    pub fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }
}

/// What changes with everything that an answer depends on, except for what is below a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    device: u64,
    inode: u64,
    size: u64,
    /// The times of the last change of its content, and of the last change of anything.
    modified: (i64, u32),
    changed: (i64, u32),
}

impl Status {
    fn of(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size as u64,
            modified: (stat.st_mtime, stat.st_mtime_nsec as u32),
            changed: (stat.st_ctime, stat.st_ctime_nsec as u32),
        }
    }

    /// Returns the status of what is at a path, which has no links, or `None` if nothing is there.
    ///
    /// # Errors
    /// Returns an error if that cannot be known.
    pub fn at(path: &[u8]) -> io::Result<Option<Self>> {
        Ok(open_if_there(path)?.map(fstat).transpose()?.as_ref().map(Self::of))
    }

    /// Does the same as [`at`](Self::at), but fails also if a change of what is there need not give it
    /// another status.
    ///
    /// # Errors
    /// Returns an error if that is so, or if the status cannot be known.
    pub fn lasting_at(path: &[u8]) -> io::Result<Option<Self>> {
        let Some(found) = open_if_there(path)? else { return Ok(None) };
        if !keeps_change_times(&found) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Some(Self::of(&fstat(&found)?)))
    }

    /// Returns whether the last change of anything was at this time, since 1970, or later.
    #[must_use]
    pub fn is_since(&self, time: Duration) -> bool {
        let (seconds, nanoseconds) = self.changed;
        u64::try_from(seconds).is_ok_and(|seconds| Duration::new(seconds, nanoseconds) >= time)
    }

    /// Returns whether the last change was one of the content; of a directory, that an entry came or went.
    #[must_use]
    pub fn is_of_content(&self) -> bool {
        self.changed == self.modified
    }
}

/// Returns whether each change of a file in this filesystem gives it another time of change. On others,
/// such as network filesystems, FUSE and `/proc`, the time is that of another machine, or has nothing
/// to do with the content.
fn keeps_change_times(file: &OwnedFd) -> bool {
    const EXT: i64 = 0xEF53;
    const TMPFS: i64 = 0x0102_1994;
    const XFS: i64 = 0x5846_5342;
    const BTRFS: i64 = 0x9123_683E;
    const F2FS: i64 = 0xF2F5_2010;
    const OVERLAY: i64 = 0x794C_7630;
    const ZFS: i64 = 0x2FC1_2FC1;
    let kind = fstatfs(file).map(|found| found.f_type);
    kind.is_ok_and(|kind| [EXT, TMPFS, XFS, BTRFS, F2FS, OVERLAY, ZFS].contains(&kind))
}

/// How an answer differs from an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// There was nothing.
    Appeared,
    /// There is nothing.
    Disappeared,
    /// Its content, its target or its type.
    Content,
    /// Its mode, owner or attributes.
    Metadata,
    /// The names in a directory.
    Names,
    /// One of both cannot be told.
    Unknown,
}

impl Answer {
    /// Returns how this answer differs from one that was recorded, as far as a step could see by what it did
    /// with the path.
    #[must_use]
    pub fn change_since(&self, recorded: &Self, kinds: Kinds) -> Option<Change> {
        let (was, is) = match (recorded, self) {
            (Self::Unknown(_), _) | (_, Self::Unknown(_)) => return Some(Change::Unknown),
            (Self::Absent, Self::Absent) => return None,
            (Self::Absent, Self::There(_)) => return Some(Change::Appeared),
            (Self::There(_), Self::Absent) => return Some(Change::Disappeared),
            (Self::There(was), Self::There(is)) => (was, is),
        };
        if was.file_type() != is.file_type() || was.device != is.device {
            return Some(Change::Content);
        }
        if was.size != is.size {
            return Some(Change::Content);
        }
        if was.file_type() == FileType::RegularFile && was.value.is_none() && was.modified != is.modified {
            // Its content cannot be read, so its time says whether that is the same.
            return Some(Change::Content);
        }
        if was.file_type() == FileType::Directory {
            if kinds.contains(Kinds::LISTING) && (was.value != is.value || was.value.is_none()) {
                return Some(Change::Names);
            }
        } else if was.value != is.value {
            return Some(Change::Content);
        }
        let differs = was.mode != is.mode || was.owner != is.owner || was.attributes != is.attributes;
        differs.then_some(Change::Metadata)
    }

    /// Returns whether a step that did this with a path can have found what the answer says.
    #[must_use]
    pub fn fits(&self, kinds: Kinds) -> bool {
        let found = [Kinds::CONTENT, Kinds::METADATA, Kinds::LISTING, Kinds::LINK, Kinds::DIRECTORY];
        let was_there = found.iter().any(|kind| kinds.contains(*kind));
        let is_type = |kind: Kinds, file_type: FileType| {
            !kinds.contains(kind) || matches!(self, Self::There(node) if node.file_type() == file_type)
        };
        match self {
            Self::Unknown(_) => false,
            Self::Absent => !was_there,
            Self::There(node) => {
                let is_unread = node.file_type() == FileType::RegularFile && node.value.is_none();
                !(kinds.contains(Kinds::ABSENT) || is_unread && kinds.contains(Kinds::CONTENT))
                    && is_type(Kinds::DIRECTORY, FileType::Directory)
                    && is_type(Kinds::LISTING, FileType::Directory)
                    && is_type(Kinds::LINK, FileType::Symlink)
            }
        }
    }
}

/// Reads a trace from `request`, and writes the answers to its paths, in their order, to `out`.
pub(in crate::jail) fn answer(mut request: impl Read, mut out: impl Write) -> io::Result<()> {
    let mut bytes = Vec::new();
    request.read_to_end(&mut bytes)?;
    let asked = Trace::decode(&bytes).map_err(io::Error::other)?;
    let mut left = MAX_HASHED_BYTES;
    let answers: Vec<Answer> = asked.entries.iter().map(|(path, kinds)| look(path, *kinds, &mut left)).collect();
    let bytes = postcard::to_stdvec(&answers).map_err(io::Error::other)?;
    out.write_all(&bytes)?;
    out.flush()
}

/// Decodes the answers to `count` paths, as the jail wrote them.
///
/// # Errors
/// Returns an error if these are not so many answers.
pub fn decode_answers(bytes: &[u8], count: usize) -> io::Result<Vec<Answer>> {
    let (answers, rest) = postcard::take_from_bytes::<Vec<Answer>>(bytes).map_err(io::Error::other)?;
    if !rest.is_empty() || answers.len() != count || count > MAX_ENTRIES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "they are not the answers to these paths"));
    }
    Ok(answers)
}

/// Answers for a path among the files that this process sees, with the status of what is there, if a
/// change would give it another one. `left` is how many bytes of files may still be read. If the status
/// is that of an earlier answer to the same question, that is the answer.
pub fn answer_here(
    path: &[u8],
    kinds: Kinds,
    earlier: Option<(&Answer, &Status)>,
    left: &mut u64,
) -> (Answer, Option<Status>) {
    let found = open(path).ok();
    let status = found.as_ref().and_then(|found| fstat(found).ok()).as_ref().map(Status::of);
    match earlier {
        Some((answer, known)) if status.as_ref() == Some(known) => (answer.clone(), status),
        _ => (look(path, kinds, left), status.filter(|_| found.as_ref().is_some_and(keeps_change_times))),
    }
}

/// Opens what is at a path, which has no links.
fn open(path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(CWD, OsStr::from_bytes(path), flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
}

fn open_if_there(path: &[u8]) -> Result<Option<OwnedFd>, Errno> {
    match open(path) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Answers for one path, which has no links. `left` is how many bytes of files may still be read.
fn look(path: &[u8], kinds: Kinds, left: &mut u64) -> Answer {
    match open(path).and_then(|found| examine(&found, kinds, left)) {
        Ok(node) => Answer::There(node),
        // A component that became a link has an entry of its own.
        Err(Errno::NOENT | Errno::NOTDIR) => Answer::Absent,
        Err(error) => Answer::Unknown(error.raw_os_error()),
    }
}

fn examine(found: &OwnedFd, kinds: Kinds, left: &mut u64) -> Result<Node, Errno> {
    let stat = fstat(found)?;
    let file_type = FileType::from_raw_mode(stat.st_mode);
    let is_device = matches!(file_type, FileType::CharacterDevice | FileType::BlockDevice);
    let mut node = Node {
        mode: stat.st_mode,
        owner: (stat.st_uid, stat.st_gid),
        device: if is_device { stat.st_rdev } else { 0 },
        attributes: [0; 32],
        value: None,
        size: 0,
        modified: None,
        names_of: (stat.st_nlink > 1 && file_type != FileType::Directory).then_some((stat.st_dev, stat.st_ino)),
    };
    // Programs compare them, too: `make` and cargo those of directories, for instance.
    if matches!(file_type, FileType::Symlink | FileType::Directory) && kinds.contains(Kinds::METADATA) {
        node.modified = Some((stat.st_mtime, stat.st_mtime_nsec as u32));
    }
    match file_type {
        FileType::Symlink => {
            let target = readlinkat(found, "", Vec::with_capacity(128))?;
            node.value = Some(*blake3::hash(target.as_bytes()).as_bytes());
        }
        FileType::RegularFile => {
            node.size = stat.st_size as u64;
            *left = left.checked_sub(node.size).ok_or(Errno::FBIG)?;
            node.modified = Some((stat.st_mtime, stat.st_mtime_nsec as u32));
            if let Some(file) = reopen(found, OFlags::empty())? {
                let (mut file, mut hasher) = (File::from(file), blake3::Hasher::new());
                io::copy(&mut file, &mut hasher).map_err(errno)?;
                node.value = Some(*hasher.finalize().as_bytes());
                node.attributes = attributes(&file)?;
            }
        }
        FileType::Directory => {
            // Also of one that was passed through: its default list of access rights decides on new files.
            if let Some(dir) = reopen(found, OFlags::DIRECTORY)? {
                node.attributes = attributes(&dir)?;
                if kinds.contains(Kinds::LISTING) {
                    node.value = Some(listing(&dir)?);
                }
            }
        }
        _ => {}
    }
    Ok(node)
}

/// Opens a file or directory for reading. Returns `None` if that is not permitted: the step was refused, too.
fn reopen(found: &OwnedFd, flags: OFlags) -> Result<Option<OwnedFd>, Errno> {
    let path = format!("/proc/self/fd/{}", found.as_raw_fd());
    let flags = flags | OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
        Ok(file) => Ok(Some(file)),
        Err(Errno::ACCESS | Errno::PERM) => Ok(None),
        Err(error) => Err(error),
    }
}

fn attributes(file: &impl AsFd) -> Result<[u8; 32], Errno> {
    shared_xattrs_hash(file.as_fd()).map_err(errno)
}

/// Returns the hash of the names in a directory, with their types, in the order of the names.
fn listing(dir: &OwnedFd) -> Result<[u8; 32], Errno> {
    let mut names = entries(dir).map_err(errno)?;
    names.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    let mut hasher = blake3::Hasher::new();
    for (name, file_type) in names {
        let file_type = match file_type {
            FileType::Unknown => 0,
            FileType::RegularFile => 1,
            FileType::Directory => 2,
            FileType::Symlink => 3,
            FileType::Fifo => 4,
            FileType::Socket => 5,
            FileType::CharacterDevice => 6,
            FileType::BlockDevice => 7,
        };
        hasher.update(&[file_type]).update(name.to_bytes_with_nul());
    }
    Ok(*hasher.finalize().as_bytes())
}

#[expect(clippy::needless_pass_by_value, reason = "it is given to `map_err`")]
fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt, symlink},
    };

    use super::*;

    fn ask(path: &std::path::Path, kinds: Kinds) -> Answer {
        let entries = [(path.as_os_str().as_bytes().to_vec(), kinds)].into();
        let request = Trace { entries, ..Trace::default() }.encode().unwrap();
        let mut out = Vec::new();
        answer(&request[..], &mut out).unwrap();
        decode_answers(&out, 1).unwrap().remove(0)
    }

    #[test]
    fn each_kind_of_change_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let path = |name: &str| root.join(name);
        fs::write(path("file"), "1").unwrap();
        fs::create_dir(path("dir")).unwrap();
        symlink("file", path("link")).unwrap();
        let all = ["file", "dir", "link", "absent", "file/below"];
        let kinds = Kinds::LISTING.and(Kinds::METADATA);
        let look = || all.map(|name| ask(&path(name), kinds));
        let before = look();
        assert_eq!(before[3..], [Answer::Absent, Answer::Absent]);
        let changes = || {
            let is = look();
            std::array::from_fn::<_, 5, _>(|at| is[at].change_since(&before[at], kinds))
        };
        assert_eq!(changes(), [None; 5]);
        fs::write(path("file"), "2").unwrap();
        fs::write(path("dir/new"), "").unwrap();
        fs::remove_file(path("link")).unwrap();
        symlink("dir", path("link")).unwrap();
        fs::write(path("absent"), "").unwrap();
        let content = Some(Change::Content);
        assert_eq!(changes(), [content, Some(Change::Names), content, Some(Change::Appeared), None]);
        fs::remove_file(path("dir/new")).unwrap();
        fs::set_permissions(path("dir"), fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(changes()[1], Some(Change::Metadata));
        fs::remove_file(path("file")).unwrap();
        assert_eq!(changes()[0], Some(Change::Disappeared));
        fs::create_dir(path("file")).unwrap();
        assert_eq!(changes()[0], content);
    }

    #[test]
    fn a_path_through_a_link_is_answered_by_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir(root.join("dir")).unwrap();
        fs::write(root.join("dir/file"), "").unwrap();
        symlink("dir", root.join("link")).unwrap();
        let answer = ask(&root.join("link/file"), Kinds::CONTENT);
        assert!(matches!(answer, Answer::Unknown(_)), "{answer:?}");
        assert_eq!(answer.change_since(&answer, Kinds::CONTENT), Some(Change::Unknown), "equal to none");
        assert!(!answer.fits(Kinds::CONTENT));
    }

    #[test]
    fn files_beyond_the_budget_are_unknown() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::write(root.join("a"), "12345").unwrap();
        let path = root.join("a");
        let mut left = 9;
        let mut again = || look(path.as_os_str().as_bytes(), Kinds::CONTENT, &mut left);
        assert!(matches!(again(), Answer::There(_)));
        assert_eq!(again(), Answer::Unknown(Errno::FBIG.raw_os_error()));
        let huge = fs::File::create(root.join("huge")).unwrap();
        huge.set_len(MAX_HASHED_BYTES + 1).unwrap();
        assert!(matches!(ask(&root.join("huge"), Kinds::CONTENT), Answer::Unknown(_)));
    }

    #[test]
    fn an_answer_that_the_trace_contradicts_does_not_fit() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::write(root.join("file"), "").unwrap();
        let (file, absent) = (ask(&root.join("file"), Kinds::CONTENT), ask(&root.join("absent"), Kinds::ABSENT));
        assert!(file.fits(Kinds::CONTENT.and(Kinds::WRITTEN)) && absent.fits(Kinds::ABSENT.and(Kinds::WRITTEN)));
        for (answer, kinds) in
            [(&file, Kinds::ABSENT), (&file, Kinds::LINK), (&file, Kinds::LISTING), (&absent, Kinds::METADATA)]
        {
            assert!(!answer.fits(kinds), "{answer:?} {kinds:?}");
        }
    }
}
