//! The remote cache: steps that ran on one machine need not run on another.

use std::{fs, path::Path};

use hm_exec::{
    BuildStatus, RunRequest,
    StepStatus::{CacheHit, Passed},
    cache::ProjectId,
};

use crate::support::{
    proxy::{Proxy, Rules},
    team::{Team, can_run},
};

const LOOK: &str = "cat lock /data/two /out/c && test $(stat -c %a /out/dir) = 2750 && test ! -e /data/new && \
                    test $(stat -c %h /out/b) = 2";

#[tokio::test]
async fn a_machine_with_an_empty_store_runs_nothing_and_fetches_files_only_if_a_step_needs_them() {
    let Some(team) = Team::gather() else { return };
    let ir = team.chain(LOOK, "forever");
    let cold = team.machine("first").run(&ir).await;
    if !can_run(&cold) {
        return;
    }
    assert_eq!(cold.statuses(), [Passed; 3], "{:?}", cold.events);

    let second = team.machine("second");
    let warm = second.run(&ir).await;
    assert_eq!(warm.statuses(), [CacheHit; 3], "{:?}", warm.events);
    assert_eq!(second.layers(), 0, "nobody needed a file");

    // Another end of the chain: the two steps below it are hits, and their files are needed.
    let changed = team.chain(&format!("{LOOK} && echo changed"), "forever");
    let ended = second.run(&changed).await;
    assert_eq!(ended.statuses(), [CacheHit, CacheHit, Passed], "{:?}", ended.events);
    let seen = ended.lines("three");
    assert_eq!(seen, ["resolved", "2", "1", "changed"]);

    // A third machine finds the result that was shared on top of fetched layers, and the second finds it
    // without the engine.
    assert_eq!(team.machine("third").run(&changed).await.statuses(), [CacheHit; 3]);
    let away = hm_exec::remote::EndpointOptions::new("grpc://127.0.0.1:1");
    assert_eq!(second.run_at(away, &changed, |request| request).await.statuses()[1..], [CacheHit; 2]);
}

#[tokio::test]
async fn clones_of_one_repository_share_results_and_other_projects_do_not() {
    let Some(team) = Team::gather() else { return };
    let ir = team.chain(LOOK, "forever");
    let run = async |name: &str, url: &str| {
        let machine = team.machine(name);
        let source = machine.dir.join("source");
        fs::create_dir_all(source.join(".git")).unwrap();
        fs::write(source.join(".git/config"), format!("[remote \"origin\"]\nurl = {url}\n")).unwrap();
        let change = |mut request: RunRequest| {
            request.project = Some(ProjectId::of_checkout(&source));
            request
        };
        machine.run_with(&ir, change).await
    };
    let cold = run("first", "git@github.com:owner/repo.git").await;
    if !can_run(&cold) {
        return;
    }
    assert_eq!(cold.statuses(), [Passed; 3], "{:?}", cold.events);
    assert_eq!(run("fork", "git@github.com:other/repo.git").await.statuses(), [Passed; 3]);
    assert_eq!(run("second", "https://token@github.com/owner/repo").await.statuses(), [CacheHit; 3]);
    // Without an origin, each checkout is a separate project.
    let without = |mut request: RunRequest| {
        request.project = None;
        request
    };
    assert_eq!(team.machine("no-origin").run_with(&ir, without).await.statuses(), [Passed; 3]);
}

#[tokio::test]
async fn a_refreshed_result_replaces_the_shared_one() {
    let Some(team) = Team::gather() else { return };
    let ir = team.chain("cat /out/b", "forever");
    let (first, second) = (team.machine("first"), team.machine("second"));
    if !can_run(&first.run(&ir).await) {
        return;
    }
    let refreshed = second.run_with(&ir, |mut request| {
        request.options.refresh.insert("two".into());
        request
    });
    assert_eq!(refreshed.await.statuses(), [CacheHit, Passed, Passed]);
    // The step that ran again made a different snapshot, and so did the step above it.
    assert_eq!(team.machine("third").run(&ir).await.statuses(), [CacheHit; 3]);
    assert_eq!(second.run(&ir).await.statuses(), [CacheHit; 3]);
}

#[tokio::test]
async fn local_hits_are_shared_together_with_the_steps_built_on_them() {
    let Some(team) = Team::gather() else { return };
    let (first, second) = (team.machine("first"), team.machine("second"));
    // The steps ran here before sharing was requested: the engine is unreachable.
    let away = hm_exec::remote::EndpointOptions::new("grpc://127.0.0.1:1");
    let alone = first.run_at(away, &team.chain("true", "forever"), |request| request).await;
    if !can_run(&alone) {
        return;
    }
    assert_eq!(alone.statuses(), [Passed; 3], "trouble is a miss: {:?}", alone.events);
    let ir = team.chain("cat /out/b", "forever");
    assert_eq!(first.run(&ir).await.statuses(), [CacheHit, CacheHit, Passed]);
    assert_eq!(second.run(&ir).await.statuses(), [CacheHit; 3]);
}

#[tokio::test]
async fn results_expire_on_every_machine() {
    let Some(team) = Team::gather() else { return };
    let ir = team.chain("true", "ttl");
    if !can_run(&team.machine("first").run(&ir).await) {
        return;
    }
    assert_eq!(team.machine("second").run(&ir).await.statuses(), [CacheHit; 3]);
    let mut old = ir.clone();
    for node in old["graph"]["nodes"].as_array_mut().unwrap() {
        node["step"]["cache"]["duration_seconds"] = 0.into();
    }
    assert_eq!(team.machine("third").run(&old).await.statuses(), [Passed; 3]);
}

#[tokio::test]
async fn results_with_missing_or_damaged_blobs_are_misses_and_never_used() {
    let Some(team) = Team::gather() else { return };
    let Some(dir) = team.engine_dir.clone() else { return };
    let ir = team.chain("cat /out/b", "forever");
    if !can_run(&team.machine("first").run(&ir).await) {
        return;
    }
    let mut blobs = Vec::new();
    walk(&dir, &mut |path| blobs.push(path.to_owned()));
    assert!(blobs.len() > 6, "{blobs:?}");
    // Each blob in turn is lost or damaged: the run passes with the same output in every case.
    for (number, blob) in blobs.iter().enumerate() {
        let bytes = fs::read(blob).unwrap();
        for (how, put) in [("lost", None), ("damaged", Some(vec![b'?'; bytes.len()]))] {
            fs::remove_file(blob).unwrap();
            if let Some(other) = put {
                fs::write(blob, other).unwrap();
            }
            let changed = team.chain(&format!("cat /out/b; : {how} {number}"), "forever");
            let ended = team.machine(&format!("{how}-{number}")).run(&changed).await;
            assert_eq!(ended.outcome.status, BuildStatus::Passed, "{how} {} {:?}", blob.display(), ended.events);
            assert_eq!(ended.lines("three"), ["1"]);
            fs::write(blob, &bytes).unwrap();
        }
    }
}

#[tokio::test]
async fn calls_that_fail_now_and_then_are_retried() {
    let Some(team) = Team::gather() else { return };
    let proxy = Proxy::start(&team.engine.url, Rules { fail_every: Some(7), ..Rules::default() });
    let mut through = team.engine.clone();
    through.url = format!("grpc://{}", proxy.address());
    let ir = team.chain("cat /out/b", "forever");
    if !can_run(&team.machine("first").run_at(through.clone(), &ir, |request| request).await) {
        return;
    }
    let warm = team.machine("second").run_at(through, &ir, |request| request).await;
    assert_eq!(warm.statuses(), [CacheHit; 3]);
    assert!(proxy.failed() > 0);
}

fn walk(dir: &Path, visit: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => walk(&path, visit),
            false => visit(&path),
        }
    }
}
