//! What a step must not see, and must not be able to do.

mod as_docker;
mod mounts;
mod own_file;

use std::fs;

use hm_exec::runner::{Secrets, StepRunner, sandbox::UserNamespace};

use crate::support::{
    sandbox::{Ask, Bench},
    users::has_users,
};
use hm_exec::runner::Probe;

#[tokio::test]
async fn the_probe_reports_a_usable_sandbox() {
    assert!(matches!(Bench::new().runner.probe().await, Probe::Usable { note: Some(_), .. }));
}

#[tokio::test]
async fn home_directories_keys_credentials_and_the_store_are_hidden() {
    let bench = Bench::new();
    let home = std::env::var("HOME").unwrap();
    let secret = bench.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    let cmd = format!(
        "for p in {home}/.ssh {home}/.docker {home}/.cargo {home}/.netrc {} {} {} {}; do test -e $p && echo \"$p is there\"; done; \
         ls -A /root /home; cat /etc/shadow 2>/dev/null | grep -c '\\$' ; ls /etc/ssh/*_key 2>/dev/null; true",
        bench.store.dir().display(),
        bench.source().display(),
        secret.display(),
        env!("CARGO_MANIFEST_DIR"),
    );
    let (code, output) = bench.sh(&cmd).await;
    let visible: Vec<&str> = output.lines().filter(|line| !["0", "/root:", "/home:", ""].contains(line)).collect();
    assert_eq!((code, visible), (0, vec![]), "{output}");
}

#[tokio::test]
async fn a_step_sees_only_its_own_processes_and_inherits_nothing() {
    let bench = Bench::new();
    let (code, output) =
        bench.sh("cd /proc; echo [0-9]*; ls /proc/$$/fd; env | grep -v '^_=' | sort; cat /proc/1/environ").await;
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[0].split(' ').count(), 2, "pid 1 and the shell: {output}");
    assert_eq!(lines[1..4], ["0", "1", "2"], "{output}");
    assert!(!output.contains("CARGO"), "the engine's environment leaks: {output}");
    // The shell adds PWD; some shells add SHLVL and OLDPWD too. With a single id, APT gets its configuration.
    let mut known = vec!["HOME", "PATH", "PWD", "OLDPWD", "SHLVL", "container", "CI"];
    known.extend((!has_users()).then_some("APT_CONFIG"));
    let names: Vec<&str> = lines.iter().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    assert!(names.iter().all(|name| known.contains(name)), "{output}");
    assert_eq!(names.contains(&"APT_CONFIG"), !has_users(), "{output}");
    // Pid 1 is inaccessible to the command, although both are root.
    assert!(output.contains("Permission denied"), "{output}");
    let _ = code;
}

#[tokio::test]
async fn a_step_cannot_change_the_machine() {
    let bench = Bench::new();
    for cmd in [
        "mount -t tmpfs x /mnt",
        "umount /proc",
        "unshare -m true",
        "unshare -Ur true",
        "echo 1 > /proc/sys/kernel/printk",
        "echo h > /proc/sysrq-trigger",
        "echo x > /sys/kernel/uevent_helper",
        "hostname elsewhere",
        "date -s @0",
        "swapoff -a && false",
        "cat /proc/kcore | head -c 1 | grep -q .",
        "nsenter -t 1 -m true",
        "chroot / mount -t proc p /mnt",
        "kill -9 1; test -d /proc/1 || exit 0; exit 1",
    ] {
        let (code, output) = bench.sh(&format!("{cmd} 2>&1")).await;
        assert_ne!(code, 0, "{cmd}: {output}");
    }
}

#[tokio::test]
async fn the_capabilities_of_a_step_are_few() {
    let bench = Bench::new();
    // Raw sockets (bit 13) are only for a network of the step's own.
    for (network, granted) in [("host", "00000000a00405fb"), ("none", "00000000a00425fb")] {
        let mut run = bench.run();
        let ask = Ask::new("grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status");
        bench.step(&mut run, ask.args(serde_json::json!({ "network": network }))).await.unwrap();
        let output = run.output().await;
        let field = |name: &str| output.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        assert_eq!((field("CapInh:"), field("CapAmb:")), ("0000000000000000".into(), "0000000000000000".into()));
        for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
            assert_eq!(field(set), granted, "{set} on network {network}");
        }
        assert_eq!(field("Seccomp:"), "2");
    }
}

#[tokio::test]
async fn device_nodes_cannot_be_made_and_other_nodes_can() {
    let bench = Bench::new();
    let cmd = "for dir in . /dev /dev/shm /run /tmp; do for node in 'b 8 0' 'c 1 11' 'c 1 3'; do \
               mknod $dir/n $node 2> /dev/null && echo $dir $node; ls $dir/n 2> /dev/null; done; done; \
               mknod p p && mkfifo q && test -p p && test -p q && mknod /dev/shm/whiteout c 0 0 && stat -c %t:%T /dev/shm/whiteout";
    let (code, output) = bench.sh(cmd).await;
    assert_eq!((code, output.as_str()), (0, "0:0\n"));
}

#[tokio::test]
async fn without_a_network_only_the_loopback_device_exists() {
    let bench = Bench::new();
    let mut run = bench.run();
    let ask = Ask::new("ls /sys/class/net; cat /sys/class/net/lo/operstate; tail -n +3 /proc/net/dev | wc -l")
        .args(serde_json::json!({ "network": "none" }));
    assert_eq!(bench.step(&mut run, ask).await.unwrap().exit_code, 0);
    let output = run.output().await;
    assert!(output.ends_with("1\n") && output.starts_with("lo\n"), "{output}");
}

#[tokio::test]
async fn the_usual_devices_work() {
    let bench = Bench::new();
    let cmd = "set -e; mountpoint -q /dev/shm; stat -c %a /dev/shm /run/lock; stat -fc %T /dev/mqueue || echo mqueue; \
               echo x > /dev/null; head -c 3 /dev/zero | od -An -c; head -c 1 /dev/urandom > /dev/null; \
               ls -ld /dev/shm | cut -c1-10; echo y > /dev/shm/y; echo via > /dev/stdout; test -c /dev/ptmx; \
               stat -fc %T /dev/shm /proc /sys /; script -qc 'tty' /dev/null 2>/dev/null || echo no script";
    let (code, output) = bench.sh(cmd).await;
    assert_eq!(code, 0, "{output}");
    assert!(output.starts_with("1777\n1777\nmqueue\n"), "{output}");
    assert!(output.contains("drwxrwxrwt\nvia\ntmpfs\nproc\nsysfs\n"), "{output}");
    assert!(output.contains("/dev/pts/0") || output.contains("no script"), "{output}");
}

#[tokio::test]
async fn secrets_are_files_that_are_in_no_layer() {
    let bench = Bench::new();
    let mut secrets = Secrets::new();
    secrets.insert("token", "s3cr3t-value");
    let mut run = bench.run_with(secrets.clone());
    let cmd = "stat -c '%a %u' /run/secrets/token; rev /run/secrets/token; echo; echo x > /run/secrets/token; \
               cat /run/secrets/token; test ! -e /proc/1/root/run/secrets/token";
    let parent = bench.step(&mut run, Ask::new(cmd)).await.unwrap();
    assert_eq!(parent.exit_code, 0);
    let output = run.output().await;
    assert!(output.starts_with("400 0\neulav-t3rc3s\n"), "{output}");
    assert!(!output.contains("s3cr3t-value") && output.contains("Read-only"), "{output}");
    let grep = std::process::Command::new("grep").args(["-r", "s3cr3t"]).arg(bench.store.dir()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&grep.stdout), "");
    assert_eq!(bench.layers_above_images(), 1, "the mount point is in a layer");

    let mut run = bench.run();
    let child = bench.step(&mut run, Ask::new("test -e /run/secrets/token").after(&parent)).await.unwrap();
    assert_eq!(child.exit_code, 1, "a run without secrets has one");
}

#[tokio::test]
async fn with_a_single_id_changing_an_owner_succeeds_without_effect() {
    let bench = Bench::with(|builder| builder.user_namespace(UserNamespace::Single));
    let cmd = "touch f; chown 7:8 f && stat -c '%u %g' f; mknod d c 1 3 2> /dev/null || echo refused; mkfifo p && ls p; \
               chgrp -R 5 . && echo done";
    let (code, output) = bench.sh(cmd).await;
    assert_eq!((code, output.as_str()), (0, "0 0\nrefused\np\ndone\n"));
}
