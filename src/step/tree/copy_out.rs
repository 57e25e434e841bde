//! Writes the files of a tar stream to a place that the user named, by the rules of `cp -a`.

use std::{
    ffi::{CString, OsStr, OsString},
    fs::File,
    io::{self, Read},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::FileExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{self, AtFlags, CWD, FileType, Mode, OFlags},
    io::Errno,
};
use tar::{Archive, Entry, EntryType};

use super::{
    at::{mtime, open_dir_at, stat_at},
    descent::Descent,
    pack::CONTENT,
};

/// The permitted mode bits: set-id bits referred to ids of another system.
const PERMISSIONS: u32 = 0o777;

/// Writes a stream that [`pack`](super::pack) made to `to`: into it if it is a directory, otherwise in its
/// place.
///
/// Everything is owned by the caller. Modes (without set-id bits), times and links are kept; existing
/// directories keep theirs. Existing files and links are replaced. Below `to` no symbolic link is followed,
/// regardless of who made it, so nothing is written elsewhere.
///
/// # Errors
/// Returns the first error, with the path. The files written until then stay.
pub fn copy_out(stream: impl Read, to: &Path) -> io::Result<()> {
    let mut archive = Archive::new(stream);
    let mut extraction: Option<Extraction> = None;
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path_bytes().into_owned();
        let (top, rest) = name.iter().position(|byte| *byte == b'/').map_or((&name[..], &b""[..]), |slash| {
            let (top, rest) = name.split_at(slash);
            (top, &rest[1..])
        });
        let rest = rest.strip_suffix(b"/").unwrap_or(rest);
        let extraction = match &mut extraction {
            Some(extraction) => extraction,
            slot => match Extraction::start(to, top, &mut entry)? {
                Some(started) => slot.insert(started),
                // A file replaced a file: there are no more entries.
                None => return Ok(()),
            },
        };
        extraction.entry(rest, &mut entry)?;
    }
    let Some(extraction) = extraction else { return Err(io::ErrorKind::UnexpectedEof.into()) };
    extraction.finish()
}

struct Extraction {
    /// A walk at the directory that was opened last: a stream has most of a directory's entries in a row.
    walk: Descent,
    /// The path of the walk's top, for error texts.
    shown: PathBuf,
    /// The name of the topmost entry in the top; `None` if that is the top itself.
    top: Option<OsString>,
    /// The directories that were made, with their final modes and times.
    made: Vec<(Vec<u8>, u32, u64)>,
}

impl Extraction {
    /// Determines the destination. Returns `None` if the first entry is a file whose content was written to
    /// an existing file of the user.
    fn start(to: &Path, top: &[u8], entry: &mut Entry<'_, impl Read>) -> io::Result<Option<Self>> {
        let named = |error: io::Error| named(to, &error);
        if top != CONTENT && !is_name(top) {
            return Err(leads_elsewhere());
        }
        let is_dir = entry.header().entry_type() == EntryType::Directory;
        let found = match fs::stat(to) {
            Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode)),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(named(error.into())),
        };
        if found == Some(FileType::Directory) {
            let top = (top != CONTENT).then(|| OsString::from_vec(top.to_vec()));
            return Self::within(to, top).map(Some).map_err(named);
        }
        if is_dir && found.is_some() || !is_dir && to.as_os_str().as_bytes().ends_with(b"/") {
            return Err(named(Errno::NOTDIR.into()));
        }
        if found.is_some() && entry.header().entry_type() == EntryType::Regular {
            // The user named this path, so it may be a link or a device.
            let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::CLOEXEC;
            let mut file = File::from(fs::open(to, flags, Mode::empty()).map_err(|error| named(error.into()))?);
            io::copy(entry, &mut file).map_err(named)?;
            return Ok(None);
        }
        let Some(name) = to.file_name() else { return Err(named(Errno::NOENT.into())) };
        let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Self::within(parent, Some(name.to_owned())).map(Some).map_err(|error| self::named(parent, &error))
    }

    fn within(dir: &Path, top: Option<OsString>) -> io::Result<Self> {
        let root = fs::openat(CWD, dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { walk: Descent::new(root), shown: dir.into(), top, made: Vec::new() })
    }

    fn entry(&mut self, rest: &[u8], entry: &mut Entry<'_, impl Read>) -> io::Result<()> {
        let path = self.path(rest)?;
        if path.is_empty() {
            // The existing directory.
            return Ok(());
        }
        self.put(&path, entry).map_err(|error| named(&self.shown.join(OsStr::from_bytes(&path)), &error))
    }

    /// Returns the path below the top for the path `rest` below the topmost entry.
    fn path(&self, rest: &[u8]) -> io::Result<Vec<u8>> {
        if !rest.is_empty() && !rest.split(|byte| *byte == b'/').all(is_name) {
            return Err(leads_elsewhere());
        }
        Ok(match &self.top {
            Some(top) if rest.is_empty() => top.as_bytes().to_vec(),
            Some(top) => super::join(top.as_bytes(), rest),
            None => rest.to_vec(),
        })
    }

    fn put(&mut self, path: &[u8], entry: &mut Entry<'_, impl Read>) -> io::Result<()> {
        let header = entry.header();
        let (mode, seconds) = (header.mode()? & PERMISSIONS, header.mtime()?);
        let kind = header.entry_type();
        let (parent, name) = split(path);
        let name = OsStr::from_bytes(name);
        let link = entry.link_name_bytes().map(|link| link.into_owned()).unwrap_or_default();
        let first = match kind {
            EntryType::Link => Some(self.first_of(&link)?),
            _ => None,
        };
        let dir = self.dir(parent)?;
        if kind == EntryType::Directory {
            return match fs::mkdirat(dir, name, Mode::RWXU) {
                Ok(()) => {
                    self.made.push((path.to_vec(), mode, seconds));
                    Ok(())
                }
                Err(Errno::EXIST) => open_dir_at(dir, name).map(drop),
                Err(error) => Err(error.into()),
            };
        }
        make_room(dir, name)?;
        let times = mtime(i64::try_from(seconds).unwrap_or(0), 0);
        match kind {
            EntryType::Regular => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let mut file = File::from(fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?);
                copy_sparse(entry, &mut file)?;
                fs::fchmod(&file, Mode::from_raw_mode(mode))?;
                fs::futimens(&file, &times)?;
            }
            EntryType::Symlink => {
                fs::symlinkat(OsStr::from_bytes(&link), dir, name)?;
                fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            EntryType::Link => {
                if let Some((first_dir, first_name)) = first {
                    fs::linkat(&first_dir, &first_name, dir, name, AtFlags::empty())?;
                }
            }
            EntryType::Fifo => {
                fs::mkfifoat(dir, name, Mode::from_raw_mode(mode))?;
                fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the stream has an entry of an unsupported type",
                ));
            }
        }
        Ok(())
    }

    /// Returns where the file was written whose name in the stream is `link`.
    fn first_of(&mut self, link: &[u8]) -> io::Result<(OwnedFd, OsString)> {
        let rest = link.iter().position(|byte| *byte == b'/').map_or(&b""[..], |slash| &link[slash + 1..]);
        let path = self.path(rest)?;
        let (parent, name) = split(&path);
        let dir = self.dir(parent)?.try_clone_to_owned()?;
        Ok((dir, OsString::from_vec(name.to_vec())))
    }

    /// Goes to a directory below the top, name by name: a single openat would follow links in the middle of a
    /// path.
    fn dir(&mut self, path: &[u8]) -> io::Result<BorrowedFd<'_>> {
        let is_within = |above: &[u8]| {
            above.is_empty() || path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        };
        while !is_within(self.walk.path()) {
            self.walk.leave()?;
        }
        let below = &path[self.walk.path().len()..];
        for name in below.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            self.walk.enter(&CString::new(name)?)?;
        }
        Ok(self.walk.dir())
    }

    /// Sets the modes and times of directories, the innermost first.
    fn finish(mut self) -> io::Result<()> {
        for (path, mode, seconds) in std::mem::take(&mut self.made).into_iter().rev() {
            let dressed = self.dir(&path).map(|_| ()).and_then(|()| {
                // Leave it first: with its final mode it may be impossible to leave.
                let dir = self.walk.leave()?;
                fs::fchmod(&dir, Mode::from_raw_mode(mode))?;
                Ok(fs::futimens(&dir, &mtime(i64::try_from(seconds).unwrap_or(0), 0))?)
            });
            dressed.map_err(|error| named(&self.shown.join(OsStr::from_bytes(&path)), &error))?;
        }
        Ok(())
    }
}

/// Writes a file that is still empty. Blocks of zeros become holes, because a stream does not record holes.
///
/// # Errors
/// Returns the first error of reading or writing.
pub fn copy_sparse(from: &mut impl Read, to: &mut File) -> io::Result<()> {
    const BLOCK: usize = 1 << 16;
    let (mut buffer, mut length, mut written) = (vec![0; BLOCK], 0, 0);
    loop {
        let mut filled = 0;
        while filled < BLOCK {
            match from.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let block = &buffer[..filled];
        let end = length + filled as u64;
        if filled < BLOCK || block.iter().any(|byte| *byte != 0) {
            to.write_all_at(block, length)?;
            written = if filled > 0 { end } else { written };
        }
        length = end;
        if filled < BLOCK {
            break;
        }
    }
    if written < length { to.set_len(length) } else { Ok(()) }
}

/// Removes the file or link at a name. Directories and devices are refused.
fn make_room(dir: impl AsFd, name: &OsStr) -> io::Result<()> {
    let dir = dir.as_fd();
    match stat_at(dir, name)?.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
        None => Ok(()),
        Some(FileType::RegularFile | FileType::Symlink | FileType::Fifo) => {
            Ok(fs::unlinkat(dir, name, AtFlags::empty())?)
        }
        Some(FileType::Directory) => Err(Errno::ISDIR.into()),
        Some(_) => Err(Errno::EXIST.into()),
    }
}

/// Splits a path into its directory and its last name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// Returns whether this is a plain entry name.
fn is_name(part: &[u8]) -> bool {
    !matches!(part, b"" | b"." | b"..") && !part.contains(&0)
}

fn leads_elsewhere() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a name in the stream leads out of the target")
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("`{}`: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt};

    use tar::{Builder, Header};

    use super::{super::pack, *};

    /// Makes a stream of entries: kind, name, and the target of a link.
    fn stream(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
        let mut tar = Builder::new(Vec::new());
        for (kind, name, link) in entries {
            let mut header = Header::new_gnu();
            let gnu = header.as_gnu_mut().unwrap();
            gnu.name[..name.len()].copy_from_slice(name.as_bytes());
            gnu.linkname[..link.len()].copy_from_slice(link.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o755);
            header.set_mtime(1);
            header.set_size(if *kind == EntryType::Regular { 4 } else { 0 });
            header.set_cksum();
            tar.append(&header, if *kind == EntryType::Regular { &b"evil"[..] } else { b"" }).unwrap();
        }
        tar.into_inner().unwrap()
    }

    #[test]
    fn nothing_is_written_outside_of_the_place_that_was_named() {
        use EntryType::{Directory, Link, Regular, Symlink};
        let top = tempfile::tempdir().unwrap();
        let outside = top.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "kept").unwrap();
        let target = outside.to_str().unwrap();
        let dir = (Directory, "d/", "");
        let up = "d/../../outside/x";
        for (at, entries) in [
            vec![(Regular, "../outside/x", "")],
            vec![(Regular, "/x", "")],
            vec![dir, (Regular, up, "")],
            vec![dir, (Regular, "d/./x", "")],
            vec![dir, (Symlink, "d/l", target), (Regular, "d/l/x", "")],
            vec![dir, (Symlink, "d/l", target), (Directory, "d/l", "")],
            vec![dir, (Symlink, "d/l", target), (Link, "d/h", "d/l/kept")],
            vec![dir, (Link, "d/h", "d/../../outside/kept")],
            vec![(Symlink, "l", target), (Regular, "l/x", "")],
            vec![dir, (EntryType::Char, "d/c", "")],
        ]
        .into_iter()
        .enumerate()
        {
            let into = top.path().join(format!("into-{at}"));
            fs::create_dir(&into).unwrap();
            let error = copy_out(&stream(&entries)[..], &into).unwrap_err();
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "{entries:?}: {error}");
            assert_eq!(fs::metadata(outside.join("kept")).unwrap().nlink(), 1, "{entries:?}: {error}");
        }
        // A file that replaces a link is a new file.
        let into = top.path().join("into");
        fs::create_dir_all(into.join("d")).unwrap();
        std::os::unix::fs::symlink(outside.join("kept"), into.join("d/f")).unwrap();
        copy_out(&stream(&[dir, (Regular, "d/f", "")])[..], &into).unwrap();
        assert_eq!(fs::read_to_string(into.join("d/f")).unwrap(), "evil");
        assert_eq!(fs::read_to_string(outside.join("kept")).unwrap(), "kept");
    }

    #[test]
    fn blocks_of_zeros_become_holes_and_no_byte_is_lost() {
        let top = tempfile::tempdir().unwrap();
        for (at, size, data) in
            [(0, 0, 0..0), (1, 1 << 16, 0..0), (2, (1 << 16) + 1, 0..0), (3, 1 << 20, 7..9), (4, 3 << 16, 0..1 << 16)]
        {
            let mut content = vec![0; size];
            content[data].fill(b'x');
            let path = top.path().join(at.to_string());
            let mut file = File::create(&path).unwrap();
            copy_sparse(&mut &content[..], &mut file).unwrap();
            assert!(fs::read(&path).unwrap() == content, "{at}");
            assert!(file.metadata().unwrap().blocks() <= 160, "{at}");
        }
    }

    #[test]
    fn a_stream_that_breaks_off_is_an_error() {
        let top = tempfile::tempdir().unwrap();
        let whole = stream(&[(EntryType::Directory, "d/", ""), (EntryType::Regular, "d/f", "")]);
        for length in [0, 100, 600, 1100] {
            assert!(copy_out(&whole[..length], top.path()).is_err(), "{length}");
        }
    }

    #[test]
    fn what_was_packed_comes_out_as_it_was_however_deep() {
        let top = tempfile::tempdir().unwrap();
        let (from, to) = (top.path().join("from"), top.path().join("to"));
        let name = "n".repeat(200);
        let deep: PathBuf = std::iter::repeat_n(&*name, 30).collect();
        fs::create_dir_all(&from).unwrap();
        let mut dir = super::super::at::open_dir(&from).unwrap();
        for part in &deep {
            rustix::fs::mkdirat(&dir, part, Mode::RWXU).unwrap();
            dir = open_dir_at(&dir, part).unwrap();
        }
        rustix::fs::symlinkat("x".repeat(300), &dir, "link").unwrap();
        for part in ["a", "b"] {
            fs::write(from.join(part), part).unwrap();
        }
        fs::hard_link(from.join("b"), from.join("z")).unwrap();
        let mut packed = Vec::new();
        pack(&from.join("."), &mut packed).unwrap();
        copy_out(&packed[..], &to).unwrap();
        let mut again = Vec::new();
        pack(&to.join("."), &mut again).unwrap();
        assert!(packed == again, "{} and {} bytes", packed.len(), again.len());
        assert_eq!(fs::metadata(to.join("z")).unwrap().nlink(), 2);
    }
}
