//! The file of the program that makes the jail, which a step's process executes until its command runs.

use std::{
    fs::{self, File},
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use hm_exec::runner::{
    Secrets,
    sandbox::{ConfinedCommand, ConfinedEnd, ConfinedLimits},
};

use crate::support::{
    backends::usable,
    programs::hm,
    rootfs::shell_rootfs,
    sandbox::{Ask, Bench},
};

/// Prints what it reaches, and attempts every change to it that root of a step could make. The file itself
/// shows whether something changed: in a jail with one id, changing the owner "succeeds".
const EVIL: &str = r#"
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

__attribute__((constructor)) static void run(void) {
    struct timespec times[2] = {{1, 0}, {1, 0}};
    struct stat st;
    int fd = open("/proc/self/exe", O_RDONLY);
    if (fd < 0 || fstat(fd, &st)) _exit(1);
    char again[64];
    snprintf(again, sizeof again, "/proc/self/fd/%d", fd);
    int changed = !fchmod(fd, 04777) | !futimens(fd, times) | !fsetxattr(fd, "user.evil", "1", 1, 0)
        | !chmod(again, 04777) | !chmod("/proc/self/exe", 04777) | !truncate("/proc/self/exe", 0);
    fchown(fd, 1, 1);
    fchown(fd, 0, 0);
    int writes = open("/proc/self/exe", O_WRONLY) >= 0 || open(again, O_RDWR) >= 0;
    printf("reached %lld bytes, changed %d, writes %d\n", (long long)st.st_size, changed, writes);
    fflush(stdout);
    _exit(0);
}
"#;

/// Builds the library that every dynamic program is to load. Returns whether there is a compiler.
fn build(library: &Path) -> bool {
    let source = library.with_extension("c");
    fs::write(&source, EVIL).unwrap();
    let built = Command::new("cc").args(["-shared", "-fPIC", "-w", "-o"]).args([library, &source]).status();
    usable("cc", built.is_ok_and(|status| status.success()), "it builds no shared library")
}

/// Returns a root in which `/bin/sh` is the program that executes it, with the libraries that the program
/// loads.
fn root(top: &Path, program: &Path) -> Option<PathBuf> {
    let root = top.join("root");
    for dir in ["bin", "etc", "lib"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    let ldd = Command::new("ldd").arg(program).output().unwrap();
    for path in String::from_utf8(ldd.stdout).unwrap().split_whitespace().filter(|word| word.starts_with('/')) {
        let to = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(path, to).unwrap();
    }
    symlink("/proc/self/exe", root.join("bin/sh")).unwrap();
    fs::write(root.join("etc/ld.so.preload"), "/lib/evil.so\n").unwrap();
    build(&root.join("lib/evil.so")).then_some(root)
}

/// A copy of `hm`, and its original state.
struct Copy {
    path: PathBuf,
    file: File,
    before: Vec<i64>,
}

impl Copy {
    fn new(top: &Path) -> Self {
        let path = top.join("hm");
        fs::copy(hm(), &path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let file = File::open(&path).unwrap();
        let before = Self::state(&file);
        Self { path, file, before }
    }

    /// Returns the file's state, with the time of the last change of mode, owner, times or attributes, which
    /// no program can set back.
    fn state(file: &File) -> Vec<i64> {
        let it = file.metadata().unwrap();
        vec![it.mode().into(), it.uid().into(), it.size().cast_signed(), it.mtime_nsec(), it.ctime(), it.ctime_nsec()]
    }

    /// Returns the output of a step that reaches the file of its program but cannot change it.
    fn expected(&self) -> String {
        format!("reached {} bytes, changed 0, writes 0\n", self.before[2])
    }

    fn assert_unchanged(&self) {
        assert_eq!(Self::state(&self.file), self.before);
    }
}

#[tokio::test]
async fn a_step_cannot_change_the_program_that_started_it() {
    let top = tempfile::tempdir().unwrap();
    let copy = Copy::new(top.path());
    let Some(root) = root(top.path(), &copy.path) else { return };
    let image = format!("rootfs:{}", root.display());
    let bench = Bench::with(|builder| builder.helper(copy.path.clone()));
    let mut run = bench.run();
    let result = bench.step(&mut run, Ask::new("never run").image(&image)).await.unwrap();
    assert_eq!((result.exit_code, run.output().await), (0, copy.expected()));
    copy.assert_unchanged();
}

#[tokio::test]
async fn a_step_cannot_change_the_copy_of_a_replaced_program() {
    let top = tempfile::tempdir().unwrap();
    let copy = Copy::new(top.path());
    let Some(root) = root(top.path(), &copy.path) else { return };
    fs::remove_file(&copy.path).unwrap();
    let before = Copy::state(&copy.file);
    // As after an upgrade: only this descriptor leads to the file.
    let helper = format!("/proc/{}/fd/{}", std::process::id(), copy.file.as_raw_fd());
    let image = format!("rootfs:{}", root.display());
    let bench = Bench::with(|builder| builder.helper(helper));
    let mut run = bench.run();
    let result = bench.step(&mut run, Ask::new("never run").image(&image)).await.unwrap();
    assert_eq!((result.exit_code, run.output().await), (0, copy.expected()));
    assert_eq!(Copy::state(&copy.file), before);
}

/// Checks an image whose mount points are links to files that the jail has open while it is made.
#[tokio::test]
async fn symlinks_of_an_image_do_not_reach_open_files_of_the_jail() {
    let Some(busybox) = shell_rootfs() else { return };
    let machine = tempfile::tempdir().unwrap();
    let target = machine.path().canonicalize().unwrap();
    let outside = target.strip_prefix("/").unwrap().display();
    let bench = Bench::new();
    for link in ["run", "sys", "dev", "tmp", "etc"] {
        for fd in 3..24 {
            let root = tempfile::tempdir().unwrap();
            let copied = Command::new("cp").args(["-a"]).arg(busybox.path().join(".")).arg(root.path()).status();
            assert!(copied.unwrap().success());
            symlink(format!("/proc/self/fd/{fd}/{outside}"), root.path().join(link)).unwrap();
            let mut secrets = Secrets::new();
            secrets.insert("TOKEN", "x");
            let mut run = bench.run_with(secrets);
            // Whether a step can start in such an image does not matter.
            let _ = bench.step(&mut run, Ask::new(":").image(format!("rootfs:{}", root.path().display()))).await;
            let made: Vec<_> = fs::read_dir(&target).unwrap().collect();
            assert!(made.is_empty(), "{link}, {fd}: {made:?}");
        }
    }
}

#[test]
fn a_read_only_program_cannot_change_the_program_that_started_it() {
    let top = tempfile::tempdir().unwrap();
    let top = top.path().canonicalize().unwrap();
    let copy = Copy::new(&top);
    let dir = top.join("project");
    fs::create_dir(&dir).unwrap();
    symlink("/proc/self/exe", dir.join("python")).unwrap();
    if !build(&dir.join("evil.so")) {
        return;
    }
    let command = ConfinedCommand {
        argv: [dir.join("python").into()].into(),
        env: vec![("LD_PRELOAD".into(), dir.join("evil.so").into())],
        dir: dir.clone(),
        show: vec![dir],
        hide: Vec::new(),
        limits: ConfinedLimits {
            time: Duration::from_secs(60),
            memory_bytes: 256 << 20,
            processes: 64,
            stdout_bytes: 1 << 20,
            stderr_bytes: 1 << 20,
        },
        helper: Some(copy.path.clone()),
    };
    let output = command.run(&mut |_| {}).unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!((output.end, printed), (ConfinedEnd::Exited { code: 0 }, copy.expected()));
    copy.assert_unchanged();
}
