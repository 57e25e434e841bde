//! The audit: what a step wrote must be explained by its calls.

use std::fs;

use hm_exec::cache::Kinds;

use super::Traced;
use crate::support::sandbox::{Ask, Bench};

#[tokio::test]
async fn writes_of_every_kind_are_explained() {
    let bench = Bench::new();
    for dir in ["old/deep", "gone"] {
        fs::create_dir_all(bench.source().join(dir)).unwrap();
    }
    for file in ["f", "old/deep/g", "gone/h", "i", "j"] {
        fs::write(bench.source().join(file), file).unwrap();
    }
    let cmd = "set -e
        echo 1 >> f; chmod 700 i; mv j k; rm -r gone; mkdir gone; echo 2 > gone/new
        mkdir -p tree/of/dirs; echo 3 > tree/of/dirs/x; mv tree moved; ln -s f link; ln f hard; mkfifo pipe
        touch old/deep/g; cp -a old copy; rm -r copy; : > old/deep/empty";
    let it = Traced::run(&bench, Ask::new(cmd)).await;
    assert_eq!(it.code, 0, "{}", it.output);
    assert_eq!(it.reasons(), Vec::<String>::new(), "{:?}", it.source());
    assert!(it.kinds("/workspace/j").contains(Kinds::CONTENT.and(Kinds::WRITTEN)), "{:?}", it.source());
    assert!(it.kinds("/workspace/gone").contains(Kinds::LISTING), "{:?}", it.source());
    assert_eq!(it.kinds("/workspace/moved/of/dirs/x"), Kinds::default(), "{:?}", it.source());
}

#[tokio::test]
async fn a_process_that_outlives_the_command_is_in_the_trace_until_the_end() {
    let bench = Bench::new();
    fs::write(bench.source().join("f"), "f").unwrap();
    // It writes on until it is killed, while the audit must find nothing without an explanation.
    let cmd = "(i=0; while :; do i=$((i+1)); echo $i > own.$((i % 9)); cat f > /dev/null; done) & sleep 0.2";
    let it = Traced::run(&bench, Ask::new(cmd)).await;
    assert_eq!(it.code, 0, "{}", it.output);
    assert_eq!(it.reasons(), Vec::<String>::new(), "{:?}", it.source());
    assert!(it.kinds("/workspace/f").contains(Kinds::CONTENT), "{:?}", it.source());
}
