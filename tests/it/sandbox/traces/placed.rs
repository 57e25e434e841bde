//! A layer that a step wrote may be put over those of another parent only if everything in it is explained:
//! by what the step did, or by something below that is compared.
//!
//! Each kind of entry has a row: two parents that differ in just that. See `docs/design/trace-cache.md`,
//! "When is it sound to put a layer over others?".

use hm_exec::event::ShadowVerdict;

use super::shadow::Shadowed;
use crate::support::sandbox::{Ask, Bench};

/// Runs a step over a parent, then over another one. Returns what came of the second look-up.
async fn over_another(parents: [&str; 2], cmd: &str) -> ShadowVerdict {
    let bench = Bench::new();
    let mut verdicts = Vec::new();
    for parent in parents {
        let mut run = bench.run();
        let parent = bench.step(&mut run, Ask::new(parent)).await.unwrap();
        assert_eq!(parent.exit_code, 0, "{parent:?}");
        let step = Shadowed::of(&bench, &mut run, Ask::new(cmd).after(&parent)).await;
        assert!(step.code == 0 || !verdicts.is_empty(), "{cmd}: {step:?}");
        assert_eq!(step.verdict.difference, None, "{cmd}");
        verdicts.push(step.verdict);
    }
    assert_eq!(verdicts[0], ShadowVerdict::default(), "{cmd}");
    verdicts.remove(1)
}

/// A step, and two parents that differ in just one thing that its layer depends on.
#[derive(Debug)]
pub(super) struct Row {
    /// The entry of the layer that depends on it.
    entry: &'static str,
    pub(super) parents: [&'static str; 2],
    pub(super) cmd: &'static str,
    /// Why the step is not found over the second parent.
    pub(super) because: &'static str,
}

const fn row(entry: &'static str, parents: [&'static str; 2], cmd: &'static str, because: &'static str) -> Row {
    Row { entry, parents, cmd, because }
}

pub(super) const ROWS: [Row; 20] = [
    row(
        "a file that it made",
        ["mkdir d", "mkdir d; echo 2 > d/made"],
        "echo 1 > d/made",
        "/workspace/d/made appeared",
    ),
    row(
        "a directory that it made",
        ["true", "mkdir d; echo 2 > d/x"],
        "mkdir -p d; echo 1 > d/made",
        "/workspace/d appeared",
    ),
    row(
        "a file that was copied up and changed",
        ["echo 1 > f", "echo 2 > f"],
        "echo more >> f",
        "/workspace/f changed",
    ),
    row("a file that was cut", ["echo 12345 > f", "echo 67890 > f"], "truncate -s 3 f", "/workspace/f changed"),
    row(
        "a file of which only the mode was changed",
        ["echo 1 > f", "echo 2 > f"],
        "chmod 600 f",
        "/workspace/f changed",
    ),
    row(
        "a file of which only the time was changed",
        ["echo 1 > f", "echo 2 > f"],
        "touch -d 1990-01-01 f",
        "/workspace/f changed",
    ),
    row(
        "a mode that was changed",
        ["echo 1 > f; chmod 600 f", "echo 1 > f; chmod 640 f"],
        "chmod u+x f",
        "the mode, owner or attributes of /workspace/f changed",
    ),
    row(
        "a file that was replaced",
        ["echo 1 > f; chmod 600 f", "echo 1 > f; chmod 640 f"],
        "echo x > f",
        "the mode, owner or attributes of /workspace/f changed",
    ),
    row("a file that was there", ["echo 1 > f", "true"], "echo x > f", "/workspace/f is gone"),
    row("a file that was replaced by another", ["echo 1 > f", "true"], "echo x > g; mv g f", "/workspace/f is gone"),
    row("a whiteout", ["echo 1 > f", "true"], "rm -f f", "/workspace/f is gone"),
    row("a file that was moved", ["echo 1 > f", "echo 2 > f"], "mv f g", "/workspace/f changed"),
    row(
        "a whiteout of a directory",
        ["mkdir d; echo 1 > d/a", "mkdir d; echo 1 > d/a; echo 1 > d/b"],
        "rm -r d",
        "/workspace/d lists other names",
    ),
    row(
        "a whiteout of an empty directory",
        ["mkdir d", "mkdir d; echo 1 > d/a"],
        "rmdir d",
        "/workspace/d lists other names",
    ),
    row(
        "an opaque directory",
        ["mkdir d; echo 1 > d/a", "mkdir d; echo 1 > d/a; echo 1 > d/b"],
        "rm -r d; mkdir d; echo 1 > d/made",
        "/workspace/d lists other names",
    ),
    row(
        "a directory that was replaced by another",
        ["mkdir d", "mkdir d; echo 1 > d/b"],
        "mkdir e; mv -T e d",
        "/workspace/d lists other names",
    ),
    row(
        "a directory that was passed through",
        ["mkdir -m 700 d", "mkdir -m 750 d"],
        "echo 1 > d/made",
        "the mode, owner or attributes of /workspace/d changed",
    ),
    row(
        "a directory far above",
        ["mkdir -p d/e/f", "mkdir -p d/e/f; chmod 700 d"],
        "cd d/e/f; echo 1 > made",
        "the mode, owner or attributes of /workspace/d changed",
    ),
    row(
        "a directory in place of which there is a link",
        ["mkdir d e", "mkdir e; ln -s e d"],
        "echo 1 > d/made",
        "/workspace/d changed",
    ),
    row("a hard link", ["echo 1 > f", "echo 2 > f"], "ln f g", "/workspace/f changed"),
];

#[tokio::test]
async fn each_difference_that_an_entry_of_the_layer_depends_on_is_seen() {
    for Row { entry, parents, cmd, because } in &ROWS {
        let verdict = over_another(*parents, cmd).await;
        assert_eq!((verdict.found, verdict.miss.as_deref()), (false, Some(*because)), "{entry}: {cmd}");
    }
}

#[tokio::test]
async fn what_it_does_not_read_may_differ() {
    let verdict = over_another(["echo 1 > f; echo 1 > g", "echo 1 > f; echo 2 > g; mkdir h"], "rm f").await;
    assert!(verdict.found, "{verdict:?}");
}
