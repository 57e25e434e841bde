//! What a step finds, and what its children find of it.

use std::fs;

use super::harness::{Ask, Bench};

#[tokio::test]
async fn a_step_sees_the_source_and_prints() {
    let bench = Bench::new();
    fs::write(bench.source().join("hello"), "from the source\n").unwrap();
    let (code, output) = bench.sh("cat hello; echo oops >&2; pwd; id -u; exit 3").await;
    assert_eq!((code, output.as_str()), (3, "from the source\n/workspace\n0\nerr: oops\n"));
}

#[tokio::test]
async fn a_child_sees_what_its_parent_left() {
    let bench = Bench::new();
    let mut run = bench.run();
    let parent = bench
        .step(&mut run, Ask::new("echo made > made; mkdir -p /usr/local/x; echo y > /usr/local/x/y"))
        .await
        .unwrap();
    let child = bench.step(&mut run, Ask::new("cat made /usr/local/x/y").after(&parent)).await.unwrap();
    assert_eq!((child.exit_code, run.output().await.as_str()), (0, "made\ny\n"));
}
