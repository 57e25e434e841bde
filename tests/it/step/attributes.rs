//! The modes and times of a source on a worker without room for them.

use std::{
    fs::{self, File},
    io::ErrorKind,
    os::fd::AsFd,
};

use hm_exec::tree::attributes::{EntryAttributes, encode, restore};
use rustix::fs::FileType;

use crate::support::filesystem::Filesystem;

#[test]
fn a_full_disk_is_reported_as_such_while_attributes_are_restored() {
    let Some(disk) = Filesystem::tmpfs(1) else { return };
    let (source, layer) = (tempfile::tempdir().unwrap(), disk.dir().join("layer"));
    fs::write(source.path().join("large"), vec![b'x'; 2 << 20]).unwrap();
    fs::create_dir(&layer).unwrap();
    let entry = |path: &'static str, kind| EntryAttributes { path: path.as_bytes(), kind, mode: 0o700, mtime: (7, 0) };
    let list = encode([entry("", FileType::Directory), entry("large", FileType::RegularFile)]).unwrap();
    let (from, to) = (File::open(source.path()).unwrap(), File::open(&layer).unwrap());
    let error = restore(&list[..], from.as_fd(), to.as_fd()).unwrap_err();
    // Only this kind makes the failure of a step a lasting one.
    assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
    // With room, the same list can be restored.
    drop(disk);
    let layer = tempfile::tempdir().unwrap();
    let to = File::open(layer.path()).unwrap();
    assert!(restore(&list[..], from.as_fd(), to.as_fd()).unwrap());
    assert_eq!(fs::metadata(layer.path().join("large")).unwrap().len(), 2 << 20);
}
