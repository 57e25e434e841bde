//! Outputs of containers.

use hm_exec::{
    BuildStatus,
    StepStatus::{CacheHit, Failed, Passed},
};

use crate::support::docker::{Bench, Built, cached, pipeline, step};

/// Returns the names and sizes of a step's outputs, without the place that they have in common.
fn outputs(built: &Built, key: &str) -> Vec<(String, u64)> {
    let step = built.outcome.steps.iter().find(|step| &*step.key == key).unwrap();
    let name = |path: &str| path.splitn(5, '/').last().unwrap().to_owned();
    step.artifacts.iter().map(|artifact| (name(&artifact.key), artifact.size_bytes)).collect()
}

#[tokio::test]
async fn outputs_are_copied_from_containers_and_from_the_store() {
    let Some(bench) = Bench::new() else { return };
    bench.file("source", "of the source\n");
    let cmd = "mkdir -p r/deep /opt/d; echo a > r/a.txt; echo bb > r/deep/b.txt; echo no > r/no; echo c > /opt/d/c; \
               ln -s /etc/passwd r/link.txt; ln r/a.txt r/z.txt; mkdir r/dir.txt; echo e > r/dir.txt/e; \
               ln -s r linked; echo t > top.txt";
    let with = |mut step: serde_json::Value, patterns: &[&str]| {
        step["step"]["runner_args"] = serde_json::json!({ "outputs": patterns });
        step
    };
    let patterns = ["r/**/*.txt", "/opt/d", "*.txt", "none/*", "source"];
    let steps = [
        with(cached("kept", cmd), &patterns),
        with(step("fails", &format!("{cmd}; exit 3")), &patterns),
        with(step("nothing", "true"), &["r", "/none"]),
    ];
    let built = bench.build(&pipeline(&steps, &[serde_json::json!([2, 1, "depends_on"])])).await;
    assert_eq!(built.outcome.status, BuildStatus::Failed, "{:#?}", built.events);
    let statuses: Vec<_> = built.outcome.steps.iter().map(|step| step.status).collect();
    assert_eq!(statuses, [Passed, Failed, Passed]);
    let sorted = |key: &str, built: &Built| {
        let mut found = outputs(built, key);
        found.sort();
        found
    };
    let expected =
        [("opt/d/c", 2), ("r/a.txt", 2), ("r/deep/b.txt", 3), ("r/dir.txt/e", 2), ("source", 14), ("top.txt", 2)];
    let expected = expected.map(|(name, size)| (name.to_owned(), size));
    for key in ["kept", "fails"] {
        assert_eq!(sorted(key, &built), expected, "{key}: of the two names of a file, an archive has the first");
    }
    assert!(outputs(&built, "nothing").is_empty());

    // Files of the store's snapshot have all their names.
    let again = bench.build(&pipeline(&steps[..1], &[])).await;
    assert_eq!(again.outcome.steps[0].status, CacheHit);
    let mut all = expected.to_vec();
    all.push(("r/z.txt".to_owned(), 2));
    all.sort();
    assert_eq!(sorted("kept", &again), all);
    assert_eq!(bench.left().await, (vec![], vec![]));
}
