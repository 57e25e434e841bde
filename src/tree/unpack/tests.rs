//! Archives, honest and hostile.

use std::{
    fs,
    io::Write,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::PathBuf,
};

use tar::{EntryType, Header};

use super::{super::marks, *};

/// An archive in the making.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn entry(mut self, kind: EntryType, path: &str, link: &str, data: &[u8]) -> Self {
        self.push(kind, path, link, data, |_| {});
        self
    }

    fn push(&mut self, kind: EntryType, path: &str, link: &str, data: &[u8], with: impl FnOnce(&mut Header)) {
        let mut header = Header::new_gnu();
        // As bytes: the library's own way refuses what is to be tested.
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

    /// Extended records for the entry that follows.
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

/// A directory to unpack to, with something beside it that no archive may touch.
struct Place {
    top: tempfile::TempDir,
}

impl Place {
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
    let place = Place::new();
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
    let place = Place::new();
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
    let plain = Place::new().unpack(&tar).unwrap();
    for blob in [gzip.finish().unwrap(), zstd::encode_all(&tar[..], 1).unwrap()] {
        let place = Place::new();
        assert_eq!(place.unpack(&blob).unwrap(), plain);
        assert_eq!(place.read("file"), "data");
        // Cut short at any of some places, it is damaged.
        for cut in [blob.len() - 1, blob.len() / 2, 12] {
            let error = Place::new().unpack(&blob[..cut]).unwrap_err();
            assert!(matches!(error, UnpackError::Damaged { .. }), "{error}");
        }
    }
}

#[test]
fn removed_entries_become_overlay_marks() {
    let place = Place::new();
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
    let is_whiteout = |path: &str| marks::is_whiteout_at(&place.stat(path));
    assert!(is_whiteout("dir/gone") && !is_whiteout("dir/new"));
    for opaque in ["opaque", "again", "before"] {
        assert!(marks::is_opaque_at(&place.root().join(opaque)).unwrap(), "{opaque}");
    }
    assert!(!marks::is_opaque_at(&place.root().join("dir")).unwrap());
    assert_eq!(place.read("newer"), "1");
    assert!(!place.root().join("opaque/.wh..wh..opq").exists());
}

#[test]
fn an_archive_may_say_things_twice() {
    let place = Place::new();
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
        .file("was/inner", "in");
    place.unpack(&tar.end()).unwrap();
    assert_eq!((place.read("file"), place.read("other")), ("new".into(), "old".into()));
    assert_eq!((place.read("link"), place.read("dir")), ("not through it".into(), "a file now".into()));
    assert_eq!(place.read("was/inner"), "in");
}

#[test]
fn hostile_archives_are_refused_and_write_nothing_outside() {
    let file = |path: &str| Tar::default().file(path, "evil").end();
    let through = |target: &str| Tar::default().symlink("link", target).file("link/evil", "evil").end();
    let link = |target: &str| Tar::default().file("file", "x").hard_link("evil", target).end();
    let deep = "d/".repeat(200) + "file";
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("a name that leads out", file("../outside/evil")),
        ("a name that leads out later", file("a/../../outside/evil")),
        ("a name that is only dots", file("..")),
        ("a long name that leads out", Tar::default().extended(&[("path", b"../outside/evil")]).file("x", "").end()),
        ("a long name with a zero byte", Tar::default().extended(&[("path", b"a\0b")]).file("x", "").end()),
        ("writing through a link that leads out", through("../outside")),
        ("writing through an absolute link", through("/tmp")),
        ("writing through a link that stays inside", through(".")),
        ("making a directory through a link", Tar::default().symlink("link", "../outside").dir("link/evil").end()),
        ("a hard link through a link", Tar::default().symlink("l", "../outside").hard_link("evil", "l/kept").end()),
        ("removing through a link", Tar::default().symlink("l", "../outside").file("l/.wh.kept", "").end()),
        ("a hard link that leads out", link("../outside/kept")),
        ("a hard link to an absolute path", link("/etc/passwd")),
        ("a hard link to nothing", link("nowhere")),
        ("a hard link to itself", link("evil")),
        ("a hard link to a directory", Tar::default().dir("d").hard_link("evil", "d").end()),
        ("a symbolic link to nothing", Tar::default().symlink("l", "").end()),
        ("a file for a directory that is filled", Tar::default().file("d/f", "").file("d", "").end()),
        ("a file in a file", Tar::default().file("f", "").file("f/g", "").end()),
        (
            "a file below too many directories",
            Tar::default().extended(&[("path", deep.as_bytes())]).file("x", "").end(),
        ),
        ("removing the parent", file("dir/.wh...")),
        ("removing nothing", file("dir/.wh.")),
        ("a sparse file", Tar::default().entry(EntryType::GNUSparse, "s", "", b"").end()),
        (
            "another sparse file",
            Tar::default().extended(&[("GNU.sparse.realsize", b"99999999999")]).file("s", "").end(),
        ),
        ("an unknown kind", Tar::default().entry(EntryType::new(b'Z'), "z", "", b"").end()),
        ("an endless extended header", {
            let mut tar = Tar::default();
            tar.push(EntryType::XHeader, "x", "", b"", |header| header.set_size(1 << 40));
            tar.end()
        }),
        ("a file of an impossible size", {
            let mut tar = Tar::default();
            tar.push(EntryType::Regular, "x", "", b"", |header| {
                header.as_mut_bytes()[124..136].copy_from_slice(&[0xff; 12]);
                header.as_mut_bytes()[124] = 0x80;
            });
            tar.end()
        }),
        (
            "a malformed extended header",
            Tar::default().entry(EntryType::XHeader, "x", "", b"7 a\n").file("f", "").end(),
        ),
        ("an extended header for nothing", Tar::default().extended(&[("path", b"x")]).end()),
        ("a wrong checksum", {
            let mut tar = file("x");
            tar[0] = b'y';
            tar
        }),
        ("an end in the middle of a file", file("x")[..514].to_vec()),
        ("an end in the middle of a header", file("x")[..100].to_vec()),
        ("no archive at all", vec![b'x'; 4096]),
    ];
    for (what, tar) in cases {
        let place = Place::new();
        let error = place.unpack(&tar).expect_err(what);
        let is_typed = matches!(error, UnpackError::Refused { .. } | UnpackError::Damaged { .. });
        assert!(is_typed, "{what}: {error}");
        place.assert_nothing_outside(what);
    }
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
        let place = Place::new();
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
fn bombs_go_off_at_the_limit() {
    let place = Place::new();
    let zeros = "\0".repeat(1 << 20);
    let tar = Tar::default().file("zeros", &zeros).end();
    let bomb = zstd::encode_all(&tar[..], 1).unwrap();
    assert!(bomb.len() < 1 << 14);
    let limits = UnpackLimits { bytes: 1 << 19, entries: 10 };
    let error = unpack(&bomb[..], &place.root(), id_map(), limits).unwrap_err();
    assert_eq!(error, UnpackError::TooLarge { limit: 1 << 19 });
    assert!(place.stat("zeros").len() <= 1 << 19);

    // What follows the archive's end counts, too.
    let mut tar = Tar::default().end();
    tar.resize(1 << 20, 0);
    let error = unpack(&tar[..], &Place::new().root(), id_map(), limits).unwrap_err();
    assert_eq!(error, UnpackError::TooLarge { limit: 1 << 19 });

    let many = (0..11).fold(Tar::default(), |tar, index| tar.file(&format!("f{index}"), "")).end();
    let error = unpack(&many[..], &Place::new().root(), id_map(), limits).unwrap_err();
    assert_eq!(error, UnpackError::TooManyEntries { limit: 10 });
}

#[test]
fn attributes_of_overlayfs_are_no_part_of_an_image() {
    let place = Place::new();
    let attributes: &[(&str, &[u8])] =
        &[("SCHILY.xattr.trusted.overlay.redirect", b"/etc"), ("SCHILY.xattr.user.overlay.opaque", b"y")];
    let tar = Tar::default().extended(attributes).dir("dir").end();
    place.unpack(&tar).unwrap();
    assert!(!marks::is_opaque_at(&place.root().join("dir")).unwrap());
}

#[test]
fn names_in_errors_are_made_harmless() {
    let error = Place::new().unpack(&Tar::default().file("a\x1b[31m/../b", "").end()).unwrap_err();
    assert!(!error.to_string().contains('\x1b'), "{error}");
    assert!(error.to_string().contains("\\u{1b}"), "{error}");
}
