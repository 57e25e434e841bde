//! What a step finds, and what its children find of it.

use std::{fs, os::unix::fs::PermissionsExt};

use hm_exec::runner::sandbox::MountApi;

use super::harness::{Ask, Bench, is_root};

/// Says of everything in the work directory what it is: mode, kind, links, content.
const LIST: &str =
    "for f in $(find . | LC_ALL=C sort); do stat -c '%n %A %h' $f; test -L $f || test ! -f $f || cat $f; done";

#[tokio::test]
async fn a_step_sees_the_source_and_prints() {
    let bench = Bench::new();
    fs::write(bench.source().join("hello"), "from the source\n").unwrap();
    let (code, output) = bench.sh("cat hello; echo oops >&2; pwd; id -u; exit 3").await;
    assert_eq!((code, output.as_str()), (3, "from the source\n/workspace\n0\nerr: oops\n"));
}

#[tokio::test]
async fn what_a_step_did_to_files_is_exactly_so_for_its_child() {
    for api in [MountApi::New, MountApi::Legacy] {
        let bench = Bench::with(|builder| builder.mount_api(api));
        for name in ["deleted", "replaced", "chmodded", "linked", "kept"] {
            fs::write(bench.source().join(name), format!("{name} before\n")).unwrap();
        }
        fs::create_dir_all(bench.source().join("dir/sub")).unwrap();
        fs::write(bench.source().join("dir/sub/old"), "old\n").unwrap();
        let mut run = bench.run();
        let steps = [
            "rm deleted; echo new > r; mv r replaced; chmod 4711 chmodded; ln linked hard; ln -s kept soft",
            "rm -r dir; mkdir -p dir/sub; echo new > dir/sub/new",
            "chmod 700 dir; mkfifo pipe; : > \"$(printf 'odd\\nname')\"; rm odd*",
            "mv dir moved; mkdir dir; touch dir/again; rm -r moved/sub",
        ];
        let mut parent = None;
        for step in steps {
            let ask = parent.as_ref().map_or_else(|| Ask::new(step), |parent| Ask::new(step).after(parent));
            parent = Some(bench.step(&mut run, ask).await.unwrap());
        }
        let child = Ask::new(LIST).after(&parent.unwrap());
        assert_eq!(bench.step(&mut run, child).await.unwrap().exit_code, 0);
        let expected = "\
            . drwxr-xr-x 1\n\
            ./chmodded -rws--x--x 1\nchmodded before\n\
            ./dir drwxr-xr-x 1\n\
            ./dir/again -rw-r--r-- 1\n\
            ./hard -rw-r--r-- 2\nlinked before\n\
            ./kept -rw-r--r-- 1\nkept before\n\
            ./linked -rw-r--r-- 2\nlinked before\n\
            ./moved drwx------ 1\n\
            ./pipe prw-r--r-- 1\n\
            ./replaced -rw-r--r-- 1\nnew\n\
            ./soft lrwxrwxrwx 1\n";
        // Overlays count a directory's links in their own way.
        let listing = run.output().await;
        let normal = |line: &str| match line.split_once(" d") {
            Some((name, rest)) => format!("{name} d{} 1", rest.split(' ').next().unwrap()),
            None => line.to_owned(),
        };
        let listing: String = listing.lines().map(|line| normal(line) + "\n").collect();
        assert_eq!(listing, expected, "{api:?}");
    }
}

#[tokio::test]
async fn extended_attributes_and_times_last() {
    let bench = Bench::new();
    let mut run = bench.run();
    let write =
        "touch -d @1000000000 f; python3 -c 'import os; os.setxattr(\"f\", \"user.note\", b\"kept\")' || exit 9";
    let parent = bench.step(&mut run, Ask::new(write)).await.unwrap();
    if parent.exit_code == 9 {
        super::harness::skip("no python3, or no user attributes on the store's file system");
        return;
    }
    let read =
        "stat -c %Y f; python3 -c 'import os; print(os.getxattr(\"f\", \"user.note\").decode(), os.listxattr(\"f\"))'";
    let child = bench.step(&mut run, Ask::new(read).after(&parent)).await.unwrap();
    assert_eq!((child.exit_code, run.output().await.as_str()), (0, "1000000000\nkept ['user.note']\n"));
}

#[tokio::test]
async fn a_child_of_a_step_that_saw_older_source_sees_the_new_source_and_what_the_step_made() {
    let bench = Bench::new();
    for name in ["edited", "removed", "same"] {
        fs::write(bench.source().join(name), "old\n").unwrap();
    }
    let mut first = bench.run();
    let build = "cat edited removed same > built; echo changed > edited; echo changed > same";
    let parent = bench.step(&mut first, Ask::new(build)).await.unwrap();
    assert_eq!(fs::read_to_string(bench.source().join("same")).unwrap(), "old\n", "the user's tree was written to");

    fs::write(bench.source().join("edited"), "newer\n").unwrap();
    fs::remove_file(bench.source().join("removed")).unwrap();
    fs::write(bench.source().join("added"), "added\n").unwrap();
    let mut second = bench.run();
    let look = "cat edited same added built; test -e removed && echo there";
    let child = bench.step(&mut second, Ask::new(look).after(&parent)).await.unwrap();
    assert_eq!((child.exit_code, second.output().await.as_str()), (1, "newer\nchanged\nadded\nold\nold\nold\n"));
}

#[tokio::test]
async fn a_failed_step_and_one_that_nobody_needs_commit_nothing() {
    let bench = Bench::new();
    let mut run = bench.run();
    let failed = bench.step(&mut run, Ask::new("touch x; exit 1")).await.unwrap();
    let mut unneeded = Ask::new("touch x");
    unneeded.commit = false;
    let unneeded = bench.step(&mut run, unneeded).await.unwrap();
    assert_eq!((failed.committed_snapshot, unneeded.committed_snapshot), (None, None));
    assert_eq!(fs::read_dir(bench.store.dir().join("layers")).unwrap().count(), 1, "the source alone");
}

#[tokio::test]
async fn siblings_do_not_see_each_other() {
    let bench = Bench::new();
    let mut run = bench.run();
    let parent = bench.step(&mut run, Ask::new("echo base > f")).await.unwrap();
    let one = bench.step(&mut run, Ask::new("echo one >> f").after(&parent)).await.unwrap();
    let two = bench.step(&mut run, Ask::new("echo two >> f").after(&parent)).await.unwrap();
    bench.step(&mut run, Ask::new("cat f").after(&one)).await.unwrap();
    bench.step(&mut run, Ask::new("cat f").after(&two)).await.unwrap();
    assert_eq!(run.output().await, "base\none\nbase\ntwo\n");
}

#[tokio::test]
async fn a_long_chain_is_flattened_and_loses_nothing() {
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
        super::harness::skip("an ordinary user's step can't change directories that root owns");
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
async fn a_root_file_system_in_a_directory_boots() {
    let Some(rootfs) = busybox() else {
        super::harness::skip("no static busybox, nor a shell with its libraries to copy");
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

/// A root file system with nothing but a shell.
pub(crate) fn busybox() -> Option<tempfile::TempDir> {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(dir.path().join("bin")).unwrap();
    let mut files = vec!["/bin/sh".to_owned()];
    let ldd = std::process::Command::new("ldd").arg("/bin/sh").output().ok()?;
    let ldd = String::from_utf8_lossy(&ldd.stdout).into_owned();
    files.extend(ldd.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned));
    for file in files {
        let to = dir.path().join(&file[1..]);
        fs::create_dir_all(to.parent()?).ok()?;
        fs::copy(fs::canonicalize(&file).ok()?, to).ok()?;
    }
    Some(dir)
}

#[tokio::test]
async fn an_image_that_is_missing_or_has_the_store_in_it_is_told_and_not_tried_again() {
    let bench = Bench::new();
    for (image, told) in [("rootfs:/no/such/dir", "no such directory"), ("rootfs:/", "HM_CACHE_DIR")] {
        let mut run = bench.run();
        let error = bench.step(&mut run, Ask::new("true").image(image)).await.unwrap_err();
        let line = error.to_line();
        assert!(line.contains(told) && !error.is_retryable(), "{line}");
    }
}
