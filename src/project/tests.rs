use std::{fs as std_fs, os::unix::fs::symlink, os::unix::net::UnixListener};

use ProjectFileErrorKind::{Missing, NotRegular, NotText, Outside, TooLarge};
use rustix::fs::CWD;

use super::*;

const LIMIT: u64 = 1000;

/// Makes a project `in/` with one file of each kind, and a file beside it.
fn project() -> (tempfile::TempDir, ProjectDir) {
    let top = tempfile::tempdir().unwrap();
    let inside = top.path().canonicalize().unwrap().join("in");
    std_fs::create_dir_all(inside.join("sub/deep")).unwrap();
    std_fs::write(top.path().join("secret"), "s3cret").unwrap();
    std_fs::write(inside.join("plain"), "text").unwrap();
    std_fs::write(inside.join("sub/below"), "text").unwrap();
    std_fs::write(inside.join("latin"), [0xe9]).unwrap();
    fs::mknodat(CWD, inside.join("fifo"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    drop(UnixListener::bind(inside.join("socket")).unwrap());
    let huge = File::create(inside.join("huge")).unwrap();
    huge.set_len(10 << 30).unwrap();
    for (link, target) in [
        ("to-plain", "plain"),
        ("sub/up", "../plain"),
        ("to-zero", "/dev/zero"),
        ("to-secret", "../secret"),
        ("to-root", "/"),
        ("to-proc", "/proc/self/fd/0"),
        ("dangling", "nothing"),
        ("loop", "loop"),
        ("out", ".."),
    ] {
        symlink(target, inside.join(link)).unwrap();
    }
    let project = ProjectDir::open(inside).unwrap();
    (top, project)
}

const REFUSED: [(&str, ProjectFileErrorKind); 16] = [
    ("fifo", NotRegular),
    ("socket", NotRegular),
    ("sub", NotRegular),
    ("", NotRegular),
    ("huge", TooLarge),
    ("latin", NotText),
    ("nothing", Missing),
    ("plain/below", Missing),
    ("dangling", Missing),
    ("to-zero", Outside),
    ("to-secret", Outside),
    ("to-proc", Outside),
    ("../secret", Outside),
    ("out/secret", Outside),
    ("to-root/etc/passwd", Outside),
    ("loop", Outside),
];

#[test]
fn only_regular_files_below_the_project_are_read() {
    let (_top, project) = project();
    for path in ["plain", "./plain", "to-plain", "sub/below", "sub/up", "sub/deep/../below"] {
        assert_eq!(project.read_text(path, LIMIT).unwrap(), "text", "{path}");
    }
    let absolute = project.path().join("plain");
    assert_eq!(project.read_text(&absolute, LIMIT).unwrap(), "text");
    for (path, kind) in REFUSED {
        let error = project.read_text(path, LIMIT).unwrap_err();
        assert_eq!(error.kind(), kind, "{path}: {error}");
        let text = error.to_string();
        assert!(text.contains(&*project.path().join(path).to_string_lossy()), "{text}");
    }
    for path in ["/etc/passwd", "/dev/zero"] {
        assert_eq!(project.read(path, LIMIT).unwrap_err().kind(), Outside, "{path}");
    }
    assert_eq!(project.read("plain", 3).unwrap_err().kind(), TooLarge);
    assert!(project.read_text_if_any("nothing", LIMIT).unwrap().is_none());
    assert_eq!(project.read_text_if_any("fifo", LIMIT).unwrap_err().kind(), NotRegular);
}

#[test]
fn a_kernel_without_openat2_follows_no_links_at_all() {
    let (_top, project) = project();
    let walk = |path: &str| beneath::walk(&project.dir, Path::new(path), FILE_FLAGS);
    for path in ["plain", "./plain", "sub/below", "sub/deep/../below"] {
        assert!(walk(path).is_ok(), "{path}");
    }
    for path in ["to-plain", "to-zero", "to-secret", "../secret", "out/secret", "to-root/etc/passwd", "loop", "/etc"] {
        assert_eq!(walk(path).unwrap_err(), Errno::XDEV, "{path}");
    }
    assert_eq!(walk("nothing").unwrap_err(), Errno::NOENT);
    assert!(beneath::walk(&project.dir, Path::new("."), DIR_FLAGS).is_ok());
}

#[test]
fn a_file_that_grows_is_still_limited() {
    // Files in /proc have a size of zero until they are read.
    let proc = ProjectDir::open("/proc/self").unwrap();
    assert_eq!(proc.read("status", 10).unwrap_err().kind(), TooLarge);
}

#[test]
fn names_are_those_of_a_directory_of_the_project() {
    let (_top, project) = project();
    assert_eq!(project.names("sub").unwrap(), ["below", "deep", "up"]);
    for (path, kind) in [("out", Outside), ("to-root", Outside), ("nothing", Missing), ("plain", Missing)] {
        assert_eq!(project.names(path).unwrap_err().kind(), kind, "{path}");
    }
}
