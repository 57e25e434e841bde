use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use super::*;
use crate::tree::open_dir;

fn entry(path: &str, kind: FileType, mode: u32, mtime: (i64, u32)) -> EntryAttributes<'_> {
    EntryAttributes { path: path.as_bytes(), kind, mode, mtime }
}

/// Restores attributes over the tree `from`, and returns the layer's path if it corrects anything.
fn restored(top: &Path, entries: &[EntryAttributes<'_>]) -> io::Result<Option<PathBuf>> {
    let to = top.join("to");
    fs::create_dir(&to).unwrap();
    let list = encode(entries.iter().copied()).unwrap();
    let (from, made) = (open_dir(&top.join("from")).unwrap(), open_dir(&to).unwrap());
    Ok(restore(&list[..], from.as_fd(), made.as_fd())?.then_some(to))
}

fn stat(path: &Path) -> (u32, i64, i64) {
    let metadata = fs::symlink_metadata(path).unwrap();
    (metadata.mode() & 0o7777, metadata.mtime(), metadata.mtime_nsec())
}

fn tree() -> tempfile::TempDir {
    let top = tempfile::tempdir().unwrap();
    let from = top.path().join("from");
    fs::create_dir_all(from.join("a/b")).unwrap();
    fs::write(from.join("a/b/file"), "content").unwrap();
    fs::write(from.join("other"), "").unwrap();
    symlink("../../../etc", from.join("a/link")).unwrap();
    for path in ["a/b/file", "other"] {
        fs::set_permissions(from.join(path), Permissions::from_mode(0o444)).unwrap();
    }
    top
}

const DIR: FileType = FileType::Directory;
const FILE: FileType = FileType::RegularFile;

#[test]
fn a_layer_corrects_what_differs_and_nothing_else() {
    let top = tree();
    let same = stat(&top.path().join("from/other"));
    let same = entry("other", FILE, same.0, (same.1, same.2.try_into().unwrap()));
    let entries = [
        entry("", DIR, 0o755, (7, 0)),
        entry("a", DIR, 0o500, (-1, 5)),
        entry("a/b", DIR, 0o2775, (2, 0)),
        entry("a/b/file", FILE, 0o600, (3, 999_999_999)),
        entry("a/link", FileType::Symlink, 0o777, (4, 0)),
        same,
    ];
    let to = restored(top.path(), &entries).unwrap().unwrap();
    assert_eq!(stat(&to), (0o755, 7, 0));
    assert_eq!(stat(&to.join("a")), (0o500, -1, 5));
    assert_eq!(stat(&to.join("a/b")), (0o2775, 2, 0));
    assert_eq!(stat(&to.join("a/b/file")), (0o600, 3, 999_999_999));
    assert_eq!(fs::read_to_string(to.join("a/b/file")).unwrap(), "content");
    assert_eq!(
        (fs::read_link(to.join("a/link")).unwrap().to_str(), stat(&to.join("a/link")).1),
        (Some("../../../etc"), 4)
    );
    assert!(!to.join("other").exists());
    assert_eq!(stat(&top.path().join("from/a/b/file")).0, 0o444, "the tree is unchanged");
    fs::set_permissions(to.join("a"), Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn a_tree_that_has_its_attributes_needs_no_layer() {
    let top = tree();
    let of = |path: &'static str, kind| {
        let (mode, seconds, nanos) = stat(&top.path().join("from").join(path));
        entry(path, kind, mode, (seconds, nanos.try_into().unwrap()))
    };
    let entries = [of("", DIR), of("a", DIR), of("a/b", DIR), of("a/b/file", FILE), of("other", FILE)];
    assert_eq!(restored(top.path(), &entries).unwrap(), None);
    assert_eq!(fs::read_dir(top.path().join("to")).unwrap().count(), 0);
}

#[test]
fn a_hostile_list_reaches_nothing_outside_of_the_tree() {
    let root = entry("", DIR, 0o755, (0, 0));
    for path in
        ["../from/other", "..", ".", "/etc/passwd", "a/link/passwd", "nowhere/file", "other/x", "a/", "a//b", "a\0b"]
    {
        let entries = [
            root,
            entry("a", DIR, 0o755, (0, 0)),
            entry("a/link", FileType::Symlink, 0, (0, 0)),
            entry(path, FILE, 0o777, (0, 0)),
        ];
        let top = tree();
        let error = restored(top.path(), &entries).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{path}: {error}");
    }
    for (path, kind) in [("a/link", DIR), ("other", DIR), ("a/b/file", FileType::Fifo), ("missing", FILE), ("a", DIR)] {
        let top = tree();
        let entries = [root, entry("a", DIR, 0, (0, 0)), entry(path, kind, 0, (0, 0))];
        assert!(restored(top.path(), &entries).is_err(), "{path}");
    }
}

#[test]
fn a_damaged_list_is_an_error() {
    let top = tree();
    let list = encode([entry("", DIR, 0o755, (0, 0)), entry("other", FILE, 0o644, (1, 1))]).unwrap();
    fs::create_dir(top.path().join("to")).unwrap();
    let (from, to) = (open_dir(&top.path().join("from")).unwrap(), open_dir(&top.path().join("to")).unwrap());
    let long = zstd::encode_all(&[&0o100_644_u32.to_le_bytes()[..], &[0; 12], &[0xff; 4]].concat()[..], 1).unwrap();
    for damaged in
        [&b""[..], b"hm-exec attributes 2\n", &list[..list.len() - 3], &list[..25], &[HEADER, &long].concat(), &[0; 64]]
    {
        assert!(restore(damaged, from.as_fd(), to.as_fd()).is_err(), "{damaged:?}");
    }
}
