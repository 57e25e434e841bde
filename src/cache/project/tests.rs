use std::{ffi::OsStr, fs, os::unix::fs::symlink};

use rustix::fs::Mode;

use super::*;

struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn dir(&self, path: &str) -> PathBuf {
        let dir = self.0.path().join(path);
        fs::create_dir_all(&dir).unwrap();
        dir.canonicalize().unwrap()
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Creates a repository with this origin.
    fn clone(&self, path: &str, url: &str) -> PathBuf {
        self.write(&format!("{path}/.git/HEAD"), "ref: refs/heads/main\n");
        self.write(&format!("{path}/.git/config"), &format!("[remote \"origin\"]\n\turl = {url}\n"));
        self.dir(path)
    }
}

fn id(dir: &Path) -> String {
    ProjectId::of_checkout(dir).to_string()
}

#[test]
fn two_clones_are_one_project_and_two_directories_are_two() {
    let bench = Bench::new();
    let one = bench.clone("one", "git@github.com:o/r.git");
    let other = bench.clone("other", "https://alice:s3cret@github.com/o/r");
    assert_eq!(id(&one), "git:github.com/o/r");
    assert_eq!(id(&other), id(&one));
    let (a, b) = (bench.dir("a"), bench.dir("b"));
    assert_eq!(id(&a), format!("path:{}", a.display()));
    assert_ne!(id(&a), id(&b));
    symlink(&a, b.join("link")).unwrap();
    assert_eq!(id(&b.join("link")), id(&a));
    assert_eq!(id(Path::new("/nonexistent/source")), "path:/nonexistent/source");
}

#[test]
fn directories_of_one_repository_are_projects_of_their_own() {
    let bench = Bench::new();
    for clone in ["one", "other"] {
        bench.clone(clone, "https://github.com/o/r");
        let [a, b] = ["a", "b"].map(|package| bench.dir(&format!("{clone}/packages/{package}")));
        assert_eq!(id(&a), "git:github.com/o/r//packages/a");
        assert_ne!(id(&a), id(&b));
    }
    // A nested repository is a project of its own.
    let inner = bench.clone("one/vendor/inner", "https://github.com/o/inner");
    assert_eq!(id(&inner), "git:github.com/o/inner");
}

#[test]
fn a_local_origin_has_the_identity_of_its_directory() {
    let bench = Bench::new();
    let plain = bench.dir("plain");
    bench.dir("plain/sub");
    let path = plain.display();
    for url in [path.to_string(), format!("file://{path}"), "../plain".to_owned()] {
        let clone = bench.clone("clone", &url);
        assert_eq!(id(&clone), id(&plain), "{url}");
        assert_eq!(id(&bench.dir("clone/sub")), id(&plain.join("sub")), "{url}");
    }
    // The same applies to a clone of a clone, to a clone of a bare repository, and to a clone by the path
    // without `.git`.
    let upstream = bench.clone("upstream", "https://github.com/o/r");
    assert_eq!(id(&bench.clone("clone", &upstream.display().to_string())), "git:github.com/o/r");
    assert_eq!(id(&bench.clone("clone", &upstream.join(".git").display().to_string())), "git:github.com/o/r");
    bench.write("bare.git/HEAD", "ref: refs/heads/main\n");
    bench.write("bare.git/config", "[remote \"origin\"]\nurl = https://github.com/o/mirrored\n");
    assert_eq!(id(&bench.clone("clone", "../bare.git")), "git:github.com/o/mirrored");
    assert_eq!(id(&bench.clone("clone", "../bare")), "git:github.com/o/mirrored");
    // Clones of each other do not loop forever.
    let (a, b) = (bench.clone("a", "../b"), bench.clone("b", "../a"));
    assert!(id(&a).starts_with("path:") && id(&b).starts_with("path:"));
}

#[test]
fn worktrees_and_submodules_are_read_through_their_git_files() {
    let bench = Bench::new();
    let main = bench.clone("main", "https://github.com/o/r");
    bench.write("main/.git/worktrees/tree/commondir", "../..\n");
    bench.write("tree/.git", &format!("gitdir: {}/.git/worktrees/tree\n", main.display()));
    assert_eq!(id(&bench.dir("tree")), "git:github.com/o/r");
    bench.write("main/.git/modules/sub/config", "[remote \"origin\"]\nurl = https://github.com/o/sub\n");
    bench.write("main/sub/.git", "gitdir: ../.git/modules/sub\n");
    assert_eq!(id(&bench.dir("main/sub")), "git:github.com/o/sub");
}

#[test]
fn what_is_no_plain_configuration_leaves_the_directory() {
    let bench = Bench::new();
    let config = |name: &str| bench.0.path().join(name).join(".git/config");
    let itself = |dir: &Path| assert_eq!(id(dir), format!("path:{}", dir.display()));
    let broken = bench.clone("broken", "\"open");
    itself(&broken);
    let helper = bench.clone("helper", "ext::sh -c 'touch /tmp/pwned'");
    itself(&helper);
    // A pipe without a writer, an endless device, a link, and a file that is far too large.
    let pipe = bench.clone("pipe", "x");
    fs::remove_file(config("pipe")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, config("pipe"), rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
    itself(&pipe);
    let endless = bench.clone("endless", "x");
    fs::remove_file(config("endless")).unwrap();
    symlink("/dev/zero", config("endless")).unwrap();
    itself(&endless);
    let long = bench.clone("long", "https://github.com/o/r");
    fs::write(config("long"), vec![b'\n'; (1 << 20) + 1]).unwrap();
    itself(&long);
    // `.git` files that point to nothing, or to a device.
    for (name, text) in [("no", "nothing"), ("gone", "gitdir: /nonexistent"), ("device", "gitdir: /dev/zero")] {
        bench.write(&format!("{name}/.git"), text);
        itself(&bench.dir(name));
    }
    let empty = bench.dir("empty");
    bench.dir("empty/.git");
    itself(&empty);
}

#[test]
fn a_repository_of_another_user_above_is_not_ours() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let bench = Bench::new();
    bench.clone("shared", "https://github.com/o/theirs");
    let mine = bench.dir("shared/mine");
    assert_eq!(id(&mine), "git:github.com/o/theirs//mine");
    std::os::unix::fs::chown(bench.0.path().join("shared/.git"), Some(12345), None).unwrap();
    assert_eq!(id(&mine), format!("path:{}", mine.display()));
    // If the directory and the repository belong to the same user, it is that user's checkout.
    std::os::unix::fs::chown(&mine, Some(12345), None).unwrap();
    assert_eq!(id(&mine), "git:github.com/o/theirs//mine");
}

#[test]
fn names_that_users_give_are_told_apart_from_all_others() {
    let named = ProjectId::named("x");
    assert_ne!(named, ProjectId::shared("x"));
    assert_eq!(named.clone().below(Path::new("")), named);
    assert_eq!(named.below(Path::new("a/b")).as_str(), "id:x//a/b");
    let (odd, text) = (Path::new(OsStr::from_bytes(b"/x\xff")), Path::new("/x\\xff"));
    assert_ne!(ProjectId::of_directory(odd), ProjectId::of_directory(text));
}
