//! Archives that are wrong, or lead elsewhere, or cost too much.

use super::*;

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
        let place = Target::new();
        let error = place.unpack(&tar).expect_err(what);
        let is_typed = matches!(error, UnpackError::Refused { .. } | UnpackError::Damaged { .. });
        assert!(is_typed, "{what}: {error}");
        place.assert_nothing_outside(what);
    }
}

#[test]
fn entries_behind_a_link_go_where_it_leads() {
    let place = Target::new();
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
    let place = Target::new();
    let tar = Tar::default().dir("usr/lib").symlink("lib", "usr/lib").file("lib/x", "X").dir("lib").file("lib/y", "Y");
    place.unpack(&tar.end()).unwrap();
    assert_eq!((place.read("usr/lib/x"), place.read("lib/y")), ("X".into(), "Y".into()));
    assert!(place.stat("lib").is_dir() && !place.root().join("lib/x").exists());
}

#[test]
fn links_that_lead_out_stay_within_the_image() {
    let place = Target::new();
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
    let place = Target::new();
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
    let error = unpack(&tar[..], &Target::new().root(), id_map(), limits).unwrap_err();
    assert_eq!(error, UnpackError::TooManyEntries { limit: 100 });
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
        let error = Target::new().unpack(&tar).expect_err(what).to_string();
        assert!(error.contains("`this`"), "{what}: {error}");
    }
    let first = Target::new().unpack(&[b'x'; 1024]).unwrap_err().to_string();
    assert_eq!(first, "the archive is damaged: its first header has a wrong checksum");
}

#[test]
fn bombs_go_off_at_the_limit() {
    let place = Target::new();
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
    let error = unpack(&tar[..], &Target::new().root(), id_map(), limits).unwrap_err();
    assert_eq!(error, UnpackError::TooLarge { limit: 1 << 19 });

    let many = (0..11).fold(Tar::default(), |tar, index| tar.file(&format!("f{index}"), "")).end();
    let error = unpack(&many[..], &Target::new().root(), id_map(), limits).unwrap_err();
    assert_eq!(error, UnpackError::TooManyEntries { limit: 10 });
}

#[test]
fn names_in_errors_are_made_harmless() {
    let error = Target::new().unpack(&Tar::default().file("a\x1b[31m/../../b", "").end()).unwrap_err();
    assert!(!error.to_string().contains('\x1b'), "{error}");
    assert!(error.to_string().contains("\\u{1b}"), "{error}");
}
