//! What archives become, and the tools to make them.

mod hostile;

use std::{
    fs,
    io::Write,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::PathBuf,
};

use tar::{EntryType, Header};

use super::*;
use crate::tree::whiteouts;

/// An archive under construction.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn entry(mut self, kind: EntryType, path: &str, link: &str, data: &[u8]) -> Self {
        self.push(kind, path, link, data, |_| {});
        self
    }

    fn push(&mut self, kind: EntryType, path: &str, link: &str, data: &[u8], with: impl FnOnce(&mut Header)) {
        let mut header = Header::new_gnu();
        // Written as bytes, because the library's functions refuse the names under test.
        let bytes = header.as_mut_bytes();
        bytes[..path.len()].copy_from_slice(path.as_bytes());
        bytes[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
        let (uid, gid) = me();
        header.set_uid(uid.into());
        header.set_gid(gid.into());
        header.set_mtime(1_000_000_000);
        with(&mut header);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    fn dir(self, path: &str) -> Self {
        self.entry(EntryType::Directory, path, "", b"")
    }

    fn file(self, path: &str, data: &str) -> Self {
        self.entry(EntryType::Regular, path, "", data.as_bytes())
    }

    fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, path, target, b"")
    }

    fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Link, path, target, b"")
    }

    /// Adds extended records for the entry that follows.
    fn extended(self, records: &[(&str, &[u8])]) -> Self {
        let mut text = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + rest.to_string().len();
            length = rest + length.to_string().len();
            text.extend_from_slice(format!("{length} {key}=").as_bytes());
            text.extend_from_slice(value);
            text.push(b'\n');
        }
        self.entry(EntryType::XHeader, "pax", "", &text)
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

fn me() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

fn id_map() -> IdMap {
    if rustix::process::geteuid().is_root() { IdMap::Root } else { IdMap::Single }
}

/// A directory to unpack to, beside a file that no archive may change.
struct Target {
    top: tempfile::TempDir,
}

impl Target {
    fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir(top.path().join("into")).unwrap();
        fs::create_dir(top.path().join("outside")).unwrap();
        fs::write(top.path().join("outside/kept"), "kept").unwrap();
        Self { top }
    }

    fn root(&self) -> PathBuf {
        self.top.path().join("into")
    }

    fn unpack(&self, tar: &[u8]) -> Result<Unpacked, UnpackError> {
        unpack(tar, &self.root(), id_map(), UnpackLimits::default())
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root().join(path)).unwrap()
    }

    fn stat(&self, path: &str) -> fs::Metadata {
        fs::symlink_metadata(self.root().join(path)).unwrap()
    }

    fn assert_nothing_outside(&self, what: &str) {
        let names = |path: &str| {
            let entries = fs::read_dir(self.top.path().join(path)).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
        };
        let mut top = names("");
        top.sort();
        assert_eq!(top, ["into", "outside"], "{what}");
        assert_eq!(names("outside"), ["kept"], "{what}");
        assert_eq!(fs::read_to_string(self.top.path().join("outside/kept")).unwrap(), "kept", "{what}");
    }
}

#[test]
fn files_have_what_the_archive_says() {
    let place = Target::new();
    let mut tar = Tar::default().dir("./").dir("bin/").file("/bin/tool", "#!").hard_link("again", "bin/tool");
    tar = tar.symlink("bin/sh", "../../../bin/tool").symlink("abs", "/etc/passwd");
    tar = tar.extended(&[("mtime", b"1234567890.987654321"), ("SCHILY.xattr.user.odd", b"a\nb")]);
    tar.push(EntryType::Regular, "bin/su", "", b"su", |header| header.set_mode(0o4755));
    tar.push(EntryType::Directory, "locked", "", b"", |header| header.set_mode(0o500));
    tar = tar.file("locked/inner", "in").entry(EntryType::Fifo, "pipe", "", b"").file("deep/er/file", "deep");
    let bytes = tar.end();
    let unpacked = place.unpack(&bytes).unwrap();
    assert_eq!(unpacked.bytes, bytes.len() as u64);

    assert_eq!(place.read("again"), "#!");
    assert_eq!(place.stat("again").ino(), place.stat("bin/tool").ino());
    assert_eq!(fs::read_link(place.root().join("bin/sh")).unwrap().to_str(), Some("../../../bin/tool"));
    assert_eq!(fs::read_link(place.root().join("abs")).unwrap().to_str(), Some("/etc/passwd"));
    let su = place.stat("bin/su");
    assert_eq!((su.mode() & 0o7777, su.mtime(), su.mtime_nsec()), (0o4755, 1_234_567_890, 987_654_321));
    assert_eq!(place.stat("locked").mode() & 0o7777, 0o500);
    for (path, mtime) in [("bin", 1_000_000_000), ("abs", 1_000_000_000), ("locked", 1_000_000_000), ("deep", 0)] {
        assert_eq!(place.stat(path).mtime(), mtime, "{path}");
    }
    assert!(place.stat("pipe").file_type().is_fifo());
    assert_eq!(place.read("deep/er/file"), "deep");
    let mut value = [0; 8];
    match rustix::fs::getxattr(place.root().join("bin/su"), "user.odd", &mut value[..]) {
        Ok(length) => assert_eq!(&value[..length], b"a\nb"),
        Err(error) => assert_eq!(error, rustix::io::Errno::NOTSUP),
    }
    fs::set_permissions(place.root().join("locked"), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn owners_are_kept_as_root() {
    if id_map() != IdMap::Root {
        return;
    }
    let place = Target::new();
    let mut tar = Tar::default();
    for (kind, path) in [(EntryType::Regular, "file"), (EntryType::Directory, "dir"), (EntryType::Symlink, "link")] {
        tar.push(kind, path, "target", b"", |header| {
            header.set_uid(70_000);
            header.set_gid(43);
            header.set_mode(0o2755);
        });
    }
    place.unpack(&tar.end()).unwrap();
    for path in ["file", "dir", "link"] {
        assert_eq!((place.stat(path).uid(), place.stat(path).gid()), (70_000, 43), "{path}");
    }
    assert_eq!(place.stat("file").mode() & 0o7777, 0o2755);
}

#[test]
fn compressed_archives_are_the_same_layer() {
    let tar = Tar::default().file("file", "data").end();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    let plain = Target::new().unpack(&tar).unwrap();
    for blob in [gzip.finish().unwrap(), zstd::encode_all(&tar[..], 1).unwrap()] {
        let place = Target::new();
        assert_eq!(place.unpack(&blob).unwrap(), plain);
        assert_eq!(place.read("file"), "data");
        // If it is cut at any of these places, it is damaged.
        for cut in [blob.len() - 1, blob.len() / 2, 12] {
            let error = Target::new().unpack(&blob[..cut]).unwrap_err();
            assert!(matches!(error, UnpackError::Damaged { .. }), "{error}");
        }
    }
}

#[test]
fn removed_entries_become_overlay_marks() {
    let place = Target::new();
    let tar = Tar::default()
        .file("dir/.wh.gone", "")
        .file("dir/new", "")
        .file("opaque/.wh..wh..opq", "")
        .file("opaque/kept", "")
        .file(".wh..wh.plnk/1", "")
        .file(".wh.again", "")
        .dir("again")
        .dir("before")
        .file(".wh.before", "")
        .file("newer", "1")
        .file(".wh.newer", "");
    match place.unpack(&tar.end()) {
        Err(UnpackError::Io { doing, .. }) if doing.contains("opaque") || doing.contains("removed") => return,
        unpacked => drop(unpacked.unwrap()),
    }
    let is_whiteout = |path: &str| whiteouts::is_whiteout_at(&place.stat(path));
    assert!(is_whiteout("dir/gone") && !is_whiteout("dir/new"));
    for opaque in ["opaque", "again", "before"] {
        assert!(whiteouts::is_opaque_at(&place.root().join(opaque)).unwrap(), "{opaque}");
    }
    assert!(!whiteouts::is_opaque_at(&place.root().join("dir")).unwrap());
    assert_eq!(place.read("newer"), "1");
    assert!(!place.root().join("opaque/.wh..wh..opq").exists());
}

#[test]
fn an_archive_may_say_things_twice() {
    let place = Target::new();
    let tar = Tar::default()
        .file("file", "old")
        .hard_link("other", "file")
        .file("file", "new")
        .symlink("link", "file")
        .file("link", "not through it")
        .dir("dir")
        .file("dir", "a file now")
        .file("was", "")
        .dir("was")
        .file("was/inner", "in")
        .dir("filled")
        .file("filled/deep/er/file", "x")
        .symlink("filled/link", "/filled")
        .file("filled", "no more");
    place.unpack(&tar.end()).unwrap();
    assert_eq!(place.read("filled"), "no more");
    assert_eq!((place.read("file"), place.read("other")), ("new".into(), "old".into()));
    assert_eq!((place.read("link"), place.read("dir")), ("not through it".into(), "a file now".into()));
    assert_eq!(place.read("was/inner"), "in");
}

#[test]
fn the_last_of_several_headers_counts() {
    let place = Target::new();
    let mut tar = Tar::default().extended(&[("path", b"first"), ("mtime", b"5"), ("SCHILY.xattr.user.a", b"1")]);
    tar = tar.extended(&[("path", b"second"), ("uid", b"")]).file("x", "data");
    // A name in GNU's format takes precedence, at any position.
    tar = tar.entry(EntryType::GNULongName, "././@LongLink", "", b"long\0").extended(&[("path", b"pax")]).file("y", "");
    // Docker ignores headers about all members that follow.
    tar = tar.entry(EntryType::XGlobalHeader, "pax_global_header", "", b"15 comment=abcd\n").file("z", "");
    place.unpack(&tar.end()).unwrap();
    assert_eq!((place.read("second"), place.stat("second").mtime()), ("data".into(), 1_000_000_000));
    let mut names: Vec<_> = fs::read_dir(place.root()).unwrap().map(|it| it.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["long", "second", "z"]);
    let mut value = [0; 8];
    assert!(rustix::fs::getxattr(place.root().join("second"), "user.a", &mut value[..]).is_err());
}

/// GNU tar's output for a file with holes, in each of its formats.
#[test]
fn sparse_files_keep_their_holes() {
    let top = tempfile::tempdir().unwrap();
    let file = fs::File::create(top.path().join("sp")).unwrap();
    // More parts than fit in a header.
    for part in 0..40_u64 {
        std::os::unix::fs::FileExt::write_all_at(&file, format!("part {part}").as_bytes(), part << 17).unwrap();
    }
    file.set_len(50 << 17).unwrap();
    fs::write(top.path().join("plain"), "plain").unwrap();
    let content = fs::read(top.path().join("sp")).unwrap();
    let is_kept = |stat: &fs::Metadata| stat.blocks() * 512 < stat.len() / 2;
    let can_have_holes = is_kept(&fs::metadata(top.path().join("sp")).unwrap());
    for format in [&["--format=gnu"][..], &["--format=posix", "--sparse-version=0.0"]]
        .into_iter()
        .chain([&["--format=posix", "--sparse-version=0.1"][..], &["--format=posix", "--sparse-version=1.0"]])
    {
        let mut tar = std::process::Command::new("tar");
        tar.args(["--sparse", "-cf", "-"]).args(format).args(["-C", top.path().to_str().unwrap(), "sp", "plain"]);
        let Ok(output) = tar.output() else { return };
        if !output.status.success() {
            return;
        }
        let place = Target::new();
        place.unpack(&output.stdout).unwrap();
        assert!(fs::read(place.root().join("sp")).unwrap() == content, "{format:?}");
        assert!(!can_have_holes || is_kept(&place.stat("sp")), "{format:?}");
        assert_eq!(place.read("plain"), "plain");
        let cut = Target::new().unpack(&output.stdout[..output.stdout.len() / 3]).unwrap_err();
        assert!(cut.to_string().contains("`sp`"), "{cut}");
    }
    // A map alone cannot make a file larger than the limit.
    let records: &[(&str, &[u8])] = &[("GNU.sparse.size", b"99999999999999"), ("GNU.sparse.map", b"0,0")];
    let bomb = Tar::default().extended(records).file("s", "").end();
    assert!(matches!(Target::new().unpack(&bomb).unwrap_err(), UnpackError::TooLarge { .. }));
}

#[test]
fn devices_are_for_root() {
    let device = |path: &str| Tar::default().entry(EntryType::Char, path, "", b"");
    let with_numbers = |path: &str, major, minor| {
        let mut tar = Tar::default();
        tar.push(EntryType::Char, path, "", b"", |header| {
            header.set_device_major(major).unwrap();
            header.set_device_minor(minor).unwrap();
        });
        tar.end()
    };
    let unpack_as = |tar: &[u8], id_map| {
        let place = Target::new();
        let unpacked = unpack(tar, &place.root(), id_map, UnpackLimits::default());
        (unpacked, place)
    };
    let (unpacked, _) = unpack_as(&with_numbers("null", 1, 3), IdMap::Single);
    assert!(unpacked.unwrap_err().to_string().contains("only root"));
    let (unpacked, place) = unpack_as(&with_numbers("dev/null", 1, 3), IdMap::Single);
    unpacked.unwrap();
    assert!(!place.root().join("dev/null").exists());
    let (unpacked, _) = unpack_as(&device("fake").end(), IdMap::Root);
    assert!(unpacked.is_err(), "it would count as a mark of overlayfs");
    if id_map() == IdMap::Root {
        let (unpacked, place) = unpack_as(&with_numbers("null", 1, 3), IdMap::Root);
        match unpacked {
            Ok(_) => assert_eq!(place.stat("null").rdev(), rustix::fs::makedev(1, 3)),
            Err(error) => assert!(error.to_string().contains("make the device"), "{error}"),
        }
    }
}

#[test]
fn attributes_of_overlayfs_are_no_part_of_an_image() {
    let place = Target::new();
    let attributes: &[(&str, &[u8])] =
        &[("SCHILY.xattr.trusted.overlay.redirect", b"/etc"), ("SCHILY.xattr.user.overlay.opaque", b"y")];
    let tar = Tar::default().extended(attributes).dir("dir").end();
    place.unpack(&tar).unwrap();
    assert!(!whiteouts::is_opaque_at(&place.root().join("dir")).unwrap());
}
