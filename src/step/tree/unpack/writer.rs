//! Makes the files of an archive's members, below one directory and nowhere else.
//!
//! A member may be behind a symbolic link that an earlier one made (`lib -> usr/lib`, then `lib/x`). The
//! [`DirCursor`] resolves its directory. Here a directory's path is always the real one, without links.

use std::{
    collections::BTreeMap,
    ffi::{CString, OsStr},
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::ffi::OsStrExt,
    path::Path,
};

use rustix::{
    fd::{AsFd, BorrowedFd},
    fs::{self, AtFlags, FileType, Mode, XattrFlags},
    io::Errno,
};

use super::{
    super::{
        at::{entries, is_whiteout, join, mtime, open_below, open_dir, open_dir_at, stat_at},
        copy::create,
    },
    cursor::{DirCursor, parts},
    error::{Fault, ResultExt},
    reader::{Kind, Member},
    sparse::Piece,
};
use crate::tree::IdMap;

/// The size of a write to a file.
const BUFFER_BYTES: usize = 1 << 17;

const WHITEOUT: &[u8] = b".wh.";
/// The prefix of the storage driver's marks, which are not about a file. Only the one for opaque directories
/// is part of the format.
const WHITEOUT_META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// The extended attributes that belong to overlayfs or to a security module, not to an image.
const PRIVATE_XATTRS: [&[u8]; 5] =
    [b"trusted.overlay.", b"user.overlay.", b"security.selinux", b"security.ima", b"security.evm"];

pub(super) struct Writer {
    id_map: IdMap,
    /// Leads to the directory that is being written to.
    cursor: DirCursor,
    /// The number of directories that were made only because the archive has files in them.
    pub(super) implied: u64,
    /// The attributes that directories get when their content is complete, by path.
    dirs: BTreeMap<Vec<u8>, Attributes>,
    /// The time of the root directory. Its other attributes are not set, so that the same archive becomes the
    /// same tree.
    mtime: (i64, i64),
    /// Data on the way from the archive to a file.
    buffer: Vec<u8>,
}

#[derive(Debug, Clone)]
struct Attributes {
    uid: u64,
    gid: u64,
    mode: u32,
    mtime: (i64, i64),
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Attributes {
    fn of(member: &Member) -> Self {
        let Member { uid, gid, mode, mtime, .. } = *member;
        Self { uid, gid, mode, mtime, xattrs: member.xattrs.clone() }
    }

    /// Returns the attributes of a directory that is not in the archive but contains files of the archive.
    fn implied() -> Self {
        Self { uid: 0, gid: 0, mode: 0o755, mtime: (0, 0), xattrs: Vec::new() }
    }
}

impl Writer {
    pub(super) fn new(into: &Path, id_map: IdMap) -> Result<Self, Fault> {
        let root = open_dir(into).doing("open")?;
        let (cursor, buffer) = (DirCursor::new(root), Vec::new());
        Ok(Self { id_map, cursor, implied: 0, dirs: BTreeMap::new(), mtime: (0, 0), buffer })
    }

    /// Makes one member.
    pub(super) fn put(&mut self, path: &[u8], member: &Member, data: &mut impl Read) -> Result<(), Fault> {
        let parts = parts(path)?;
        let Some((&name, parents)) = parts.split_last() else {
            return match member.kind {
                Kind::Directory => {
                    self.mtime = member.mtime;
                    Ok(())
                }
                _ => Err(Fault::refused("it would replace the root directory")),
            };
        };
        self.enter(parents)?;
        if name == OPAQUE {
            return self.make_opaque();
        }
        if name.starts_with(WHITEOUT_META) {
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.hide(hidden);
        }
        let name = OsStr::from_bytes(name);
        match &member.kind {
            Kind::Directory => self.directory(name, member),
            Kind::HardLink { target } => self.hard_link(parents, name, target),
            kind => {
                let is_for_root = matches!(kind, Kind::Device { .. }) && self.id_map != IdMap::Root;
                if is_for_root && self.cursor.top() == Some(b"dev") {
                    return Ok(());
                }
                if !matches!(kind, Kind::File { .. }) {
                    self.make_room(name)?;
                }
                self.leaf(name, member, data)
            }
        }
    }

    /// Sets the attributes of directories, children before parents.
    pub(super) fn finish(mut self) -> Result<(), (Vec<u8>, Fault)> {
        for (path, attributes) in std::mem::take(&mut self.dirs).into_iter().rev() {
            let given = self.finish_dir(&path, &attributes);
            given.map_err(|fault| (path, fault))?;
        }
        let given = fs::futimens(self.cursor.root(), &mtime(self.mtime.0, self.mtime.1)).doing("set the time of");
        given.map_err(|fault| (Vec::new(), fault))
    }

    fn finish_dir(&mut self, path: &[u8], attributes: &Attributes) -> Result<(), Fault> {
        self.enter(&parts(path)?)?;
        self.give(self.cursor.here(), attributes)
    }

    /// Enters a directory, and makes the missing parts of its path.
    fn enter(&mut self, parts: &[&[u8]]) -> Result<(), Fault> {
        let (dirs, implied) = (&mut self.dirs, &mut self.implied);
        self.cursor.enter(parts, |cursor, name| {
            cursor.make_dir(name)?;
            dirs.insert(cursor.path_of(name), Attributes::implied());
            *implied += 1;
            Ok(true)
        })?;
        Ok(())
    }

    /// Enters a directory if it exists.
    fn enter_existing(&mut self, parts: &[&[u8]]) -> Result<bool, Fault> {
        self.cursor.enter(parts, |_, _| Ok(false))
    }

    fn directory(&mut self, name: &OsStr, member: &Member) -> Result<(), Fault> {
        let found = stat_at(self.here(), name).doing("look at")?;
        match found {
            Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {}
            found => {
                let replaces = found.is_some_and(|stat| is_whiteout(&stat));
                self.make_room(name)?;
                self.cursor.make_dir(name)?;
                // A directory that was removed and made again must hide the earlier content.
                if replaces {
                    let dir = open_dir_at(self.here(), name).doing("open")?;
                    self.mark_opaque(dir.as_fd())?;
                }
            }
        }
        self.dirs.insert(self.cursor.path_of(name), Attributes::of(member));
        Ok(())
    }

    fn hard_link(&mut self, parents: &[&[u8]], name: &OsStr, target: &[u8]) -> Result<(), Fault> {
        let nothing = || Fault::refused("it is a hard link to a file that is not in this layer");
        let target = parts(target).map_err(|_| Fault::refused("it is a hard link out of the image"))?;
        let (&target_name, target_parents) = target.split_last().ok_or_else(nothing)?;
        let target_name = OsStr::from_bytes(target_name);
        self.enter_existing(target_parents)?.then_some(()).ok_or_else(nothing)?;
        let stat = stat_at(self.here(), target_name).doing("look at the target of")?.ok_or_else(nothing)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory || is_whiteout(&stat) {
            return Err(nothing());
        }
        let from = self.here().try_clone_to_owned().doing("open the directory of")?;
        let target_path = self.cursor.path_of(target_name);
        self.enter(parents)?;
        if self.cursor.path_of(name) == target_path {
            return Err(Fault::refused("it is a hard link to itself"));
        }
        self.make_room(name)?;
        // A symbolic link is not followed.
        match fs::linkat(&from, target_name, self.here(), name, AtFlags::empty()) {
            // The link replaces a directory that contained its target.
            Err(Errno::NOENT) => Err(nothing()),
            linked => linked.doing("link"),
        }
    }

    fn here(&self) -> BorrowedFd<'_> {
        self.cursor.here()
    }

    /// Removes the files that earlier entries made at a name.
    fn make_room(&mut self, name: &OsStr) -> Result<(), Fault> {
        match fs::unlinkat(self.here(), name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(error) => return Err(error).doing("replace"),
        }
        match fs::unlinkat(self.here(), name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => self.remove_filled(name)?,
            removed => removed.doing("replace")?,
        }
        let path = self.cursor.path_of(name);
        self.dirs.remove(&path);
        // Paths below it sort directly after its path with a slash.
        let below = join(&path, b"");
        let gone: Vec<_> = self
            .dirs
            .range(below.clone()..)
            .map(|(path, _)| path)
            .take_while(|it| it.starts_with(&below))
            .cloned()
            .collect();
        for path in gone {
            self.dirs.remove(&path);
        }
        Ok(())
    }

    /// Removes a directory with its content. All directories in it can be entered, because modes are set
    /// last.
    fn remove_filled(&self, name: &OsStr) -> Result<(), Fault> {
        let top = open_dir_at(self.here(), name).doing("replace")?;
        let (mut work, mut found) = (vec![Vec::new()], Vec::new());
        while let Some(path) = work.pop() {
            let dir = open_below(top.as_fd(), &path).doing("replace")?;
            for (name, _) in entries(&dir).doing("replace")? {
                match fs::unlinkat(&dir, &name, AtFlags::empty()) {
                    Ok(()) => {}
                    Err(Errno::ISDIR | Errno::PERM) => work.push(join(&path, name.to_bytes())),
                    Err(error) => return Err(error).doing("replace"),
                }
            }
            found.push(path);
        }
        // Every entry was found after its directory. The first one is the top.
        for path in found.iter().skip(1).rev() {
            fs::unlinkat(&top, OsStr::from_bytes(path), AtFlags::REMOVEDIR).doing("replace")?;
        }
        fs::unlinkat(self.here(), name, AtFlags::REMOVEDIR).doing("replace")
    }

    /// Makes an entry that is neither a directory nor a hard link.
    fn leaf(&mut self, name: &OsStr, member: &Member, data: &mut impl Read) -> Result<(), Fault> {
        let attributes = Attributes::of(member);
        match &member.kind {
            Kind::File { bytes, pieces } => {
                let mut file = self.file(name)?;
                match pieces {
                    None => copy(data, &mut file, *bytes, &mut self.buffer)?,
                    Some(pieces) => copy_pieces(data, &mut file, *bytes, pieces, &mut self.buffer)?,
                }
                self.give(file.as_fd(), &attributes)
            }
            Kind::Symlink { target } => {
                if target.is_empty() {
                    return Err(Fault::refused("it is a symbolic link without a target"));
                }
                fs::symlinkat(OsStr::from_bytes(target), self.here(), name).doing("make the symbolic link")?;
                self.give_by_name(name, &attributes, false)
            }
            Kind::Fifo => {
                fs::mkfifoat(self.here(), name, Mode::RUSR | Mode::WUSR).doing("make the named pipe")?;
                self.give_by_name(name, &attributes, true)
            }
            Kind::Device { is_block, major, minor } => {
                if self.id_map != IdMap::Root {
                    return Err(Fault::refused("it is a device, which only root may create"));
                }
                if (*major, *minor) == (0, 0) {
                    return Err(Fault::refused("it is a device with number 0, which marks removed files"));
                }
                let kind = if *is_block { FileType::BlockDevice } else { FileType::CharacterDevice };
                fs::mknodat(self.here(), name, kind, Mode::empty(), fs::makedev(*major, *minor))
                    .doing("make the device")?;
                self.give_by_name(name, &attributes, true)
            }
            Kind::Directory | Kind::HardLink { .. } | Kind::Skipped => Ok(()),
        }
    }

    /// Makes an empty file. Hardly ever does anything have to make room for it.
    fn file(&mut self, name: &OsStr) -> Result<File, Fault> {
        let c_name = CString::new(name.as_bytes()).map_err(|_| Fault::refused("its name contains a NUL byte"))?;
        match create(self.here(), &c_name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.make_room(name)?;
                create(self.here(), &c_name)
            }
            created => created,
        }
        .doing("make")
    }

    /// Marks an entry of lower layers as removed. An entry of this layer with that name hides it anyway.
    fn hide(&mut self, name: &[u8]) -> Result<(), Fault> {
        if matches!(name, b"" | b"." | b"..") {
            return Err(Fault::refused("it does not name a file to remove"));
        }
        let name = OsStr::from_bytes(name);
        match stat_at(self.here(), name).doing("look at")? {
            Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                let dir = open_dir_at(self.here(), name).doing("open")?;
                self.mark_opaque(dir.as_fd())
            }
            Some(_) => Ok(()),
            None => {
                fs::mknodat(self.here(), name, FileType::CharacterDevice, Mode::empty(), 0).doing("mark as removed")
            }
        }
    }

    fn make_opaque(&mut self) -> Result<(), Fault> {
        self.mark_opaque(self.here())
    }

    fn mark_opaque(&self, dir: BorrowedFd<'_>) -> Result<(), Fault> {
        fs::fsetxattr(dir, self.id_map.opaque_xattr(), b"y", XattrFlags::empty()).doing("make opaque")
    }

    /// Sets the owner before the mode, because chown clears bits of the mode, then the attributes that both
    /// of them clear, and then the time.
    fn give(&self, file: BorrowedFd<'_>, attributes: &Attributes) -> Result<(), Fault> {
        if let Some((user, group)) = self.owner(attributes)? {
            fs::fchown(file, Some(user), Some(group)).map_err(no_such_owner)?;
        }
        fs::fchmod(file, Mode::from_raw_mode(attributes.mode)).doing("set the mode of")?;
        for (name, value) in &attributes.xattrs {
            self.give_xattr(file, name, value)?;
        }
        fs::futimens(file, &mtime(attributes.mtime.0, attributes.mtime.1)).doing("set the time of")
    }

    /// Does the same as [`give`](Self::give) for files that are not opened. Extended attributes of such files
    /// have no meaning to a step.
    fn give_by_name(&self, name: &OsStr, attributes: &Attributes, has_mode: bool) -> Result<(), Fault> {
        let dir = self.here();
        if let Some((user, group)) = self.owner(attributes)? {
            fs::chownat(dir, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW).map_err(no_such_owner)?;
        }
        if has_mode {
            fs::chmodat(dir, name, Mode::from_raw_mode(attributes.mode), AtFlags::empty()).doing("set the mode of")?;
        }
        let times = mtime(attributes.mtime.0, attributes.mtime.1);
        fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW).doing("set the time of")
    }

    /// Returns `None` if the caller owns everything.
    fn owner(&self, attributes: &Attributes) -> Result<Option<(fs::Uid, fs::Gid)>, Fault> {
        if self.id_map == IdMap::Single {
            return Ok(None);
        }
        let id = |id: u64| match u32::try_from(id) {
            Ok(id) if id != u32::MAX => Ok(id),
            _ => Err(Fault::refused(format!("its owner {id} is not a valid id"))),
        };
        Ok(Some((fs::Uid::from_raw(id(attributes.uid)?), fs::Gid::from_raw(id(attributes.gid)?))))
    }

    fn give_xattr(&self, file: BorrowedFd<'_>, name: &[u8], value: &[u8]) -> Result<(), Fault> {
        if PRIVATE_XATTRS.iter().any(|private| name.starts_with(private)) {
            return Ok(());
        }
        let name = CString::new(name).map_err(|_| Fault::refused("an attribute's name contains a NUL byte"))?;
        match fs::fsetxattr(file, &name, value, XattrFlags::empty()) {
            Ok(()) => Ok(()),
            // Only root may set attributes outside `user.*`, and some filesystems have no user attributes.
            Err(Errno::PERM | Errno::ACCESS) if self.id_map != IdMap::Root => Ok(()),
            Err(Errno::NOTSUP) => Ok(()),
            Err(error) => Err(error).doing("set an extended attribute of"),
        }
    }
}

/// Copies a file's data. Read errors and write errors are distinguished.
fn copy(data: &mut impl Read, file: &mut File, bytes: u64, buffer: &mut Vec<u8>) -> Result<(), Fault> {
    use io::Write;
    buffer.resize(BUFFER_BYTES, 0);
    let mut left = bytes;
    while left > 0 {
        // Reads no more than is left: the data that follows may be another part of the file.
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        // A full buffer each time, because a write costs more than a read.
        let mut filled = 0;
        while filled < most {
            match data.read(&mut buffer[filled..most]).map_err(|error| Fault::reading(&error))? {
                0 => return Err(Fault::damaged("it ends in the middle")),
                read => filled += read,
            }
        }
        file.write_all(&buffer[..filled]).doing("write")?;
        left = left.saturating_sub(filled as u64);
    }
    Ok(())
}

/// Makes a sparse file: parts without data in the archive stay holes.
fn copy_pieces(
    data: &mut impl Read,
    file: &mut File,
    bytes: u64,
    pieces: &[Piece],
    buffer: &mut Vec<u8>,
) -> Result<(), Fault> {
    file.set_len(bytes).doing("set the size of")?;
    for piece in pieces {
        file.seek(SeekFrom::Start(piece.offset)).doing("write")?;
        copy(data, file, piece.bytes, buffer)?;
    }
    Ok(())
}

/// In a user namespace, an owner without a mapping is an invalid argument.
fn no_such_owner(error: Errno) -> Fault {
    match error {
        Errno::INVAL => Fault::refused(
            "its owner is not one of the subordinate ids of this user: add more to /etc/subuid and /etc/subgid",
        ),
        error => Fault::Io("set the owner of", error.into()),
    }
}
