//! Consent to what a project asks for beyond the sandbox, and files that only a malicious project has.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
    process::{Command, Stdio},
};

use rustix::fs::{CWD, FileType, Mode};
use serde_json::{Value, json};

use crate::support::{
    project::{Ended, Project, ir},
    terminal::Terminal,
};

/// Returns a pipeline of one step on runner `process`, which writes a file `ran`.
fn on_process(project: &Project, word: &str) -> String {
    let ran = project.store.with_file_name("ran");
    let cmd = format!("echo {word} > {}", ran.display());
    ir_of(json!({ "key": "only", "cmd": cmd, "runner": "process" }))
}

fn ir_of(step: Value) -> String {
    json!({
        "version": "0",
        "default_image": "host",
        "graph": { "nodes": [{ "step": step, "env": {} }], "node_holes": [], "edge_property": "directed", "edges": [] },
    })
    .to_string()
}

/// Returns the content of the file that the step of [`on_process`] wrote, and removes the file.
fn ran(project: &Project) -> Option<String> {
    let path = project.store.with_file_name("ran");
    let word = fs::read_to_string(&path).ok();
    let _ = fs::remove_file(path);
    word.map(|word| word.trim().to_owned())
}

/// Returns `hm ARGS` with its own home and its own directory for consent.
fn hm(project: &Project, args: &[&str]) -> Command {
    let mut hm = project.hm(args);
    at_home(&mut hm, project);
    hm
}

fn at_home(hm: &mut Command, project: &Project) {
    let home = project.store.with_file_name("home");
    fs::create_dir_all(&home).unwrap();
    hm.env("HOME", &home)
        .env("XDG_STATE_HOME", home.join("state"))
        .env_remove("XDG_CONFIG_HOME")
        .env_remove("HM_TRUST");
}

/// Runs `hm` with a time limit: a hanging `hm` is killed, and the test fails.
fn limited(hm: &Command) -> Ended {
    let mut limited = Command::new("timeout");
    limited.args(["-s", "KILL", "100"]).arg(hm.get_program()).args(hm.get_args()).stdin(Stdio::null());
    limited.current_dir(hm.get_current_dir().unwrap());
    for (name, value) in hm.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    Ended::of(&mut limited)
}

fn trust_dir(project: &Project) -> std::path::PathBuf {
    project.store.with_file_name("home").join("state/hm/trust")
}

#[test]
fn a_project_runs_nothing_outside_the_sandbox_without_consent() {
    let project = Project::new();
    project.file(".hm/ci.json", &on_process(&project, "first"));
    let refused = Ended::of(hm(&project, &["run"]).env("CI", "true")).expect(2);
    assert!(refused.stderr.contains("runner = \"process\""), "{}", refused.stderr);
    assert!(refused.stderr.contains("`hm trust`") && refused.stderr.contains("HM_TRUST=1"), "{}", refused.stderr);
    assert_eq!((ran(&project), project.store.exists()), (None, false), "{refused:?}");

    // Commands that run nothing print a one-line warning and work without consent.
    for command in ["plan", "ls", "render"] {
        let ended = Ended::of(&mut hm(&project, &[command])).expect(0);
        assert_eq!(ended.stderr.lines().count(), 1, "{command}: {}", ended.stderr);
        assert!(ended.stderr.contains("hm trust") && ended.stderr.contains("process"), "{}", ended.stderr);
        assert!(!ended.stdout.is_empty());
    }

    // Consent for one run.
    for (what, allowed) in [
        ("--trust", hm(&project, &["run", "--trust"])),
        ("HM_TRUST", {
            let mut run = hm(&project, &["run"]);
            run.env("HM_TRUST", "1");
            run
        }),
        ("--runner", hm(&project, &["run", "--runner", "process"])),
    ] {
        limited(&allowed).expect(0);
        assert_eq!(ran(&project).as_deref(), Some("first"), "{what}");
        Ended::of(&mut hm(&project, &["run"])).expect(2);
        assert_eq!(ran(&project), None, "{what}");
    }
    Ended::of(hm(&project, &["run"]).env("HM_TRUST", "0")).expect(2);
    let odd = Ended::of(hm(&project, &["run"]).env("HM_TRUST", "yes")).expect(2);
    assert!(odd.stderr.contains("invalid value of HM_TRUST: expected 1 or 0"), "{}", odd.stderr);

    // Permanent consent, even if the steps change.
    let told = Ended::of(&mut hm(&project, &["trust"])).expect(0).stdout;
    assert!(told.contains("runner = \"process\""), "{told}");
    Ended::of(&mut hm(&project, &["run"])).expect(0);
    assert_eq!(ran(&project).as_deref(), Some("first"));
    project.file(".hm/ci.json", &on_process(&project, "second"));
    let ended = Ended::of(&mut hm(&project, &["run"])).expect(0);
    assert_eq!((ran(&project).as_deref(), &*ended.stderr), (Some("second"), ""));
    assert_eq!(Ended::of(&mut hm(&project, &["plan"])).expect(0).stderr, "");

    // A new request needs consent of its own.
    project.file(".hm/hm.toml", "[docker]\nhost = 'tcp://192.0.2.1:2375'\n[remote]\njobs = 2\n");
    let refused = Ended::of(&mut hm(&project, &["run"])).expect(2);
    assert!(refused.stderr.contains("[docker] host = \"tcp://192.0.2.1:2375\""), "{}", refused.stderr);
    assert!(!refused.stderr.contains("process"), "{}", refused.stderr);
    Ended::of(&mut hm(&project, &["trust"])).expect(0);
    Ended::of(&mut hm(&project, &["run"])).expect(0);
    assert_eq!(ran(&project).as_deref(), Some("second"));

    let listed = Ended::of(&mut hm(&project, &["trust", "--list"])).expect(0).stdout;
    let dir = project.dir.display().to_string();
    assert!(listed.starts_with(&dir) && listed.contains("[docker] host"), "{listed}");
    Ended::of(&mut hm(&project, &["trust", "--revoke"])).expect(0);
    assert_eq!(Ended::of(&mut hm(&project, &["trust", "--list"])).expect(0).stdout, "");
    Ended::of(&mut hm(&project, &["run"])).expect(2);
    assert_eq!(ran(&project), None);
}

#[test]
fn arguments_of_the_user_need_no_consent() {
    let project = Project::new();
    let ir = on_process(&project, "word");
    // A file in the checkout, under any name.
    project.file("ir.json", &ir);
    fs::create_dir(project.dir.join(".git")).unwrap();
    project.file("sub/file", "");
    let outside = project.store.with_file_name("ir.json");
    let link = project.store.with_file_name("link.json");
    symlink(project.dir.join("ir.json"), &link).unwrap();
    let (outside_text, link_text) = (outside.display().to_string(), link.display().to_string());
    for (file, dir) in [("ir.json", "."), ("ir.json", "sub"), (&*link_text, ".")] {
        let ended = Ended::of(&mut hm(&project, &["run", "-f", file, "-d", dir])).expect(2);
        assert!(ended.stderr.contains(&format!("`hm trust -d {dir} -f {file}`")), "{}", ended.stderr);
        assert_eq!(ran(&project), None);
    }
    // A nested repository in the checkout does not make the files outside it the user's.
    fs::create_dir(project.dir.join("sub/.git")).unwrap();
    Ended::of(&mut hm(&project, &["run", "-f", "ir.json", "-d", "sub"])).expect(2);
    assert_eq!(ran(&project), None);
    fs::remove_dir(project.dir.join("sub/.git")).unwrap();
    Ended::of(&mut hm(&project, &["trust", "-f", "ir.json"])).expect(0);
    Ended::of(&mut hm(&project, &["run", "-f", "ir.json"])).expect(0);
    assert_eq!(ran(&project).as_deref(), Some("word"));
    Ended::of(&mut hm(&project, &["trust", "--revoke"])).expect(0);

    // A file outside the checkout, and stdin.
    fs::write(&outside, &ir).unwrap();
    Ended::of(&mut hm(&project, &["run", "-f", &outside_text])).expect(0);
    assert_eq!(ran(&project).as_deref(), Some("word"));
    let piped = hm(&project, &["run", "-f", "-"]).stdin(fs::File::open(&outside).unwrap()).output().unwrap();
    Ended::from(piped).expect(0);
    assert_eq!(ran(&project).as_deref(), Some("word"));

    // A pipe, as shells pass it for `<(command)`.
    let mut shell = Command::new("bash");
    shell
        .args(["-c", "exec \"$0\" run -f <(cat ir.json)"])
        .arg(crate::support::programs::hm())
        .current_dir(&project.dir);
    at_home(shell.env("HM_CACHE_DIR", &project.store).env("HM_CACHE_GC", "off"), &project);
    Ended::of(&mut shell).expect(0);
    assert_eq!(ran(&project).as_deref(), Some("word"));

    // The user's own configuration.
    let home = project.store.with_file_name("home");
    fs::create_dir_all(home.join(".config/hm")).unwrap();
    fs::write(home.join(".config/hm/hm.toml"), "[docker]\nhost = 'tcp://192.0.2.1:1'\n").unwrap();
    project.file(".hm/hm.toml", "[docker]\nhost = 'tcp://192.0.2.1:1'\n");
    project.file(".hm/ci.json", &ir);
    Ended::of(&mut hm(&project, &["run", "--runner", "process"])).expect(0);
}

#[test]
fn files_of_another_user_above_the_project_are_not_trusted() {
    const STRANGER: u32 = 1234;
    if !rustix::process::geteuid().is_root() {
        // Only root can change the owner of files.
        return;
    }
    let project = Project::with_steps(&[("a", "true", None)]);
    fs::create_dir(project.dir.join(".git")).unwrap();
    fs::create_dir(project.dir.join("mine")).unwrap();
    let list = || Ended::of(&mut hm(&project, &["ls", "-d", "mine"]));
    list().expect(0);
    for given_away in [".hm", ".git"] {
        let give = |user| std::os::unix::fs::chown(project.dir.join(given_away), Some(user), None).unwrap();
        give(STRANGER);
        let ended = list().expect(2);
        assert!(ended.stderr.contains("no directory .hm"), "{given_away}: {}", ended.stderr);
        give(0);
    }
    list().expect(0);
}

#[test]
fn a_credential_helper_in_the_checkout_is_not_run() {
    let project = Project::new();
    let ran = project.store.with_file_name("ran");
    project.file("docker-credential-evil", &format!("#!/bin/sh\necho > {}\n", ran.display()));
    fs::set_permissions(project.dir.join("docker-credential-evil"), fs::Permissions::from_mode(0o755)).unwrap();
    project.file("docker/config.json", r#"{ "credsStore": "evil" }"#);
    // No server listens at that port.
    project.file(".hm/ci.json", &ir_of(json!({ "key": "a", "cmd": "true", "image": "127.0.0.1:1/x/y:z" })));
    let paths = [Path::new("."), Path::new(""), &project.dir, Path::new("/usr/bin"), Path::new("/bin")];
    let mut run = hm(&project, &["run", "ci"]);
    run.env("PATH", std::env::join_paths(paths).unwrap()).env("DOCKER_CONFIG", project.dir.join("docker"));
    let ended = Ended::of(&mut run).expect(3);
    assert!(ended.stderr.contains("docker-credential-evil is not installed"), "{}", ended.stderr);
    assert!(!ran.exists());
}

#[test]
fn images_outside_the_project_need_consent() {
    let project = Project::new();
    for (image, asks) in [
        ("rootfs:/".to_owned(), true),
        ("oci:../elsewhere:it".to_owned(), true),
        ("docker-archive:/elsewhere.tar".to_owned(), true),
        (format!("rootfs:{}", project.dir.display()), false),
        ("oci:inside:it".to_owned(), false),
    ] {
        project.file(".hm/ci.json", &ir_of(json!({ "key": "only", "cmd": "true", "image": image })));
        let ended = Ended::of(&mut hm(&project, &["run"]));
        assert_eq!(ended.stderr.contains("which you have not allowed"), asks, "{image}: {}", ended.stderr);
        assert!(!asks || ended.code == Some(2), "{ended:?}");
        let named = Ended::of(&mut hm(&project, &["run", "--image", &format!("{image}=host")]));
        assert!(!named.stderr.contains("which you have not allowed"), "{image}: {}", named.stderr);
        let ended = Ended::of(&mut hm(&project, &["ls"])).expect(0);
        assert_eq!(ended.stderr.contains("hm trust"), asks, "{image}: {}", ended.stderr);
    }
}

#[test]
fn on_a_terminal_the_user_is_asked_once() {
    let project = Project::new();
    project.file(".hm/ci.json", &on_process(&project, "asked"));
    let open = |answer: &str| {
        let mut terminal = Terminal::open_with(&project, &["run", "--format", "human"], |hm| at_home(hm, &project));
        if !answer.is_empty() {
            terminal.expect("runner = \"process\"");
            terminal.expect("[y/N] ");
            terminal.keys(answer);
        }
        let code = terminal.hm.wait().unwrap().code();
        (code, ran(&project))
    };
    for no in ["n\n", "\n", "\u{4}", "yep\n"] {
        assert_eq!(open(no), (Some(2), None), "{no:?}");
    }
    assert_eq!(open("y\n"), (Some(0), Some("asked".into())));
    assert_eq!(open(""), (Some(0), Some("asked".into())));
}

#[test]
fn consent_is_stored_where_other_users_can_neither_read_nor_write_it() {
    let project = Project::new();
    project.file(".hm/ci.json", &on_process(&project, "kept"));
    fs::create_dir_all(trust_dir(&project).parent().unwrap()).unwrap();
    fs::create_dir(trust_dir(&project)).unwrap();
    fs::set_permissions(trust_dir(&project), fs::Permissions::from_mode(0o777)).unwrap();
    let mut loose = Command::new("sh");
    loose.args(["-c", "umask 0; exec \"$0\" trust"]).arg(crate::support::programs::hm()).current_dir(&project.dir);
    at_home(&mut loose, &project);
    Ended::of(&mut loose).expect(0);
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    let files = || -> Vec<_> {
        let entries = fs::read_dir(trust_dir(&project)).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.extension().is_some()).collect()
    };
    let [file] = &files()[..] else { panic!("{:?}", files()) };
    assert_eq!((mode(&trust_dir(&project)), mode(file)), (0o700, 0o600));
    Ended::of(&mut hm(&project, &["run"])).expect(0);
    assert_eq!(ran(&project).as_deref(), Some("kept"));

    // Files that other users may write to are not believed, and damaged files are not either.
    for path in [file.clone(), trust_dir(&project)] {
        let before = mode(&path);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o722)).unwrap();
        let ended = Ended::of(&mut hm(&project, &["run"])).expect(2);
        assert!(ended.stderr.contains("not trusted"), "{}", ended.stderr);
        fs::set_permissions(&path, fs::Permissions::from_mode(before)).unwrap();
    }
    fs::write(file, "{").unwrap();
    let ended = Ended::of(&mut hm(&project, &["run"])).expect(2);
    assert!(ended.stderr.contains("is damaged"), "{}", ended.stderr);
    assert_eq!(ran(&project), None);
    Ended::of(&mut hm(&project, &["trust"])).expect(0);
    Ended::of(&mut hm(&project, &["run"])).expect(0);
    assert_eq!(ran(&project).as_deref(), Some("kept"));
}

#[test]
fn consent_given_by_several_processes_at_once_is_all_stored() {
    let project = Project::new();
    let names: Vec<String> = (0..8).map(|at| format!("p{at}")).collect();
    for (at, name) in names.iter().enumerate() {
        let image = format!("oci:/elsewhere/{at}:it");
        let step = json!({ "key": "only", "cmd": "true", "image": image });
        project.file(&format!(".hm/{name}.json"), &ir_of(step));
    }
    let all: Vec<_> = names
        .iter()
        .map(|name| hm(&project, &["trust", name]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
        .collect();
    for one in all {
        Ended::from(one.wait_with_output().unwrap()).expect(0);
    }
    let listed = Ended::of(&mut hm(&project, &["trust", "--list"])).expect(0).stdout;
    assert_eq!(listed.matches("oci:/elsewhere/").count(), names.len(), "{listed}");
    assert_eq!(Ended::of(&mut hm(&project, &["ls"])).expect(0).stderr, "");
}

/// Puts a malicious file at `path`.
fn spoil(path: &Path, how: &str) {
    let _ = fs::remove_file(path);
    let _ = fs::remove_dir(path);
    match how {
        "a FIFO" => rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap(),
        "a directory" => fs::create_dir(path).unwrap(),
        "larger than" => fs::File::create(path).unwrap().set_len(10 << 30).unwrap(),
        "leads out" => symlink("../../secret", path).unwrap(),
        "leads out " => symlink("/dev/zero", path).unwrap(),
        "UTF-8" => fs::write(path, [0xff]).unwrap(),
        _ => unreachable!(),
    }
}

const SPOILT: [&str; 6] = ["a FIFO", "a directory", "larger than", "leads out", "leads out ", "UTF-8"];

#[test]
fn files_of_a_project_that_hang_or_lead_elsewhere_are_refused_by_name() {
    let project = Project::with_steps(&[("only", "true", None)]);
    fs::write(project.store.with_file_name("secret"), "[docker]\nhost = 's3cret'\n").unwrap();
    for how in SPOILT {
        spoil(&project.dir.join(".hm/hm.toml"), how);
        for (args, code) in
            [(&["run"][..], 2), (&["plan"], 2), (&["runners"], 2), (&["trust"], 2), (&["ls"], 0), (&["render"], 0)]
        {
            let ended = limited(&hm(&project, args)).expect(code);
            assert!(
                ended.stderr.contains(".hm/hm.toml: it is") || ended.stderr.contains(".hm/hm.toml: it leads"),
                "{ended:?}"
            );
            assert!(ended.stderr.contains(how.trim()) && !ended.stderr.contains("s3cret"), "{how}: {ended:?}");
        }
    }
    let _ = fs::remove_file(project.dir.join(".hm/hm.toml"));
    for how in SPOILT {
        spoil(&project.dir.join(".hm/odd.json"), how);
        for args in [
            &["run", "odd"][..],
            &["plan", "odd"],
            &["render", "odd"],
            &["ls"],
            &["trust"],
            &["plan", "-f", ".hm/odd.json"],
        ] {
            let ended = limited(&hm(&project, args)).expect(2);
            assert!(ended.stderr.contains(".hm/odd.json"), "{how} {args:?}: {ended:?}");
            assert!(ended.stderr.contains(how.trim()) && !ended.stderr.contains("s3cret"), "{how}: {ended:?}");
        }
        // A pipeline that is named is found beside it.
        limited(&hm(&project, &["plan", "ci"])).expect(0);
    }
    fs::remove_file(project.dir.join(".hm/odd.json")).unwrap();
    for how in ["a FIFO", "leads out", "leads out "] {
        spoil(&project.dir.join(".hm/odd.py"), how);
        let ended = limited(&hm(&project, &["ls"])).expect(2);
        assert!(ended.stderr.contains(".hm/odd.py") && ended.stderr.contains(how.trim()), "{ended:?}");
    }
    fs::remove_file(project.dir.join(".hm/odd.py")).unwrap();
    // Images in the project.
    fs::create_dir(project.dir.join("layout")).unwrap();
    for (image, path) in
        [("oci:layout", "layout/index.json"), ("oci-archive:fifo", "fifo"), ("docker-archive:fifo", "fifo")]
    {
        spoil(&project.dir.join(path), "a FIFO");
        project.file(".hm/image.json", &ir_of(json!({ "key": "only", "cmd": "true", "image": image })));
        let ended = limited(&hm(&project, &["run", "image"]));
        assert!(matches!(ended.code, Some(1..=3)), "{image}: {ended:?}");
        assert!(format!("{ended:?}").contains("not a regular file"), "{image}: {ended:?}");
    }
    // The whole directory.
    fs::remove_dir_all(project.dir.join(".hm")).unwrap();
    let elsewhere = project.store.with_file_name("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("ci.json"), ir(&[("only", "true", None)])).unwrap();
    symlink("../elsewhere", project.dir.join(".hm")).unwrap();
    for command in ["plan", "ls", "run"] {
        let ended = limited(&hm(&project, &[command])).expect(2);
        assert!(ended.stderr.contains("leads out of the project"), "{ended:?}");
    }
}
