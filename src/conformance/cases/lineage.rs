//! A child sees exactly the changes that its parent made to files.

use std::fs;

use crate::conformance::harness::{Broken, Harness, Step, expect};

/// Lists files with name, mode, number of links and content, and directories with name and mode.
const LIST: &str = "for f in $(find . ! -type d | LC_ALL=C sort); do stat -c '%n %A %h' $f; \
                    test -L $f || test ! -f $f || cat $f; done; \
                    for f in $(find . -type d ! -name . | LC_ALL=C sort); do stat -c '%n %A' $f; done";

/// Runs steps one after another, each on the snapshot of the previous one. Returns the output of the last
/// step.
async fn chain(harness: &Harness<'_>, steps: &[&str]) -> Result<Vec<String>, Broken> {
    let Some((last, before)) = steps.split_last() else { return Ok(Vec::new()) };
    let mut parent = None;
    for step in before {
        let step = Step::new(*step);
        parent = Some(harness.snapshot(parent.iter().fold(step, Step::after)).await?);
    }
    harness.sh(parent.iter().fold(Step::new(*last), Step::after)).await
}

/// Checks modes, links, and removed files.
pub(in crate::conformance) async fn files(harness: &Harness<'_>) -> Result<(), Broken> {
    for name in ["deleted", "replaced", "chmodded", "linked", "kept"] {
        fs::write(harness.source().join(name), format!("{name} before\n"))?;
    }
    let steps = [
        "rm deleted; echo new > r; mv r replaced; chmod 4711 chmodded; ln linked hard; ln -s kept soft",
        "mkfifo pipe; : > \"$(printf 'odd\\nname')\"; : > gone; chmod 600 replaced",
        "rm odd* gone; ln -sf linked soft2; mv kept moved",
        LIST,
    ];
    let expected = [
        "./chmodded -rws--x--x 1",
        "chmodded before",
        "./hard -rw-r--r-- 2",
        "linked before",
        "./linked -rw-r--r-- 2",
        "linked before",
        "./moved -rw-r--r-- 1",
        "kept before",
        "./pipe prw-r--r-- 1",
        "./replaced -rw------- 1",
        "new",
        "./soft lrwxrwxrwx 1",
        "./soft2 lrwxrwxrwx 1",
    ];
    expect("the files of the last child", chain(harness, &steps).await?, expected)
}

/// Checks directories that were removed, created again, renamed, or that hide earlier content.
pub(in crate::conformance) async fn directories(harness: &Harness<'_>) -> Result<(), Broken> {
    fs::create_dir_all(harness.source().join("dir/sub"))?;
    fs::write(harness.source().join("dir/sub/old"), "old\n")?;
    fs::write(harness.source().join("file"), "a file\n")?;
    let steps = [
        "rm -r dir; mkdir -p dir/sub; echo new > dir/sub/new; mkdir empty; rm file; mkdir file; echo x > file/inside",
        "chmod 1777 dir/sub; mv dir moved; mkdir dir; echo again > dir/again",
        "rm -r file; echo a file > file; rm -r dir; mkdir dir",
        LIST,
    ];
    let expected = [
        "./file -rw-r--r-- 1",
        "a file",
        "./moved/sub/new -rw-r--r-- 1",
        "new",
        "./dir drwxr-xr-x",
        "./empty drwxr-xr-x",
        "./moved drwxr-xr-x",
        "./moved/sub drwxrwxrwt",
    ];
    expect("the files of the last child", chain(harness, &steps).await?, expected)
}

pub(in crate::conformance) async fn times(harness: &Harness<'_>) -> Result<(), Broken> {
    fs::write(harness.source().join("kept"), "")?;
    let steps = [
        "mkdir d; echo x > d/f; export TZ=UTC; touch -t 200109090146.40 d/f d; stat -c %Y kept > seen; true",
        "touch other; test \"$(stat -c %Y kept)\" = \"$(cat seen)\" || echo another time of the source",
        "stat -c '%n %Y' d/f d",
    ];
    expect("times of modification", chain(harness, &steps).await?, ["d/f 1000000000", "d 1000000000"])
}

pub(in crate::conformance) async fn ownership(harness: &Harness<'_>) -> Result<(), Broken> {
    let steps = [
        "mkdir d; touch d/f; ln -s f d/l; chown 7:8 d/f; chown -h 9:10 d/l; chown 11:12 d; umask 22; chmod 2755 d",
        "touch d/more",
        "stat -c '%n %u %g %a' d d/f d/l d/more",
    ];
    let expected = ["d 11 12 2755", "d/f 7 8 644", "d/l 9 10 777", "d/more 0 12 644"];
    expect("owners and modes", chain(harness, &steps).await?, expected)
}

pub(in crate::conformance) async fn xattrs(harness: &Harness<'_>) -> Result<(), Broken> {
    let tool = harness.step(Step::new("python3 -c 'import os; os.setxattr'")).await?;
    if tool.exit_code()? != 0 {
        return Err(Broken::Image("the image has no python3 to set extended attributes with".into()));
    }
    let steps = [
        "echo x > f; mkdir d; python3 -c 'import os; os.setxattr(\"f\", \"user.note\", b\"kept\\0\"); \
         os.setxattr(\"d\", \"user.note\", b\"\")'",
        "touch other",
        "python3 -c 'import os; print(os.getxattr(\"f\", \"user.note\"), os.listxattr(\"f\"), os.listxattr(\"d\"))'",
    ];
    expect("the attributes", chain(harness, &steps).await?, ["b'kept\\x00' ['user.note'] ['user.note']"])
}

/// Checks that a child sees all changes outside the workspace, too.
pub(in crate::conformance) async fn system(harness: &Harness<'_>) -> Result<(), Broken> {
    let steps = [
        "mkdir -p /root/c/d /tmp/t; echo old > /root/c/d/old; echo tool > /tmp/t/tool",
        "rm -r /root/c; mkdir -p /root/c/d; echo new > /root/c/d/new",
        "ls /root/c/d; cat /root/c/d/new /tmp/t/tool",
    ];
    expect("files outside of the workspace", chain(harness, &steps).await?, ["new", "new", "tool"])
}
