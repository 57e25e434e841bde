//! Merges overlay layers into one.

use std::{
    collections::BTreeMap,
    ffi::{CStr, CString},
    io,
    path::{Path, PathBuf},
};

use rustix::{
    fd::{AsFd, BorrowedFd},
    fs::{self, AtFlags, FileType, Mode, Stat},
    io::Errno,
};

use super::{
    at::{copy_xattrs, entries, is_opaque, is_whiteout, open_dir, stat_at, timestamps},
    copy::{copy_data, create},
    descent::Descent,
};
use crate::tree::IdMap;

/// Merges overlay layers, topmost first, into the empty directory `into`. A mount of the result over any
/// lower directory shows the same as a mount of all the layers.
///
/// Removed entries and opaque directories stay marked, because the lower directory is not part of the merge.
/// Files are hard links to those of the layers, which are never written to. Directories get the attributes of
/// the topmost layer that has them.
///
/// # Errors
/// Returns the first error; the caller must then remove `into`.
pub fn flatten(layers: &[PathBuf], into: &Path, id_map: IdMap) -> io::Result<()> {
    let walks = layers.iter().map(|layer| open_dir(layer).map(Descent::new)).collect::<io::Result<Vec<_>>>()?;
    let mut merge = Merge { walks, target: Descent::new(open_dir(into)?), opaque: id_map.opaque_xattr() };
    let mut work = Vec::new();
    merge.fill(&mut work, None, &(0..layers.len()).collect::<Vec<_>>(), false)?;
    while let Some(next) = work.pop() {
        match next {
            Work::Fill { name, layers, opaque } => merge.fill(&mut work, Some(&name), &layers, opaque)?,
            Work::Finish { layers, opaque } => merge.finish(&layers, opaque)?,
        }
    }
    Ok(())
}

enum Work {
    /// Fill the directory `name` from those `layers` that contribute to it. `opaque`: lower content is
    /// hidden.
    Fill { name: CString, layers: Vec<usize>, opaque: bool },
    /// Set the attributes of a filled directory, those of the first of `layers`, and leave it.
    Finish { layers: Vec<usize>, opaque: bool },
}

struct Merge {
    /// One walk per layer.
    walks: Vec<Descent>,
    target: Descent,
    opaque: &'static str,
}

/// The merged state of one name in the layers so far, topmost first.
enum Entry {
    /// A file, a link or a whiteout, which alone determines the entry.
    Leaf { layer: usize, stat: Stat },
    /// A directory; lower ones of the same name are merged until something `hides` them.
    Dir { layers: Vec<usize>, hides: bool },
}

impl Merge {
    /// Fills the directory `name` below the current directory of the walks. Without a name, fills the current
    /// one.
    fn fill(
        &mut self,
        work: &mut Vec<Work>,
        name: Option<&CStr>,
        layers: &[usize],
        mut opaque: bool,
    ) -> io::Result<()> {
        let mut names: BTreeMap<CString, Entry> = BTreeMap::new();
        let mut entered = Vec::new();
        for &layer in layers {
            name.map_or(Ok(()), |name| self.walks[layer].enter(name))?;
            entered.push(layer);
            let dir = self.walks[layer].dir();
            for (name, _) in entries(dir)? {
                let Some(stat) = stat_at(dir, &name)? else { continue };
                let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                match names.get_mut(&name) {
                    None if is_dir => drop(names.insert(name, Entry::Dir { layers: vec![layer], hides: false })),
                    None => drop(names.insert(name, Entry::Leaf { layer, stat })),
                    Some(Entry::Dir { layers, hides: false }) if is_dir => layers.push(layer),
                    Some(Entry::Dir { hides, .. }) => *hides = true,
                    Some(Entry::Leaf { .. }) => {}
                }
            }
            if is_opaque(dir)? {
                opaque = true;
                break;
            }
        }
        name.map_or(Ok(()), |name| self.target.enter(name))?;
        let target = self.target.dir();
        let mut below = Vec::new();
        for (name, entry) in names {
            match entry {
                // Lower content is hidden already, so no whiteout is needed.
                Entry::Leaf { stat, .. } if opaque && is_whiteout(&stat) => {}
                Entry::Leaf { layer, stat } => link(self.walks[layer].dir(), target, &name, &stat)?,
                Entry::Dir { layers, hides } => {
                    fs::mkdirat(target, &name, Mode::RWXU)?;
                    below.push(Work::Fill { name, layers, opaque: hides });
                }
            }
        }
        work.push(Work::Finish { layers: entered, opaque });
        work.append(&mut below);
        Ok(())
    }

    fn finish(&mut self, layers: &[usize], opaque: bool) -> io::Result<()> {
        let target = self.target.leave()?;
        let mut model = None;
        for &layer in layers {
            let left = self.walks[layer].leave()?;
            model.get_or_insert(left);
        }
        let Some(model) = model else { return Ok(()) };
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

/// Links an entry into another directory, or copies it if it has the maximum number of links.
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
