//! Tests of copies with other times.

use std::{
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
        net::UnixListener,
    },
    path::PathBuf,
};

use proptest::prelude::*;

use super::*;
use crate::tree::{is_opaque_at, is_whiteout_at, whiteout};

fn id_map() -> IdMap {
    if rustix::process::geteuid().is_root() { IdMap::Root } else { IdMap::Single }
}

fn request() -> Retiming {
    Retiming { span: ((100, 0), (200, 0)), changed: Vec::new(), below: (50, 0), max_bytes: 1 << 20 }
}

fn times(files: &[FileTime], dirs: &[FileTime]) -> LayerTimes {
    LayerTimes { files: files.iter().copied().collect(), dirs: dirs.iter().copied().collect(), bytes: 0 }
}

/// Returns the new times of files and directories, or why there are none, at a clock that goes on by a
/// millisecond for each look.
fn planned(times: &LayerTimes, request: &Retiming, now: FileTime) -> Result<Vec<(FileTime, FileTime)>, NoCopy> {
    let mut now = nanoseconds(now) - 1_000_000;
    let clock = || {
        now += 1_000_000;
        file_time(now)
    };
    match times.plan(request, clock) {
        Ok(plan) => {
            let plan = plan.map(|plan| (plan.files, plan.dirs)).unwrap_or_default();
            let all: BTreeMap<FileTime, FileTime> = plan.0.into_iter().chain(plan.1).collect();
            Ok(all.into_iter().collect())
        }
        Err(Stop::Refused(reason)) => Err(reason),
        Err(Stop::Failed(error)) => panic!("{error}"),
    }
}

#[test]
fn times_that_fit_stay() {
    let layer = times(&[(110, 5), (199, 0), (20, 0)], &[(150, 0)]);
    assert_eq!(planned(&layer, &request(), (300, 0)), Ok(Vec::new()));
    assert_eq!(planned(&times(&[], &[]), &request(), (300, 0)), Ok(Vec::new()));
    assert_eq!(planned(&times(&[(1, 2)], &[(7, 0)]), &request(), (300, 0)), Ok(Vec::new()), "what the step set");
}

#[test]
fn if_there_is_time_the_step_seems_to_have_run_just_before_now() {
    let layer = times(&[(110, 5), (150, 7)], &[(151, 1)]);
    let request = Retiming { below: (3000, 1), ..request() };
    let expected = [((110, 5), (3958, 5)), ((150, 7), (3998, 7)), ((151, 1), (3999, 1))];
    assert_eq!(planned(&layer, &request, (4000, 0)), Ok(expected.to_vec()));
    // What is below may be newer than all but the last second.
    let request = Retiming { below: (3958, 4), ..request };
    assert_eq!(planned(&layer, &request, (4000, 0)), Ok(expected.to_vec()));
}

#[test]
fn if_there_is_no_time_its_files_are_closer_to_each_other() {
    let layer = times(&[(110, 5), (150, 7)], &[(151, 1)]);
    let request = Retiming { below: (3999, 0), ..request() };
    let new = planned(&layer, &request, (4000, 0)).unwrap();
    let expected = [((110, 5), (3999, 500_000_001)), ((150, 7), (3999, 750_000_000)), ((151, 1), (3999, 999_999_999))];
    assert_eq!(new, expected);
    // It waits until there is room at all.
    let request = Retiming { below: (4000, 0), ..request };
    let new = planned(&layer, &request, (4000, 0)).unwrap();
    assert!(new[0].1 > (4000, 0) && new[2].1 < (4000, 4_000_000), "{new:?}");
    // Not for ever.
    let request = Retiming { below: (4100, 0), ..request };
    assert_eq!(planned(&layer, &request, (4000, 0)), Err(NoCopy::Future));
}

#[test]
fn times_that_come_from_elsewhere_follow_or_are_refused() {
    let with = |changed: &[(FileTime, FileTime)], file: FileTime| {
        let request = Retiming { changed: changed.to_vec(), ..request() };
        planned(&times(&[file], &[]), &request, (300, 0))
    };
    assert_eq!(with(&[((20, 5), (70, 1))], (20, 5)), Ok(vec![((20, 5), (70, 1))]), "copied up, or with its time");
    assert_eq!(with(&[((20, 5), (70, 1))], (19, 5)), Ok(Vec::new()));
    let by_chance = [((20, 5), (70, 1)), ((20, 5), (70, 9_000_000))];
    assert_eq!(with(&by_chance, (20, 5)), Ok(vec![((20, 5), (70, 9_000_000))]), "within a tick of the clock");
    for (changed, file) in [
        // It may be the time of either.
        (&[((20, 5), (70, 1)), ((20, 5), (71, 1))][..], (20, 5)),
        // It may be a time that has nothing to do with that of the file.
        (&[((20, 0), (70, 1))], (20, 0)),
        // Copied without its fraction.
        (&[((20, 5), (70, 1))], (20, 0)),
        // By the clock, or copied.
        (&[((120, 5), (170, 5))], (120, 5)),
        // Computed from the clock.
        (&[], (201, 0)),
    ] {
        assert_eq!(with(changed, file), Err(NoCopy::BorrowedTime), "{changed:?} {file:?}");
    }
    // What the clock gave is later than what was copied.
    let request = Retiming { changed: vec![((20, 5), (290, 1))], ..request() };
    let new = planned(&times(&[(20, 5), (110, 0)], &[]), &request, (300, 0)).unwrap();
    assert_eq!(new, [((20, 5), (290, 1)), ((110, 0), (299, 0))]);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_order_stays_and_all_is_between_what_is_below_and_now(
        clock in prop::collection::btree_set((100_i64..200, 0_u32..1_000_000_000), 1..20),
        set in prop::collection::btree_set((0_i64..100, 0_u32..1_000_000_000), 0..5),
        below in (0_i64..400, 0_u32..1_000_000_000),
        passed in 0_i64..400,
    ) {
        let now = file_time(nanoseconds(below.max((200, 0))) + i128::from(passed) * SECOND);
        let files: Vec<FileTime> = clock.iter().chain(&set).copied().collect();
        let request = Retiming { below, ..request() };
        let new: BTreeMap<_, _> = planned(&times(&files, &[]), &request, now).unwrap().into_iter().collect();
        let new_of = |time: &FileTime| new.get(time).copied().unwrap_or(*time);
        prop_assert!(set.iter().all(|time| new_of(time) == *time));
        let moved: Vec<FileTime> = clock.iter().map(new_of).collect();
        prop_assert!(moved.is_sorted_by(|a, b| a < b), "{moved:?}");
        prop_assert!(moved[0] > below && set.last().is_none_or(|set| moved[0] > *set), "{moved:?}");
        // The clock of this test went on for some looks.
        prop_assert!(nanoseconds(moved[moved.len() - 1]) < nanoseconds(now) + SECOND, "{moved:?}");
    }
}

fn set_time(path: &Path, (seconds, nanoseconds): FileTime) {
    let times = mtime(seconds, nanoseconds.into());
    fs::utimensat(fs::CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn time_at(path: &Path) -> FileTime {
    let stat = path.symlink_metadata().unwrap();
    (stat.mtime(), u32::try_from(stat.mtime_nsec()).unwrap())
}

/// A layer and the empty directory for its copy.
struct Layer(tempfile::TempDir);

impl Layer {
    fn new() -> Self {
        let it = Self(tempfile::tempdir().unwrap());
        for dir in ["layer", "copy"] {
            std::fs::create_dir(it.0.path().join(dir)).unwrap();
        }
        it
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join("layer").join(name)
    }

    fn copy(&self, name: &str) -> PathBuf {
        self.0.path().join("copy").join(name)
    }

    fn retime(&self, request: &Retiming) -> io::Result<Retimed> {
        retime(&self.path(""), &self.copy(""), id_map(), request)
    }
}

#[test]
fn everything_but_times_is_kept() {
    let layer = Layer::new();
    let path = |name: &str| layer.path(name);
    std::fs::create_dir_all(path("d/e")).unwrap();
    std::fs::write(path("d/file"), "text").unwrap();
    std::fs::set_permissions(path("d/file"), std::fs::Permissions::from_mode(0o4751)).unwrap();
    std::fs::hard_link(path("d/file"), path("d/e/again")).unwrap();
    let sparse = File::create(path("sparse")).unwrap();
    sparse.set_len(1 << 30).unwrap();
    symlink("d/file", path("link")).unwrap();
    fs::mknodat(fs::CWD, path("pipe"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    let _socket = UnixListener::bind(path("socket")).unwrap();
    for gone in ["gone", "d/gone"] {
        whiteout(&path(gone)).unwrap();
    }
    std::fs::set_permissions(path("d"), std::fs::Permissions::from_mode(0o2750)).unwrap();
    std::fs::set_permissions(path(""), std::fs::Permissions::from_mode(0o711)).unwrap();
    let set = |name: &str, attribute: &str, value: &[u8]| {
        fs::setxattr(path(name), attribute, value, fs::XattrFlags::empty()).is_ok()
    };
    let has_attributes = set("d/file", "user.note", b"x") && set("d", "user.note", b"y");
    let is_marked = set("d/e", id_map().opaque_xattr(), b"y");
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::lchown(path("link"), Some(7), Some(8)).unwrap();
        std::os::unix::fs::chown(path("d/e"), Some(7), Some(8)).unwrap();
    }
    let names = ["", "d", "d/e", "d/file", "sparse", "link", "pipe", "socket"];
    for (name, second) in names.iter().zip(101..) {
        set_time(&path(name), (second, 7));
    }
    let request = Retiming { below: (1000, 0), ..request() };
    assert_eq!(layer.retime(&request).unwrap(), Retimed::Copied);
    let facts = |path: &Path| {
        let stat = path.symlink_metadata().unwrap();
        (stat.mode(), stat.uid(), stat.gid(), stat.len() * u64::from(stat.is_file()), stat.rdev(), stat.is_dir())
    };
    for name in names.iter().chain(&["d/e/again", "gone", "d/gone"]) {
        assert_eq!(facts(&layer.copy(name)), facts(&path(name)), "{name}");
    }
    assert_eq!(std::fs::read(layer.copy("d/e/again")).unwrap(), b"text");
    assert_eq!(std::fs::read_link(layer.copy("link")).unwrap(), Path::new("d/file"));
    let stat = |name: &str| layer.copy(name).symlink_metadata().unwrap();
    assert_eq!((stat("d/file").ino(), stat("d/file").nlink()), (stat("d/e/again").ino(), 2));
    assert_ne!(stat("d/file").ino(), path("d/file").symlink_metadata().unwrap().ino());
    assert!(stat("sparse").blocks() < 100, "{}", stat("sparse").blocks());
    assert!(stat("pipe").file_type().is_fifo() && stat("socket").file_type().is_socket());
    assert!(is_whiteout_at(&stat("gone")) && is_whiteout_at(&stat("d/gone")));
    if has_attributes {
        for (name, expected) in [("d/file", b"x"), ("d", b"y")] {
            let mut value = [0; 4];
            assert_eq!(fs::getxattr(layer.copy(name), "user.note", &mut value[..]), Ok(1), "{name}");
            assert_eq!(&value[..1], expected);
        }
    }
    assert_eq!(is_opaque_at(&layer.copy("d/e")).unwrap(), is_marked);
    let new: Vec<FileTime> = names.iter().map(|name| time_at(&layer.copy(name))).collect();
    assert!(new.is_sorted_by(|a, b| a.0 + 1 == b.0 && a.1 == 7 && b.1 == 7), "{new:?}");
    assert!(new[0] > (1000, 0) && new[7] < file_clock(), "{new:?}");
    assert_eq!(time_at(&path("d/file")), (104, 7), "the layer itself is as it was");
}

#[test]
fn what_is_too_large_is_copied_only_if_its_data_is_shared() {
    let layer = Layer::new();
    std::fs::write(layer.path("file"), vec![7; 100_000]).unwrap();
    set_time(&layer.path("file"), (150, 0));
    let request = Retiming { below: (1000, 0), max_bytes: 1000, ..request() };
    let test =
        |name: &str| File::options().read(true).write(true).create_new(true).open(layer.0.path().join(name)).unwrap();
    let file = File::open(layer.path("file")).unwrap();
    let expected = if reflink(&file, &test("test")) { Retimed::Copied } else { Retimed::Refused(NoCopy::TooLarge) };
    assert_eq!(layer.retime(&request).unwrap(), expected);
}

#[test]
fn a_layer_that_cannot_be_read_is_an_error() {
    let layer = Layer::new();
    std::fs::remove_dir(layer.path("")).unwrap();
    assert!(layer.retime(&request()).is_err());
}
