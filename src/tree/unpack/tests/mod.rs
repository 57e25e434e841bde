//! Legitimate and hostile archives.

use std::{
    fs,
    io::Write,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::PathBuf,
};

use tar::{EntryType, Header};

use super::{super::marks, *};

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
        // If it is cut at any of these places, it is damaged.
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
fn hostile_archives_are_refused_and_write_nothing_outside() {
    let file = |path: &str| Tar::default().file(path, "evil").end();
    let link = |target: &str| Tar::default().file("file", "x").hard_link("evil", target).end();
    let sparse = |map: &[u8], data: &[u8]| {
        let records: &[(&str, &[u8])] = &[("GNU.sparse.size", b"100"), ("GNU.sparse.map", map)];
        Tar::default().extended(records).entry(EntryType::Regular, "s", "", data).end()
    };
    let deep = "d/".repeat(2048) + "file";
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("a name that leads out", file("../outside/evil")),
        ("a name that leads out later", file("a/../../outside/evil")),
        ("a name that is only dots", file("..")),
        ("a long name that leads out", Tar::default().extended(&[("path", b"../outside/evil")]).file("x", "").end()),
        ("a long name with a zero byte", Tar::default().extended(&[("path", b"a\0b")]).file("x", "").end()),
        ("a hard link through a link", Tar::default().symlink("l", "../outside").hard_link("evil", "l/kept").end()),
        ("a hard link that leads out", link("../outside/kept")),
        ("a hard link to an absolute path that the image has not", link("/etc/passwd")),
        ("a hard link that leads out later", link("a/../../outside/kept")),
        ("a hard link to what it replaces", Tar::default().file("d/f", "").hard_link("d", "d/f").end()),
        ("a loop of links", Tar::default().symlink("a", "b").symlink("b", "a").file("a/evil", "evil").end()),
        ("a link to itself", Tar::default().symlink("a", "a").file("a/evil", "evil").end()),
        ("a link to a file", Tar::default().file("f", "").symlink("l", "f").file("l/evil", "evil").end()),
        ("a directory that links make too deep", {
            let long = format!("{}/", "d".repeat(200)).repeat(19);
            let deeper = |tar: Tar, link: &str, target: &str| {
                tar.extended(&[("linkpath", target.as_bytes())]).symlink(link, "").file(&format!("{link}/f"), "")
            };
            let tar = deeper(Tar::default(), "one", &long);
            deeper(tar, "two", &format!("one/{}", &long[..3000])).end()
        }),
        ("a hard link to nothing", link("nowhere")),
        ("a hard link to itself", link("evil")),
        ("a hard link to a directory", Tar::default().dir("d").hard_link("evil", "d").end()),
        ("a symbolic link to nothing", Tar::default().symlink("l", "").end()),
        ("a file in a file", Tar::default().file("f", "").file("f/g", "").end()),
        (
            "a file below too many directories",
            Tar::default().extended(&[("path", deep.as_bytes())]).file("x", "").end(),
        ),
        ("removing the parent", file("dir/.wh...")),
        ("removing nothing", file("dir/.wh.")),
        ("a sparse file of another program", {
            let mut tar = Tar::default();
            tar.push(EntryType::GNUSparse, "s", "", b"", |header| header.as_mut_bytes()[257..265].fill(0));
            tar.end()
        }),
        ("a sparse file of a wrong map", sparse(b"0,5,3,5", b"0123456789")),
        ("a sparse file that ends too early", sparse(b"0,5,90,20", &[b'x'; 25])),
        ("a sparse file of less data than its map says", sparse(b"0,5,90,10", b"")),
        ("a sparse file of a later version", {
            Tar::default().extended(&[("GNU.sparse.major", b"2"), ("GNU.sparse.minor", b"0")]).file("s", "").end()
        }),
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
fn entries_behind_a_link_go_where_it_leads() {
    let place = Place::new();
    let mut tar = Tar::default().dir("usr").dir("usr/lib").symlink("lib", "usr/lib").file("lib/x", "X");
    // Named through the link, by an absolute path, with `..` in it, and all of that.
    tar = tar.hard_link("a", "lib/x").hard_link("b", "/usr/lib/x").hard_link("c", "usr/bin/../lib/./x");
    tar = tar.hard_link("lib/d", "/none/../lib/x");
    tar = tar.symlink("usr/lib/back", "../../lib").symlink("usr/abs", "/lib/back").file("usr/abs/y", "Y");
    // The link's target comes later, or is in another layer.
    tar = tar.symlink("early", "var/late").file("early/sub/z", "Z").dir("var/late");
    tar = tar.file("lib/../plain", "P");
    tar.push(EntryType::Directory, "usr/abs/locked", "", b"", |header| header.set_mode(0o500));
    tar = tar.file("lib/locked/inner", "in").file("lib/gone", "").file("lib/.wh..wh.aufs", "");
    tar = tar.file("lib/gone", "G").symlink("lib/gone", "x").hard_link("e", "lib/gone");
    place.unpack(&tar.end()).unwrap();

    let x = place.stat("usr/lib/x");
    assert_eq!((place.read("usr/lib/x"), x.nlink()), ("X".into(), 5));
    for name in ["a", "b", "c", "usr/lib/d"] {
        assert_eq!(place.stat(name).ino(), x.ino(), "{name}");
    }
    assert_eq!((place.read("usr/lib/y"), place.read("var/late/sub/z")), ("Y".into(), "Z".into()));
    assert_eq!(place.read("plain"), "P", "`..` takes away the name of a link, not what it leads to");
    assert_eq!(place.stat("var/late").mtime(), 1_000_000_000);
    let locked = place.stat("usr/lib/locked");
    assert_eq!((locked.mode() & 0o7777, locked.mtime()), (0o500, 1_000_000_000));
    assert!(place.stat("e").is_symlink(), "a hard link to a link is the link");
    fs::set_permissions(place.root().join("usr/lib/locked"), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn a_directory_takes_the_place_of_a_link() {
    let place = Place::new();
    let tar = Tar::default().dir("usr/lib").symlink("lib", "usr/lib").file("lib/x", "X").dir("lib").file("lib/y", "Y");
    place.unpack(&tar.end()).unwrap();
    assert_eq!((place.read("usr/lib/x"), place.read("lib/y")), ("X".into(), "Y".into()));
    assert!(place.stat("lib").is_dir() && !place.root().join("lib/x").exists());
}

#[test]
fn links_that_lead_out_stay_within_the_image() {
    let place = Place::new();
    let outside = place.top.path().join("outside").display().to_string();
    let tar = Tar::default()
        .symlink("up", "../../../../outside")
        .file("up/kept", "evil")
        .dir("up/dir")
        .file("up/.wh..wh..opq", "")
        .file("up/.wh.gone", "")
        .hard_link("up/again", "up/kept")
        .symlink("abs", &outside)
        .file("abs/kept", "evil")
        .hard_link("one", "abs/kept")
        .symlink("root", "/")
        .file("root/inner", "evil")
        .symlink("dots", "..")
        .file("dots/dots/outside/more", "evil");
    match place.unpack(&tar.end()) {
        Err(UnpackError::Io { doing, .. }) if doing.contains("opaque") || doing.contains("removed") => {}
        unpacked => {
            unpacked.unwrap();
            for path in ["outside/kept", "outside/again", "one", "inner", "outside/more"] {
                assert_eq!(place.read(path), "evil", "{path}");
            }
            assert_eq!(place.read(&format!("{}/kept", outside.trim_start_matches('/'))), "evil");
        }
    }
    place.assert_nothing_outside("links");
}

#[test]
fn deep_directories_need_no_more_open_files() {
    let place = Place::new();
    let deep = "d/".repeat(500);
    let long = |tar: Tar, path: &str| tar.extended(&[("path", path.as_bytes())]).file("x", "x");
    let tar = long(Tar::default(), &(deep.clone() + "one"));
    let tar = long(tar, &(deep[..400].to_owned() + "two")).symlink("l", &deep[..90]);
    let tar = long(tar, &format!("l/{}three", &deep[90..])).end();
    place.unpack(&tar).unwrap();
    for path in [deep.clone() + "one", deep[..400].to_owned() + "two", deep + "three"] {
        assert_eq!(place.read(&path), "x");
    }
    // Each of these entries makes many directories.
    let limits = UnpackLimits { bytes: 1 << 20, entries: 100 };
    let error = unpack(&tar[..], &Place::new().root(), id_map(), limits).unwrap_err();
    assert_eq!(error, UnpackError::TooManyEntries { limit: 100 });
}

#[test]
fn the_last_of_several_headers_counts() {
    let place = Place::new();
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
        let place = Place::new();
        place.unpack(&output.stdout).unwrap();
        assert!(fs::read(place.root().join("sp")).unwrap() == content, "{format:?}");
        assert!(!can_have_holes || is_kept(&place.stat("sp")), "{format:?}");
        assert_eq!(place.read("plain"), "plain");
        let cut = Place::new().unpack(&output.stdout[..output.stdout.len() / 3]).unwrap_err();
        assert!(cut.to_string().contains("`sp`"), "{cut}");
    }
    // A map alone cannot make a file larger than the limit.
    let records: &[(&str, &[u8])] = &[("GNU.sparse.size", b"99999999999999"), ("GNU.sparse.map", b"0,0")];
    let bomb = Tar::default().extended(records).file("s", "").end();
    assert!(matches!(Place::new().unpack(&bomb).unwrap_err(), UnpackError::TooLarge { .. }));
}

#[test]
fn errors_name_the_entry() {
    let number = |field: std::ops::Range<usize>| {
        let mut tar = Tar::default().file("before", "");
        tar.push(EntryType::Regular, "this", "", b"", |header| header.as_mut_bytes()[field].fill(b'z'));
        tar.end()
    };
    let mut after = Tar::default().file("this", "").end();
    after[512..1024].fill(b'x');
    for (what, tar) in [
        ("a size", number(124..136)),
        ("a mode", number(100..108)),
        ("a kind", Tar::default().entry(EntryType::new(b'Z'), "this", "", b"").end()),
        ("a long name", Tar::default().extended(&[("path", b"this")]).entry(EntryType::new(b'Z'), "x", "", b"").end()),
        ("a map", Tar::default().entry(EntryType::GNUSparse, "this", "", b"12").end()),
        ("data", Tar::default().file("this", &"x".repeat(600)).end()[..1024].to_vec()),
        ("a header that follows", after),
        ("an extended header", Tar::default().entry(EntryType::XHeader, "this", "", b"7 a\n").file("f", "").end()),
    ] {
        let error = Place::new().unpack(&tar).expect_err(what).to_string();
        assert!(error.contains("`this`"), "{what}: {error}");
    }
    let first = Place::new().unpack(&[b'x'; 1024]).unwrap_err().to_string();
    assert_eq!(first, "the archive is damaged: its first header has a wrong checksum");
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

    // Data after the archive's end counts, too.
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
    let error = Place::new().unpack(&Tar::default().file("a\x1b[31m/../../b", "").end()).unwrap_err();
    assert!(!error.to_string().contains('\x1b'), "{error}");
    assert!(error.to_string().contains("\\u{1b}"), "{error}");
}
