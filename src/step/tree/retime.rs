//! Copies a layer with other times, to put it over other layers than those that it was made over.
//!
//! ```text
//!   walk: times of the layer ──▶ a new time for each ──▶ walk: copy, with these
//!           │                         ▲
//!           └ refused                 the clock, what is below, what the step read
//! ```
//!
//! In the copy, everything that the step's clock gave a time is later than all that is below, in the
//! order that it had, and earlier than now. What the step set itself stays.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{CStr, CString, OsStr},
    fs::File,
    io,
    os::{fd::AsRawFd, unix::ffi::OsStrExt},
    path::Path,
    thread,
    time::Duration,
};

use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{self, AtFlags, FileType, Mode, OFlags, Stat},
    io::Errno,
    time::{ClockId, clock_gettime},
};
use serde::{Deserialize, Serialize};

use super::{
    at::{copy_xattrs, entries, is_opaque, is_whiteout, mtime, open_dir, stat_at},
    copy::{copy_data, create},
    descent::Descent,
    filesystem::reflink,
    hard_links::{HardLinks, Linked},
    id_map::IdMap,
};

/// The modification time of a file: seconds since the Unix epoch, and nanoseconds.
pub type FileTime = (i64, u32);

const SECOND: i128 = 1_000_000_000;
/// The least distance between two new times, in nanoseconds. Not every program compares all digits.
const LEAST_GAP: i128 = 1000;
/// The least time between what is below and now, in nanoseconds.
const LEAST_ROOM: i128 = 2_000_000;
/// Files that are written within this time, in nanoseconds, have equal times or different ones by chance.
const TICK: i128 = 20_000_000;
/// How long to wait until there is room between what is below and now.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long to wait between two looks at the clock.
const PAUSE: Duration = Duration::from_millis(1);

/// What the times of a layer's copy depend on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retiming {
    /// When the step that wrote the layer started, and when it had ended.
    pub span: (FileTime, FileTime),
    /// The times that files had which the step read, and those that they have now, if they differ.
    pub changed: Vec<(FileTime, FileTime)>,
    /// The latest time of what the copy is put over.
    pub below: FileTime,
    /// The most bytes that may be copied. If the filesystem shares the data of copies, there is no limit.
    pub max_bytes: u64,
}

/// What became of a layer that was to be copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Retimed {
    /// Its times are right as they are. There is no copy.
    Unneeded,
    /// There is a copy.
    Copied,
    /// There can be none that is right. What was copied until then must be removed.
    Refused(NoCopy),
}

/// Why a layer cannot be copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NoCopy {
    /// It has a time that the step took from files whose times are others now, or that was in the future.
    BorrowedTime,
    /// Something below is newer than the clock.
    Future,
    /// It is too large.
    TooLarge,
    /// It has a special file with attributes.
    SpecialFile,
    /// It has a file with more names, or with longer paths, than the filesystem gives to one.
    Links,
}

impl NoCopy {
    /// Returns the reason, which continues a sentence about a step.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BorrowedTime => "its files have times that do not come from the clock",
            Self::Future => "something that it builds on is newer than the clock",
            Self::TooLarge => "its layer is too large to be copied",
            Self::SpecialFile => "its layer has a special file with attributes",
            Self::Links => "its layer has more hard links than can be copied",
        }
    }
}

/// Copies a layer to the empty directory `into`, with times that fit what it is put over. Returns without
/// a copy if its own times do.
///
/// Modes, owners, extended attributes, hard links within the layer, whiteouts, opaque directories,
/// sockets and pipes are kept. Data is shared with the layer if the filesystem supports that (reflinks).
///
/// # Errors
/// Returns the first error. The caller must then remove what is in `into`.
pub fn retime(layer: &Path, into: &Path, id_map: IdMap, request: &Retiming) -> io::Result<Retimed> {
    let done = LayerTimes::of(layer)?.plan(request, file_clock).and_then(|plan| {
        let Some(plan) = plan else { return Ok(Retimed::Unneeded) };
        let (source, root) = (Descent::new(open_dir(layer)?), open_dir(into)?);
        let target = Descent::new(root.try_clone()?);
        Copy { plan, opaque: id_map.opaque_xattr(), links: HardLinks::new(root) }.all(source, target)?;
        Ok(Retimed::Copied)
    });
    match done {
        Err(Stop::Refused(reason)) => Ok(Retimed::Refused(reason)),
        Err(Stop::Failed(error)) => Err(error),
        Ok(retimed) => Ok(retimed),
    }
}

/// Returns the time that a file would get that is written now.
#[must_use]
pub fn file_clock() -> FileTime {
    // The kernel takes times of files from its last tick.
    let now = clock_gettime(ClockId::RealtimeCoarse);
    (now.tv_sec, u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Why there is no copy.
#[derive(Debug)]
enum Stop {
    Refused(NoCopy),
    Failed(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Errno> for Stop {
    fn from(error: Errno) -> Self {
        Self::Failed(error.into())
    }
}

/// The times of a layer, each once.
#[derive(Debug, Default)]
struct LayerTimes {
    files: BTreeSet<FileTime>,
    dirs: BTreeSet<FileTime>,
    /// The size of all files on the disk.
    bytes: u64,
}

/// The new times of a layer.
#[derive(Debug)]
struct TimePlan {
    files: BTreeMap<FileTime, FileTime>,
    dirs: BTreeMap<FileTime, FileTime>,
    /// Whether the data of files must be shared.
    must_share: bool,
}

impl LayerTimes {
    fn of(layer: &Path) -> io::Result<Self> {
        let mut times = Self::default();
        let top = open_dir(layer)?;
        times.dirs.insert(time_of(&fs::fstat(&top)?));
        Descent::new(top).walk(|walk| {
            let mut below = Vec::new();
            for (name, _) in entries(walk.dir())? {
                let Some(stat) = stat_at(walk.dir(), &name)? else { continue };
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => {
                        times.dirs.insert(time_of(&stat));
                        below.push(name);
                    }
                    _ if is_whiteout(&stat) => {}
                    _ => {
                        times.files.insert(time_of(&stat));
                        times.bytes = times.bytes.saturating_add(512 * u64::try_from(stat.st_blocks).unwrap_or(0));
                    }
                }
            }
            Ok(below)
        })?;
        Ok(times)
    }

    /// Chooses new times. Returns `None` if those that the layer has are right.
    fn plan(&self, request: &Retiming, mut now: impl FnMut() -> FileTime) -> Result<Option<TimePlan>, Stop> {
        let (start, end) = request.span;
        let is_clocks = |time: &FileTime| (start..=end).contains(time);
        let mut changed: BTreeMap<FileTime, BTreeSet<FileTime>> = BTreeMap::new();
        for (was, is) in &request.changed {
            changed.entry(*was).or_default().insert(*is);
        }
        let seconds: BTreeSet<i64> = changed.keys().map(|(seconds, _)| *seconds).collect();
        let mut files = BTreeMap::new();
        let mut clock: BTreeSet<FileTime> = self.dirs.iter().copied().filter(is_clocks).collect();
        // What is not later than this would be in another order than after a real run.
        let mut below = nanoseconds(request.below);
        for time in &self.files {
            match (changed.get(time), is_clocks(time)) {
                (None, true) => drop(clock.insert(*time)),
                // It was copied up, or copied with its time: it has the time that the file has now. A
                // whole second may be any file's.
                (Some(is), false) if is_one_time(is) && time.1 != 0 => {
                    let is = is.last().copied().unwrap_or(*time);
                    below = below.max(nanoseconds(is));
                    files.insert(*time, is);
                }
                (Some(_), _) => return Err(Stop::Refused(NoCopy::BorrowedTime)),
                // Not every program copies fractions. What is later than the step was computed from the
                // clock, and what is a little earlier may be the time of a file that it made, rounded.
                (None, false) if *time > end || seconds.contains(&time.0) || is_rounded(*time, start) => {
                    return Err(Stop::Refused(NoCopy::BorrowedTime));
                }
                (None, false) => below = below.max(nanoseconds(*time)),
            }
        }
        let new = self.of_clock(&clock, below, &mut now)?;
        if new.is_empty() && files.is_empty() {
            return Ok(None);
        }
        let dirs = new.clone();
        files.extend(new);
        Ok(Some(TimePlan { files, dirs, must_share: self.bytes > request.max_bytes }))
    }

    /// Chooses new times for those that the clock gave: between `below` and now, in the same order.
    /// Returns none if they are there already.
    fn of_clock(
        &self,
        clock: &BTreeSet<FileTime>,
        below: i128,
        now: &mut impl FnMut() -> FileTime,
    ) -> Result<BTreeMap<FileTime, FileTime>, Stop> {
        let (Some(oldest), Some(newest)) = (clock.first(), clock.last()) else { return Ok(BTreeMap::new()) };
        let (oldest, newest) = (nanoseconds(*oldest), nanoseconds(*newest));
        // What is written next must be later.
        let mut latest = nanoseconds(now()) - 1;
        if oldest > below && newest <= latest {
            return Ok(BTreeMap::new());
        }
        // As if the step had ended just now: with its own times, a number of seconds later. So programs
        // that compare whole seconds see the order, too.
        let shift = (latest - newest).div_euclid(SECOND) * SECOND;
        if oldest + shift > below {
            return Ok(clock.iter().map(|time| (*time, file_time(nanoseconds(*time) + shift))).collect());
        }
        // It took longer than there is time since: closer to each other.
        let count = i128::try_from(clock.len()).unwrap_or(i128::MAX);
        let room = LEAST_ROOM.max((count + 1) * LEAST_GAP);
        let mut patience = PATIENCE;
        while latest - below < room {
            patience = patience.checked_sub(PAUSE).ok_or(Stop::Refused(NoCopy::Future))?;
            thread::sleep(PAUSE);
            latest = nanoseconds(now()) - 1;
        }
        let gap = (latest - below) / (count + 1);
        let from_last = clock.iter().rev().zip(0..);
        Ok(from_last.map(|(time, place): (_, i128)| (*time, file_time(latest - place * gap))).collect())
    }
}

/// Returns whether a time may be one of the clock after `start`, without its fraction. Some formats of
/// archives have even seconds only.
fn is_rounded(time: FileTime, start: FileTime) -> bool {
    time.1 == 0 && (start.0 - 2..=start.0).contains(&time.0)
}

/// Returns whether some times are equal, or would be by chance.
fn is_one_time(times: &BTreeSet<FileTime>) -> bool {
    let distance = times.first().zip(times.last()).map(|(first, last)| nanoseconds(*last) - nanoseconds(*first));
    distance == Some(0) || distance < Some(TICK) && times.iter().all(|time| time.1 != 0)
}

fn nanoseconds((seconds, nanoseconds): FileTime) -> i128 {
    i128::from(seconds) * SECOND + i128::from(nanoseconds)
}

fn file_time(nanoseconds: i128) -> FileTime {
    let seconds = i64::try_from(nanoseconds.div_euclid(SECOND)).unwrap_or(i64::MAX);
    (seconds, u32::try_from(nanoseconds.rem_euclid(SECOND)).unwrap_or(0))
}

#[expect(clippy::unnecessary_cast, reason = "types differ between systems")]
fn time_of(stat: &Stat) -> FileTime {
    (stat.st_mtime as i64, u32::try_from(stat.st_mtime_nsec).unwrap_or(0))
}

enum Work {
    /// Copy the directory of this name.
    Enter(CString),
    /// Set the attributes of the filled directory.
    Leave,
}

struct Copy {
    plan: TimePlan,
    /// The attribute that marks opaque directories.
    opaque: &'static str,
    links: HardLinks,
}

impl Copy {
    fn all(mut self, mut source: Descent, mut target: Descent) -> Result<(), Stop> {
        let mut work = self.fill(&source, &target)?;
        while let Some(next) = work.pop() {
            match next {
                Work::Enter(name) => {
                    source.enter(&name)?;
                    target.enter(&name)?;
                    work.append(&mut self.fill(&source, &target)?);
                }
                Work::Leave => {
                    let (from, to) = (source.leave()?, target.leave()?);
                    self.finish(&from, &to)?;
                }
            }
        }
        Ok(())
    }

    /// Sets the attributes of a directory whose entries are copied.
    fn finish(&self, from: &OwnedFd, to: &OwnedFd) -> Result<(), Stop> {
        let stat = fs::fstat(from)?;
        own(to, &stat)?;
        copy_xattrs(from, to)?;
        if is_opaque(from)? {
            fs::fsetxattr(to, self.opaque, b"y", fs::XattrFlags::empty())?;
        }
        fs::fchmod(to, Mode::from_raw_mode(stat.st_mode))?;
        let time = time_of(&stat);
        let (seconds, nanoseconds) = self.plan.dirs.get(&time).copied().unwrap_or(time);
        Ok(fs::futimens(to, &mtime(seconds, nanoseconds.into()))?)
    }

    /// Copies the content of a directory. Returns the remaining work there.
    fn fill(&mut self, from: &Descent, to: &Descent) -> Result<Vec<Work>, Stop> {
        let mut work = vec![Work::Leave];
        for (name, _) in entries(from.dir())? {
            let Some(stat) = stat_at(from.dir(), &name)? else { continue };
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                fs::mkdirat(to.dir(), &name, Mode::RWXU)?;
                work.push(Work::Enter(name));
            } else {
                self.entry((from.dir(), to.dir()), &name, &stat, from.path())?;
            }
        }
        Ok(work)
    }

    fn entry(
        &mut self,
        (from, to): (BorrowedFd<'_>, BorrowedFd<'_>),
        name: &CStr,
        stat: &Stat,
        parent: &[u8],
    ) -> Result<(), Stop> {
        // All marks of a layer may be one inode.
        if is_whiteout(stat) {
            return Ok(fs::mknodat(to, name, FileType::CharacterDevice, Mode::empty(), stat.st_rdev)?);
        }
        match self.links.link(to, name, stat, parent)? {
            Linked::Done => return Ok(()),
            Linked::First => {}
            // Two files are not one with two names.
            Linked::Refused => return Err(Stop::Refused(NoCopy::Links)),
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let source = File::from(fs::openat(from, name, flags, Mode::empty())?);
                let target = create(to, name)?;
                self.data(&source, &target, stat)?;
                own(&target, stat)?;
                copy_xattrs(&source, &target)?;
                fs::fchmod(&target, Mode::from_raw_mode(stat.st_mode))?;
            }
            FileType::Symlink => {
                fs::symlinkat(fs::readlinkat(from, name, Vec::new())?, to, name)?;
                own_at(to, name, stat)?;
            }
            kind => {
                if has_attributes(from, name)? {
                    return Err(Stop::Refused(NoCopy::SpecialFile));
                }
                fs::mknodat(to, name, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev)?;
                own_at(to, name, stat)?;
                fs::chmodat(to, name, Mode::from_raw_mode(stat.st_mode), AtFlags::empty())?;
            }
        }
        self.set_time(to, name, time_of(stat))
    }

    fn data(&self, from: &File, to: &File, stat: &Stat) -> Result<(), Stop> {
        if self.plan.must_share && stat.st_size > 0 {
            return if reflink(from, to) { Ok(()) } else { Err(Stop::Refused(NoCopy::TooLarge)) };
        }
        Ok(copy_data(from, to)?)
    }

    /// Sets the time of a file, instead of `was`.
    fn set_time(&self, dir: BorrowedFd<'_>, name: &CStr, was: FileTime) -> Result<(), Stop> {
        let time = self.plan.files.get(&was).copied().unwrap_or(was);
        fs::utimensat(dir, name, &mtime(time.0, time.1.into()), AtFlags::SYMLINK_NOFOLLOW)?;
        let found = stat_at(dir, name)?.ok_or(Errno::NOENT)?;
        if time_of(&found) != time {
            let error = io::Error::other("the filesystem does not keep times of files to the nanosecond");
            return Err(error.into());
        }
        Ok(())
    }
}

fn own(file: impl AsFd, stat: &Stat) -> io::Result<()> {
    let now = fs::fstat(&file)?;
    if (now.st_uid, now.st_gid) != (stat.st_uid, stat.st_gid) {
        fs::fchown(file, Some(fs::Uid::from_raw(stat.st_uid)), Some(fs::Gid::from_raw(stat.st_gid)))?;
    }
    Ok(())
}

fn own_at(dir: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> io::Result<()> {
    let now = stat_at(dir, name)?.ok_or(Errno::NOENT)?;
    if (now.st_uid, now.st_gid) != (stat.st_uid, stat.st_gid) {
        let (owner, group) = (fs::Uid::from_raw(stat.st_uid), fs::Gid::from_raw(stat.st_gid));
        fs::chownat(dir, name, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

/// Returns whether a special file, which cannot be opened, has extended attributes that a copy would
/// lack.
fn has_attributes(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<bool> {
    let path = [format!("/proc/self/fd/{}/", dir.as_raw_fd()).as_bytes(), name.to_bytes()].concat();
    let mut names = [0_u8; 1024];
    let length = match fs::llistxattr(OsStr::from_bytes(&path), &mut names[..]) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => return Ok(false),
        Err(Errno::RANGE) => return Ok(true),
        Err(error) => return Err(error.into()),
    };
    let private = |name: &[u8]| {
        [&b"trusted.overlay."[..], b"user.overlay.", b"security.selinux"].iter().any(|it| name.starts_with(it))
    };
    Ok(names[..length].split(|byte| *byte == 0).any(|name| !name.is_empty() && !private(name)))
}

#[cfg(test)]
mod tests;
