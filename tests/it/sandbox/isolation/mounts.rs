//! What a step can change through its view of the machine: nothing.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
};

use hm_exec::runner::sandbox::UserNamespace;

use crate::support::{
    sandbox::{Ask, Bench},
    users::is_root,
};

const NODES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Returns the properties of an inode that a step could change, and the time of its last change of any kind.
fn looks(path: &Path) -> (u32, u32, u32, i64, i64) {
    let it = fs::metadata(path).unwrap();
    (it.mode(), it.uid(), it.gid(), it.ctime(), it.ctime_nsec())
}

/// Returns benches as root, and as root of a user namespace in which root is the machine's root, so that only
/// mounts protect the machine.
fn benches() -> Vec<Bench> {
    let single = Bench::with(|builder| builder.user_namespace(UserNamespace::Single));
    if is_root() { vec![Bench::new(), single] } else { vec![single] }
}

#[tokio::test]
async fn the_device_nodes_of_the_machine_stay_as_they_are() {
    let nodes = || NODES.map(|name| looks(&Path::new("/dev").join(name)));
    let before = nodes();
    // Modes that do no harm if they take effect.
    let cmd = "cd /dev; for n in null zero full random urandom tty; do chmod 1666 $n; chown 0:0 $n; touch -c -d @7 $n; done; \
               for p in /proc/keys /proc/timer_list; do test -e $p && chmod 1666 $p && echo changed $p; done; \
               rm -f null; echo x > null && head -c 2 zero | wc -c && test -c null && echo works";
    for bench in benches() {
        let (code, output) = bench.sh(&format!("exec 2> /workspace/errors; {cmd}")).await;
        let after = nodes();
        for (name, ..) in NODES.iter().zip(&before).zip(&after).filter(|((_, before), after)| before != after) {
            // Restores the modes for all other processes on this machine if this test fails.
            fs::set_permissions(Path::new("/dev").join(name.0), fs::Permissions::from_mode(0o666)).unwrap();
        }
        assert_eq!(after, before, "{bench:?}");
        assert_eq!((code, output.as_str()), (0, "2\nworks\n"), "{bench:?}");
    }
}

#[tokio::test]
async fn files_of_the_machine_are_mounted_read_only_and_without_devices() {
    let shown =
        tempfile::Builder::new().prefix("hm-shown-").tempdir_in("/opt").or_else(|_| tempfile::tempdir()).unwrap();
    let dir = shown.path().canonicalize().unwrap();
    fs::write(dir.join("file"), "x").unwrap();
    symlink("file", dir.join("link")).unwrap();
    let rootfs = tempfile::tempdir().unwrap();
    fs::create_dir_all(rootfs.path().join("etc")).unwrap();
    fs::create_dir_all(rootfs.path().join("bin")).unwrap();
    fs::copy("/bin/busybox", rootfs.path().join("bin/busybox")).unwrap();
    symlink("busybox", rootfs.path().join("bin/sh")).unwrap();
    fs::write(rootfs.path().join("etc/resolv.conf"), "").unwrap();
    let machines = [dir.clone(), dir.join("file"), "/etc/resolv.conf".into()];
    let before = machines.clone().map(|path| looks(&path));
    // With a single id, changing owners succeeds without effect, so the inodes are checked.
    // Overlays, files in memory and the kernel's file systems belong to the step; everything else belongs to
    // the machine. No device can be opened through any of them, except the nodes of /dev, terminals, and the
    // mounts that hide files of the kernel's file systems.
    let cmd = "export PATH=$PATH:/bin; while read -r source place kind options rest; do \
                 case $kind in overlay|tmpfs|proc|sysfs|devpts|mqueue|cgroup*) ;; *) echo $place; \
                   case $options in ro,*) ;; *) echo writable: $place;; esac; \
                   for p in $place $place/file; do test -e $p || continue; \
                     $B chmod 777 $p 2>/dev/null && echo chmod $p; $B chown 7 $p 2>/dev/null; \
                     $B touch -c -d @7 $p 2>/dev/null && echo touch $p; setfattr -n user.x -v x $p 2>/dev/null && echo xattr $p; \
                   done;; esac; \
                 case $kind:$place in devpts:*|*:/dev/null|*:/dev/zero|*:/dev/full|*:/dev/random|*:/dev/urandom|*:/dev/tty) ;; \
                   tmpfs:/proc/*|devtmpfs:/proc/*) case $options in ro,*) ;; *) echo writable: $place;; esac;; \
                   *) case ,$options, in *,nodev,*) ;; *) echo devices: $place $kind $options;; esac;; esac; \
               done < /proc/self/mounts; true";
    for bench in [Bench::with(|builder| builder.host_dir(&dir))].into_iter().chain(benches()) {
        for image in ["host".to_owned(), format!("rootfs:{}", rootfs.path().display())] {
            let mut run = bench.run();
            let busybox = if image == "host" { "" } else { "/bin/busybox" };
            // With a network of its own, a step has a resolver's file of its own.
            let args = serde_json::json!({ "network": "host" });
            let ask = Ask::new(cmd).image(image.as_str()).env("B", busybox).args(args);
            assert_eq!(bench.step(&mut run, ask).await.unwrap().exit_code, 0);
            let output = run.output().await;
            let wrong: Vec<_> = output.lines().filter(|line| !line.starts_with('/')).collect();
            assert!(wrong.is_empty(), "{image}: {output}");
            let looked_at = if image == "host" { dir.to_str().unwrap() } else { "/etc/resolv.conf" };
            assert!(image == "host" || output.lines().any(|line| line == looked_at), "{image}: {output}");
        }
    }
    assert_eq!(machines.map(|path| looks(&path)), before);
}
