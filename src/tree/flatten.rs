//! Merging overlay layers into one.

use std::{
    collections::BTreeMap,
    ffi::CString,
    io,
    path::{Path, PathBuf},
};

use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{self, AtFlags, FileType, Mode, Stat},
    io::Errno,
};

use super::{
    at::{copy_xattrs, entries, is_opaque, is_whiteout, join, open_below, open_dir, stat_at, timestamps},
    copy::{copy_data, create},
};
use crate::tree::IdMap;

/// Merges overlay layers, topmost first, into the empty directory `into`, so that a mount of it over any lower directory
/// shows what a mount of all of them would.
///
/// Removed entries and opaque directories stay marked, because the lower directory is not part of this. Files are hard
/// links to the layers' own, which nobody writes to; directories get the attributes of the topmost layer that has them.
///
/// # Errors
/// The first failure; `into` is then to be removed.
pub fn flatten(layers: &[PathBuf], into: &Path, id_map: IdMap) -> io::Result<()> {
    let roots = layers.iter().map(|layer| open_dir(layer)).collect::<io::Result<Vec<_>>>()?;
    let target = open_dir(into)?;
    let merge = Merge { roots, target, opaque: id_map.opaque_xattr() };
    let mut work = vec![Work::Fill { path: Vec::new(), layers: (0..layers.len()).collect(), opaque: false }];
    while let Some(next) = work.pop() {
        match next {
            Work::Fill { path, layers, opaque } => merge.fill(&mut work, path, &layers, opaque)?,
            Work::Finish { path, topmost, opaque } => merge.finish(&path, topmost, opaque)?,
        }
    }
    Ok(())
}

enum Work {
    /// Fill the directory at `path` from those `layers` that take part in it. `opaque`: what lies below them is hidden.
    Fill { path: Vec<u8>, layers: Vec<usize>, opaque: bool },
    /// Give a filled directory its attributes.
    Finish { path: Vec<u8>, topmost: usize, opaque: bool },
}

struct Merge {
    roots: Vec<OwnedFd>,
    target: OwnedFd,
    opaque: &'static str,
}

/// What the layers so far, topmost first, say about one name.
enum Entry {
    /// A file, a link, a whiteout: decides the name alone.
    Leaf { layer: usize, stat: Stat },
    /// A directory; lower ones of the same name add to it until something `hides` them.
    Dir { layers: Vec<usize>, hides: bool },
}

impl Merge {
    fn fill(&self, work: &mut Vec<Work>, path: Vec<u8>, layers: &[usize], mut opaque: bool) -> io::Result<()> {
        let mut names: BTreeMap<CString, Entry> = BTreeMap::new();
        let mut dirs = BTreeMap::new();
        for &layer in layers {
            let dir = open_below(self.roots[layer].as_fd(), &path)?;
            for (name, _) in entries(&dir)? {
                let Some(stat) = stat_at(&dir, &name)? else { continue };
                let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                match names.get_mut(&name) {
                    None if is_dir => drop(names.insert(name, Entry::Dir { layers: vec![layer], hides: false })),
                    None => drop(names.insert(name, Entry::Leaf { layer, stat })),
                    Some(Entry::Dir { layers, hides: false }) if is_dir => layers.push(layer),
                    Some(Entry::Dir { hides, .. }) => *hides = true,
                    Some(Entry::Leaf { .. }) => {}
                }
            }
            let stops = is_opaque(&dir)?;
            dirs.insert(layer, dir);
            if stops {
                opaque = true;
                break;
            }
        }
        let target = open_below(self.target.as_fd(), &path)?;
        let mut below = Vec::new();
        for (name, entry) in names {
            match entry {
                // Nothing shows from below, so there is nothing to mark as removed.
                Entry::Leaf { stat, .. } if opaque && is_whiteout(&stat) => {}
                Entry::Leaf { layer, stat } => link(dirs[&layer].as_fd(), target.as_fd(), &name, &stat)?,
                Entry::Dir { layers, hides } => {
                    fs::mkdirat(&target, &name, Mode::RWXU)?;
                    below.push(Work::Fill { path: join(&path, name.to_bytes()), layers, opaque: hides });
                }
            }
        }
        work.push(Work::Finish { path, topmost: layers[0], opaque });
        work.append(&mut below);
        Ok(())
    }

    fn finish(&self, path: &[u8], topmost: usize, opaque: bool) -> io::Result<()> {
        let target = open_below(self.target.as_fd(), path)?;
        let model = open_below(self.roots[topmost].as_fd(), path)?;
        let stat = fs::fstat(&model)?;
        copy_xattrs(&model, &target)?;
        if opaque {
            fs::fsetxattr(&target, self.opaque, b"y", fs::XattrFlags::empty())?;
        }
        own(&target, &stat)?;
        fs::fchmod(&target, Mode::from_raw_mode(stat.st_mode))?;
        Ok(fs::futimens(&target, &timestamps(&stat))?)
    }
}

fn own(file: impl AsFd, stat: &Stat) -> io::Result<()> {
    let now = fs::fstat(&file)?;
    if (now.st_uid, now.st_gid) != (stat.st_uid, stat.st_gid) {
        fs::fchown(file, Some(fs::Uid::from_raw(stat.st_uid)), Some(fs::Gid::from_raw(stat.st_gid)))?;
    }
    Ok(())
}

/// Links an entry into another directory, or copies it where it has as many links as it may.
fn link(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CString, stat: &Stat) -> io::Result<()> {
    match fs::linkat(from, name, to, name, AtFlags::empty()) {
        Ok(()) => return Ok(()),
        Err(Errno::MLINK | Errno::PERM | Errno::XDEV) => {}
        Err(error) => return Err(error.into()),
    }
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            let source = std::fs::File::from(fs::openat(
                from,
                name,
                fs::OFlags::RDONLY | fs::OFlags::NOFOLLOW | fs::OFlags::CLOEXEC,
                Mode::empty(),
            )?);
            let target = create(to, name)?;
            copy_data(&source, &target)?;
            own(&target, stat)?;
            copy_xattrs(&source, &target)?;
            fs::fchmod(&target, Mode::from_raw_mode(stat.st_mode))?;
            fs::futimens(&target, &timestamps(stat))?;
        }
        FileType::Symlink => {
            fs::symlinkat(fs::readlinkat(from, name, Vec::new())?, to, name)?;
            let (owner, group) = (fs::Uid::from_raw(stat.st_uid), fs::Gid::from_raw(stat.st_gid));
            fs::chownat(to, name, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
            fs::utimensat(to, name, &timestamps(stat), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        kind => {
            fs::mknodat(to, name, kind, Mode::from_raw_mode(stat.st_mode), stat.st_rdev)?;
            let (owner, group) = (fs::Uid::from_raw(stat.st_uid), fs::Gid::from_raw(stat.st_gid));
            fs::chownat(to, name, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
            fs::chmodat(to, name, Mode::from_raw_mode(stat.st_mode), AtFlags::empty())?;
        }
    }
    Ok(())
}
