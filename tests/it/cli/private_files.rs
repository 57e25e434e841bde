//! Files that other users may not read: those of the machine, in steps on image `host`; those of the store,
//! for all users.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::{
    backends::skip_optional,
    programs::hm,
    project::{Ended, Project, ir, walk},
};

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

/// A file deep below `/usr`, which no digest of the machine's state covers. It is removed on drop.
struct Deep(PathBuf);

impl Deep {
    /// Creates the file. Returns `None` if this process may not write there.
    fn new(content: &str, mode: u32) -> Option<Self> {
        let dir =
            fs::read_dir("/usr/share/doc").ok()?.flatten().map(|entry| entry.path()).find(|path| path.is_dir())?;
        let path = dir.join(format!("hm-test-{}-{mode:o}", std::process::id()));
        let made = Self(path);
        fs::write(&made.0, content).ok()?;
        fs::set_permissions(&made.0, fs::Permissions::from_mode(mode)).ok()?;
        Some(made)
    }
}

impl Drop for Deep {
    fn drop(&mut self) {
        // The file does not exist if the directory is not writable.
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn steps_of_root_read_only_files_below_usr_that_others_may_read() {
    let (Some(private), Some(public)) = (Deep::new("s3cret", 0o640), Deep::new("public\n", 0o604)) else {
        skip_optional("files below /usr", "only root can make them");
        return;
    };
    let (private, public) = (private.0.display(), public.0.display());
    let steps = format!(
        "cat {public} && ! cat {private} 2>/dev/null && ! cp {private} /tmp/x && echo x >> {public} && cat {public}"
    );
    let child = format!("cat {public}; ! cat {private}");
    let project = Project::with_steps(&[("first", &steps, None), ("child", &child, Some(0))]);
    let ended = Ended::of(&mut project.hm(&["run", "--runner", "sandbox"])).expect(0);
    assert!(ended.stdout.contains("first | x\n") && ended.stdout.contains("child | x\n"), "{}", ended.stdout);
    assert!(!ended.stdout.contains("s3cret"), "{}", ended.stdout);
}

/// A shell script that runs in a mount namespace with its own `/opt` and `/etc`, which other tests do not
/// see.
const MACHINE: &str = r#"
mount -t tmpfs opt /opt && mkdir -p /opt/app /opt/shut /opt/open && mount -t tmpfs etc "$1" && mkdir "$1/u" "$1/w"
mount -t overlay etc /etc -o "lowerdir=/etc,upperdir=$1/u,workdir=$1/w"
echo s3cret > /opt/app/.env && chmod 640 /opt/app/.env
echo s3cret > /opt/shut/file && chmod 750 /opt/shut
echo later > /opt/open/later && chmod 604 /opt/open/later
echo s3cret > /opt/app/run && chmod 711 /opt/app/run
mkdir /opt/names && echo s3cret > /opt/names/file && chmod 711 /opt/names
echo public > /opt/app/public
echo s3cret > /etc/hm-test-token && chmod 600 /etc/hm-test-token
echo s3cret > /etc/hm-test-run && chmod 611 /etc/hm-test-run
mkdir -p /etc/apt/sources.list.d
echo 'deb https://bob:s3cret@apt.example/debian stable main' > /etc/apt/sources.list.d/hm-test.list
printf 'URIs: https://bob:s3cret@apt.example/x\nSuites: y\n' > /etc/apt/sources.list.d/hm-test.sources
"$HM" run --runner sandbox --no-cache || exit
chmod 600 /opt/open/later && chmod 644 /opt/app/.env
exec "$HM" run --runner sandbox --no-cache -f "$2"
"#;

#[test]
fn private_files_are_hidden_on_the_host_image_and_each_run_checks_again() {
    if Command::new("unshare").args(["-m", "true"]).status().is_ok_and(|status| !status.success()) {
        skip_optional("a mount namespace", "only root may make one");
        return;
    }
    let first = "for p in /opt/app/.env /opt/app/run /opt/names /opt/shut /opt/shut/file /etc/hm-test-run /etc/hm-test-token /etc/sudoers; do test ! -e $p || echo SEEN $p; done; \
                 ls -A /opt /opt/app | tr -s '\\n' ' '; echo; cat /opt/app/public /opt/open/later /etc/apt/sources.list.d/hm-test.*; \
                 grep -rs s3cret /opt /etc; true";
    let second = "test ! -e /opt/open/later && cat /opt/app/.env";
    let project = Project::with_steps(&[("first", first, None)]);
    project.file("again.json", &ir(&[("second", second, None)]));
    let over = project.store.with_file_name("over");
    fs::create_dir(&over).unwrap();
    let mut inside = Command::new("unshare");
    inside.args(["-m", "sh", "-c", MACHINE, "sh"]).arg(&over).arg("again.json").current_dir(&project.dir);
    inside.env("HM", hm()).env("HM_CACHE_DIR", &project.store).env("HM_CACHE_GC", "off");
    let ended = Ended::of(&mut inside).expect(0);
    for wanted in [
        "first | /opt: app open /opt/app: public \n",
        "first | deb https://apt.example/debian stable main\n",
        "first | URIs: https://apt.example/x\n",
        "second | s3cret\n",
    ] {
        assert!(ended.stdout.contains(wanted), "{wanted:?} in {}", ended.stdout);
    }
    assert!(!ended.stdout.contains("SEEN") && !ended.stdout.contains("first | s3cret"), "{}", ended.stdout);
    assert!(!ended.stdout.contains("bob") && ended.stdout.contains("later"), "{}", ended.stdout);
}

#[test]
fn files_of_a_store_are_private_whatever_the_umask() {
    let project = Project::with_steps(&[("a", "echo x > file", None), ("b", "false", Some(0))]);
    for runner in ["process", "sandbox"] {
        let mut command = Command::new("sh");
        command.args(["-c", "umask 0; exec \"$HM\" run --runner \"$1\"", "sh", runner]).current_dir(&project.dir);
        command.env("HM", hm()).env("HM_CACHE_DIR", &project.store).env("HM_CACHE_GC", "off");
        Ended::of(&mut command).expect(1);
    }
    let mut seen = Vec::new();
    walk(&project.store, &mut |path| {
        let within = path.strip_prefix(&project.store).unwrap();
        let parts: Vec<&str> = within.iter().map(|part| part.to_str().unwrap()).collect();
        // Files that steps made keep the modes that the steps gave them.
        if matches!(parts[..], ["layers" | "workspaces", _, ref rest @ ..] if !rest.is_empty()) || path.is_symlink() {
            return;
        }
        let wanted = if path.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(mode(path), wanted, "{}", within.display());
        seen.push(within.display().to_string());
    });
    assert_eq!(mode(&project.store), 0o700);
    for name in ["index.db", "index.db-wal", "format"] {
        assert!(seen.iter().any(|path| path == name), "{name} in {seen:?}");
    }
    assert!(seen.iter().any(|path| path.ends_with("/journal")), "{seen:?}");
}

#[test]
fn a_store_that_others_may_enter_is_reported_and_closed() {
    let project = Project::with_steps(&[("a", "true", None)]);
    project.run(&[]).expect(0);
    fs::set_permissions(&project.store, fs::Permissions::from_mode(0o755)).unwrap();
    let doctor = Ended::of(&mut project.hm(&["doctor"]));
    assert!(doctor.stdout.contains("other users have access to the store at"), "{}", doctor.stdout);
    assert!(doctor.stdout.contains(&format!("chmod 700 {}", project.store.display())), "{}", doctor.stdout);
    fs::set_permissions(&project.store, fs::Permissions::from_mode(0o755)).unwrap();
    let ended = project.run(&[]).expect(0);
    assert_eq!(ended.stderr.matches("warning: other users had access to the store at").count(), 1, "{}", ended.stderr);
    assert_eq!((mode(&project.store), project.run(&[]).expect(0).stderr), (0o700, String::new()));

    // A directory that also has other files does not belong to the store alone.
    fs::write(project.store.join("notes.txt"), "").unwrap();
    fs::set_permissions(&project.store, fs::Permissions::from_mode(0o755)).unwrap();
    let ended = project.run(&[]).expect(0);
    let hint = format!("hint: chmod 700 {}\n", project.store.display());
    assert!(
        ended.stderr.contains("warning: other users have access") && ended.stderr.contains(&hint),
        "{}",
        ended.stderr
    );
    assert_eq!(mode(&project.store), 0o755);
}
