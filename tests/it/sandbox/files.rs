//! The files that a step and its children see, beyond what the conformance suite requires of every runner.

use std::{fs, os::unix::fs::PermissionsExt};

use crate::support::{
    backends::skip,
    rootfs::shell_rootfs,
    sandbox::{Ask, Bench},
    users::is_root,
};

#[tokio::test]
async fn a_step_sees_the_source_and_prints() {
    let bench = Bench::new();
    fs::write(bench.source().join("hello"), "from the source\n").unwrap();
    let (code, output) = bench.sh("cat hello; echo oops >&2; pwd; id -u; exit 3").await;
    assert_eq!((code, output.as_str()), (3, "from the source\n/workspace\n0\nerr: oops\n"));
}

#[tokio::test]
async fn failed_steps_and_steps_without_a_needed_snapshot_commit_nothing() {
    let bench = Bench::new();
    let mut run = bench.run();
    let failed = bench.step(&mut run, Ask::new("touch x; exit 1")).await.unwrap();
    let mut unneeded = Ask::new("touch x");
    unneeded.commit = false;
    let unneeded = bench.step(&mut run, unneeded).await.unwrap();
    assert_eq!((failed.committed_snapshot, unneeded.committed_snapshot), (None, None));
    assert_eq!(bench.layers_above_images(), 1, "the source alone");
}

#[tokio::test]
async fn a_long_chain_is_flattened_without_losing_files() {
    let bench = Bench::new();
    let mut run = bench.run();
    let mut parent = bench.step(&mut run, Ask::new("echo 0 > f0; echo 0 > all")).await.unwrap();
    for step in 1..hm_exec::store::MAX_LAYERS + 3 {
        let cmd = format!("echo {step} > f{step}; echo {step} >> all; rm f{}", step - 1);
        run = bench.run();
        parent = bench.step(&mut run, Ask::new(cmd).after(&parent)).await.unwrap();
    }
    let mut run = bench.run();
    bench.step(&mut run, Ask::new("ls; wc -l < all").after(&parent)).await.unwrap();
    let last = hm_exec::store::MAX_LAYERS + 2;
    assert_eq!(run.output().await, format!("all\nf{last}\n{}\n", last + 1));
}

#[tokio::test]
async fn system_directories_can_be_written_to_and_the_machine_does_not_change() {
    if !is_root() {
        skip("an ordinary user's step can't change directories that root owns");
        return;
    }
    let bench = Bench::new();
    let mut run = bench.run();
    let install = "echo tool > /usr/local/bin/hm-test-tool; echo conf > /etc/hm-test.conf; rm /etc/hostname /etc/motd; \
                   chmod 711 /opt; mkdir /var/lib/hm-test";
    let parent = bench.step(&mut run, Ask::new(install)).await.unwrap();
    let look =
        "cat /usr/local/bin/hm-test-tool /etc/hm-test.conf; ls /etc/hostname; stat -c %a /opt; ls -d /var/lib/hm-test";
    let child = bench.step(&mut run, Ask::new(look).after(&parent)).await.unwrap();
    let output = run.output().await;
    assert_eq!(child.exit_code, 0, "{output}");
    assert!(output.starts_with("tool\nconf\n711\n/var/lib/hm-test\n"), "{output}");
    assert!(!std::path::Path::new("/etc/hm-test.conf").exists() && !std::path::Path::new("/var/lib/hm-test").exists());
    assert_ne!(fs::metadata("/opt").unwrap().permissions().mode() & 0o777, 0o711);
}

#[tokio::test]
async fn a_root_filesystem_in_a_directory_boots() {
    let Some(rootfs) = shell_rootfs() else {
        skip("no static busybox, nor a shell with its libraries to copy");
        return;
    };
    let bench = Bench::new();
    fs::write(bench.source().join("hello"), "hello\n").unwrap();
    let image = format!("rootfs:{}", rootfs.path().display());
    let mut run = bench.run();
    let parent =
        bench.step(&mut run, Ask::new("read x < hello; echo $x; echo made > /made").image(&image)).await.unwrap();
    assert_eq!(parent.exit_code, 0);
    let child = bench.step(&mut run, Ask::new("read x < /made; echo $x; echo /*").after(&parent)).await.unwrap();
    let output = run.output().await;
    assert_eq!(child.exit_code, 0);
    assert!(output.starts_with("hello\nmade\n/bin /dev "), "{output}");
    assert!(!rootfs.path().join("made").exists(), "the image was written to");
}

#[tokio::test]
async fn a_missing_image_or_one_that_contains_the_store_is_an_error_and_not_retried() {
    let bench = Bench::new();
    for (image, told) in [("rootfs:/no/such/dir", "no such directory"), ("rootfs:/", "HM_CACHE_DIR")] {
        let mut run = bench.run();
        let error = bench.step(&mut run, Ask::new("true").image(image)).await.unwrap_err();
        let line = error.to_line();
        assert!(line.contains(told) && !error.is_retryable(), "{line}");
    }
}
