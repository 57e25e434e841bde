//! Projects: which results a checkout can use.

use std::{fs, path::PathBuf};

use hm_exec::{
    StepStatus::{CacheHit, Passed},
    cache::{Difference, ProjectId, explain},
};

use crate::support::layer_writer::{Bench, cached, chain, pipeline};

struct Checkouts(tempfile::TempDir);

impl Checkouts {
    /// Creates a checkout directory, with an origin if one is given.
    fn make(&self, name: &str, origin: Option<&str>) -> PathBuf {
        let dir = self.0.path().join(name);
        fs::create_dir_all(dir.join(".git")).unwrap();
        let config = origin.map(|url| format!("[remote \"origin\"]\n\turl = {url}\n"));
        fs::write(dir.join(".git/config"), config.unwrap_or_default()).unwrap();
        dir
    }
}

#[tokio::test]
async fn equal_pipelines_of_two_directories_never_share_a_result() {
    let bench = Bench::new();
    let checkouts = Checkouts(tempfile::tempdir().unwrap());
    let (a, b) = (checkouts.make("a", None), checkouts.make("b", None));
    let run = async |dir: &PathBuf| bench.run_with(&chain(), |request| request.repo_root = dir.clone()).await;
    assert_eq!(run(&a).await.statuses(), [Passed; 3]);
    assert_eq!(run(&b).await.statuses(), [Passed; 3]);
    assert_eq!(run(&a).await.statuses(), [CacheHit; 3]);
    // A symlink to it is the same directory.
    let link = checkouts.0.path().join("link");
    std::os::unix::fs::symlink(&a, &link).unwrap();
    assert_eq!(run(&link).await.statuses(), [CacheHit; 3]);
}

#[tokio::test]
async fn two_clones_of_one_origin_share_results_and_forks_do_not() {
    let bench = Bench::new();
    let checkouts = Checkouts(tempfile::tempdir().unwrap());
    let run = async |name: &str, url: &str| {
        let dir = checkouts.make(name, Some(url));
        let change = |request: &mut hm_exec::RunRequest| {
            request.project = Some(ProjectId::of_checkout(&dir));
            request.repo_root = dir.clone();
        };
        bench.run_with(&chain(), change).await
    };
    assert_eq!(run("one", "git@github.com:owner/repo.git").await.statuses(), [Passed; 3]);
    assert_eq!(run("other", "https://alice:s3cret@github.com/owner/repo").await.statuses(), [CacheHit; 3]);
    assert_eq!(run("fork", "git@github.com:alice/repo.git").await.statuses(), [Passed; 3]);
}

#[tokio::test]
async fn the_project_is_among_the_reasons_why_a_step_ran() {
    let bench = Bench::new();
    let ir = pipeline(&[cached("a")], &[]);
    let named = |name: &str| Some(ProjectId::named(name));
    bench.run_with(&ir, |request| request.project = named("one")).await;
    bench.run_with(&ir, |request| request.project = named("two")).await;
    let store = &bench.writer.store;
    let run = store.runs().last("/nonexistent/source".as_ref(), None).unwrap().unwrap();
    let differences = explain(store, &run, "a").unwrap().differences;
    assert_eq!(differences, [Difference::Project { was: "id:one".into(), is: "id:two".into() }]);
}
