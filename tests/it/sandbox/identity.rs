//! The identity of a step: users, groups and privileges, its host name, and the marks of a container.

use std::fs;

use hm_exec::runner::sandbox::UserNamespace;
use serde_json::json;

use crate::support::{
    backends::{skip, skip_optional},
    images::{BUSYBOX, Image, Layer, has_busybox},
    programs::hm,
    sandbox::{Ask, Bench},
    users::has_users,
};

/// Runs `cmd` on an image with a shell, a user `tuser`, `su` and `ping` with the setuid bit, and a `cat` with
/// a capability.
async fn on_an_image(bench: &Bench, cmd: &str) -> (i32, String) {
    // CAP_CHOWN, permitted and effective, as `setcap` writes it: version 2, little endian.
    const CHOWN: [u8; 20] = [1, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut image = Image::shell();
    let busybox = fs::read(BUSYBOX).unwrap();
    let layer = Layer::new()
        .file("etc/passwd", 0o644, "root::0:0::/root:/bin/sh\ntuser:x:1234:1234::/:/bin/sh\n")
        .file("etc/group", 0o644, "root:x:0:\nwheel:x:10:daemon,root\ntuser:x:1234:\n")
        .file("bin/su", 0o4755, &busybox)
        .file("bin/ping", 0o4755, &busybox)
        .put(tar::EntryType::XHeader, "pax", 0o644, "", &record("SCHILY.xattr.security.capability", &CHOWN))
        .file("caps/cat", 0o755, &busybox)
        .symlink("tools/grep", "/bin/busybox")
        .symlink("tools/unshare", "/bin/busybox")
        .symlink("tools/mount", "/bin/busybox");
    image.layers.push(layer.bytes());
    image.write_oci(&bench.path().join("oci"), "latest");
    let name = format!("oci:{}", bench.path().join("oci").display());
    let mut run = bench.run();
    let ask = Ask::new(cmd).image(name).args(json!({ "network": "none" }));
    let result = bench.step(&mut run, ask).await.unwrap();
    let output = run.output().await;
    // Drops the lines about the image's unpacking.
    let lines = output.lines().filter(|line| !line.starts_with("err: unpack"));
    (result.exit_code, lines.map(|line| line.to_owned() + "\n").collect())
}

/// Returns a record of an extended header, which begins with its own length.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
    let length = (rest.len()..).find(|length| length.to_string().len() + rest.len() == *length).unwrap();
    [length.to_string().into_bytes(), rest].concat()
}

#[tokio::test]
async fn programs_of_an_image_gain_the_privileges_of_their_files() {
    if !has_busybox() || !has_users() {
        return;
    }
    let bench = Bench::new();
    for (what, cmd, expected) in [
        ("the setuid bit", "su tuser -c \"id -u; /bin/su root -c 'id -u'\"", "1234\n0\n"),
        ("a file capability", "su tuser -c '/caps/cat /proc/self/status' | grep CapEff", "CapEff:\t0000000000000001\n"),
        ("none", "su tuser -c 'cat /proc/self/status' | grep CapEff", "CapEff:\t0000000000000000\n"),
        ("a raw socket", "su tuser -c '/bin/ping -c 1 -W 5 127.0.0.1 | grep -c from'", "1\n"),
    ] {
        let (code, output) = on_an_image(&bench, cmd).await;
        assert_eq!((code, output.as_str()), (0, expected), "{what}");
    }
}

#[tokio::test]
async fn gained_privileges_stay_within_the_bounds_and_the_filter_of_the_step() {
    if !has_busybox() || !has_users() {
        return;
    }
    let bench = Bench::new();
    let cmd = "su tuser -c \"/bin/su root -c 'grep -E ^\\\\(Cap\\\\|NoNewPrivs\\\\|Seccomp:\\\\) /proc/self/status; \
               unshare -m true; mount -t tmpfs x /tmp; echo x > /proc/sys/kernel/printk; true'\" 2>&1";
    let (code, output) = on_an_image(&bench, cmd).await;
    assert_eq!(code, 0, "{output}");
    for line in ["CapPrm:\t00000000a00425fb", "CapBnd:\t00000000a00425fb", "NoNewPrivs:\t0", "Seccomp:\t2"] {
        assert!(output.lines().any(|found| found == line), "{line}: {output}");
    }
    assert_eq!(output.matches("ermitted").count() + output.matches("ermission denied").count(), 2, "{output}");
    assert!(output.contains("Read-only"), "{output}");
}

#[tokio::test]
async fn programs_that_a_step_makes_on_the_host_image_gain_privileges_too() {
    if !has_users() {
        return;
    }
    let bench = Bench::new();
    let cmd = "set -e; cp $(command -v id) user; cp user group; chmod 4755 user; chgrp 7 group; chmod 2755 group; \
               for it in './user -u' './group -g'; do setpriv --reuid 1234 --regid 1234 --clear-groups $it; done";
    assert_eq!(bench.sh(cmd).await, (0, "0\n7\n".to_owned()));
}

#[tokio::test]
async fn with_a_single_id_no_privileges_are_gained() {
    let bench = Bench::with(|builder| builder.user_namespace(UserNamespace::Single));
    let (code, output) = bench.sh("grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status; id -u").await;
    assert_eq!((code, output.as_str()), (0, "NoNewPrivs:\t1\nSeccomp:\t2\n0\n"));
}

#[tokio::test]
async fn root_is_in_the_groups_that_list_it() {
    if !has_users() {
        return;
    }
    let bench = Bench::new();
    let (code, output) = bench.sh("id -G | cut -d' ' -f1; grep ^Groups /proc/self/status").await;
    assert!(code == 0 && output.starts_with("0\nGroups:\t0 "), "{output}");
    if has_busybox() {
        let (_, output) = on_an_image(&bench, "id -G; grep Groups /proc/self/status").await;
        assert_eq!(output, "0 10\nGroups:\t0 10 \n");
    }
}

#[tokio::test]
async fn the_host_name_resolves_on_the_host_image() {
    let bench = Bench::new();
    let mut run = bench.run();
    let cmd = "set -e; getent hosts $(uname -n) | grep -q $(uname -n); hostname -f > /dev/null; \
               getent ahostsv6 ip6-localhost > /dev/null; grep -q ip6-allrouters /etc/hosts; \
               echo 10.9.8.7 mine >> /etc/hosts; getent hosts mine | cut -d' ' -f1";
    let parent = bench.step(&mut run, Ask::new(cmd)).await.unwrap();
    assert_eq!((parent.exit_code, run.output().await.as_str()), (0, "10.9.8.7\n"));
    let mut run = bench.run();
    let child = bench.step(&mut run, Ask::new("grep -c mine /etc/hosts").after(&parent)).await.unwrap();
    assert_eq!((child.exit_code, run.output().await.as_str()), (1, "0\n"), "the file is in a layer");
}

#[tokio::test]
async fn the_host_name_is_known_on_images_with_and_without_a_file() {
    if !has_busybox() {
        return;
    }
    let bench = Bench::new();
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    for (own, kept) in [(None, "127.0.0.1\tlocalhost"), (Some("10.1.2.3 of-the-image"), "10.1.2.3 of-the-image")] {
        let mut image = Image::shell();
        if let Some(own) = own {
            image.layers.push(Layer::new().file("etc/hosts", 0o644, own).bytes());
        }
        let dir = bench.path().join(format!("oci-{}", own.is_some()));
        image.write_oci(&dir, "latest");
        let mut run = bench.run();
        let cmd = "cat /etc/hosts; stat -c %a:%u /etc/hosts; stat -c %F /run/.containerenv; echo $container";
        let ask = Ask::new(cmd).image(format!("oci:{}", dir.display()));
        let layers = || fs::read_dir(bench.store.dir().join("layers")).unwrap().count();
        let result = bench.step(&mut run, ask.clone()).await.unwrap();
        let output = run.output().await;
        assert_eq!(result.exit_code, 0, "{output}");
        assert!(output.starts_with(kept) && output.contains("\n644:0\nregular file\nhm\n"), "{output}");
        let is_named = |line: &str| line.split_ascii_whitespace().skip(1).any(|name| name == hostname);
        assert!(output.lines().any(is_named), "{hostname}: {output}");
        assert!(output.contains("ff02::1\tip6-allnodes\n"), "{output}");
        let before = layers();
        let mut run = bench.run();
        bench.step(&mut run, ask).await.unwrap();
        assert_eq!(layers(), before, "a step that changes nothing has a layer");
    }
}

#[tokio::test]
async fn programs_that_read_the_mounts_in_etc_find_them_on_every_image() {
    let cmd = "grep -c '^proc /proc proc' /etc/mtab";
    assert_eq!(Bench::new().sh(cmd).await, (0, "1\n".into()), "the host image");
    if !has_busybox() {
        return;
    }
    let bench = Bench::new();
    assert_eq!(on_an_image(&bench, cmd).await, (0, "1\n".into()));
}

#[tokio::test]
async fn a_step_sees_the_marks_of_a_container_and_can_override_the_variable() {
    let bench = Bench::new();
    let (code, output) = bench.sh("cat /run/.containerenv; echo $container").await;
    assert_eq!((code, output.as_str()), (0, "engine=\"hm\"\nhm\n"));
    let mut run = bench.run();
    bench.step(&mut run, Ask::new("echo $container").env("container", "own")).await.unwrap();
    assert_eq!(run.output().await, "own\n");
}

#[tokio::test]
async fn a_step_inherits_neither_ignored_nor_blocked_signals() {
    use std::os::unix::fs::PermissionsExt;
    let (action, mask) = if cfg!(target_arch = "x86_64") { (13, 14) } else { (134, 135) };
    let dir = tempfile::tempdir().unwrap();
    let helper = dir.path().join("helper");
    // The real-time signals that the C library reserves for itself are among them: only the raw system call
    // accepts those.
    let script = format!(
        "#!/bin/sh\nPATH=/usr/bin:/bin exec perl -e 'my $ignore = pack(q(Q4), 1, 0, 0, 0); my $block = pack(q(Q), 1 << 11 | 1 << 32); \
         for my $signal (1, 2, 13, 32, 33, 40, 64) {{ syscall({action}, $signal, $ignore, 0, 8) == 0 or die }} \
         syscall({mask}, 0, $block, 0, 8) == 0 or die; exec @ARGV' '{}' \"$@\"\n",
        hm().display()
    );
    fs::write(&helper, script).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    if std::process::Command::new("perl").arg("-e1").status().is_err() {
        skip("no perl here");
        return;
    }
    let bench = Bench::with(|builder| builder.helper(helper));
    // A program is run, because a shell sets some of the signals itself.
    let (code, output) = bench.sh("grep -E '^Sig(Ign|Blk)' /proc/self/status").await;
    assert_eq!((code, output.as_str()), (0, "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n"));
}

#[tokio::test]
async fn apt_works_without_a_user_of_its_own() {
    if !fs::exists("/usr/bin/apt-get").unwrap() {
        return skip_optional("apt", "/usr/bin/apt-get is missing");
    }
    let bench = Bench::with(|builder| builder.user_namespace(UserNamespace::Single));
    // Every method of APT, also that of files, works as APT's own user.
    let update = "mkdir -p /tmp/repo /tmp/state/partial /tmp/cache && : > /tmp/repo/Packages && \
        echo 'deb [trusted=yes] file:/tmp/repo ./' > /tmp/list && \
        apt-get -o Dir::State::Lists=/tmp/state -o Dir::Cache=/tmp/cache -o Dir::Etc::SourceList=/tmp/list \
            -o Dir::Etc::SourceParts=/dev/null -o Acquire::Languages=none update 2>&1";
    let (code, output) = bench.sh(update).await;
    assert_eq!(code, 0, "{output}");
    let mut run = bench.run();
    let own = bench.step(&mut run, Ask::new("echo $APT_CONFIG").env("APT_CONFIG", "/own")).await.unwrap();
    assert_eq!((own.exit_code, run.output().await.trim()), (0, "/own"));
}
