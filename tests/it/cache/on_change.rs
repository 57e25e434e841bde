//! Steps that are cached until something changes in the source: which changes count.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use hm_exec::{
    BackendError,
    StepStatus::{CacheHit, Passed},
    cache::{Difference, explain},
    event::CacheMissReason::Unavailable,
};
use serde_json::{Value, json};

use crate::support::layer_writer::{Bench, Ended, pipeline, request};

/// A source tree and the cached step that watches `paths` in it. The key from the DSL is always the same.
struct Watch {
    bench: Bench,
    source: tempfile::TempDir,
    ir: Value,
}

impl Watch {
    fn on(paths: &[&str]) -> Self {
        let cache = json!({ "policy": "on_change", "key": "dsl", "paths": paths });
        let step = json!({ "key": "a", "cmd": "make a", "cache": cache });
        let watch = Self { bench: Bench::new(), source: tempfile::tempdir().unwrap(), ir: pipeline(&[step], &[]) };
        for (path, text) in [
            ("a.c", "int a;"),
            ("b.c", "int b;"),
            ("dir/tool.sh", ":"),
            ("dir/.hidden", "1"),
            ("dir/deep/er/x.py", "x"),
            ("real.lock", "v1"),
            ("other", "o"),
        ] {
            watch.write(path, text);
        }
        fs::create_dir(watch.path("empty")).unwrap();
        symlink("real.lock", watch.path("link")).unwrap();
        symlink("dir", watch.path("dirlink")).unwrap();
        symlink("link", watch.path("linklink")).unwrap();
        symlink("dir", watch.path("dlink")).unwrap();
        symlink("dlink/tool.sh", watch.path("alink")).unwrap();
        watch
    }

    fn path(&self, path: &str) -> PathBuf {
        self.source.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        fs::create_dir_all(self.path(path).parent().unwrap()).unwrap();
        fs::write(self.path(path), text).unwrap();
    }

    async fn run(&self) -> Ended {
        self.bench.run_with(&self.ir, |request| request.repo_root = self.source.path().into()).await
    }

    /// Returns whether the step is a cache hit.
    async fn hits(&self) -> bool {
        let ended = self.run().await;
        assert!(ended.passed(), "{:?}", ended.events);
        ended.statuses() == [CacheHit]
    }

    fn chmod(&self, path: &str, mode: u32) {
        fs::set_permissions(self.path(path), fs::Permissions::from_mode(mode)).unwrap();
    }
}

type Change = fn(&Watch);

fn relink(watch: &Watch, path: &str, target: &str) {
    fs::remove_file(watch.path(path)).unwrap();
    symlink(target, watch.path(path)).unwrap();
}

#[tokio::test]
async fn names_types_modes_link_targets_and_contents_count() {
    let changes: [(&[&str], &str, Change); 21] = [
        (&["*.c"], "a renamed file", |it| fs::rename(it.path("b.c"), it.path("bb.c")).unwrap()),
        (&["*.c"], "a new file", |it| it.write("c.c", "")),
        (&["*.c"], "a removed file", |it| fs::remove_file(it.path("b.c")).unwrap()),
        (&["*.c"], "a content", |it| it.write("a.c", "int x;")),
        (&["*.c"], "contents that change places", |it| {
            it.write("a.c", "int b;");
            it.write("b.c", "int a;");
        }),
        (&["dir"], "a mode", |it| it.chmod("dir/tool.sh", 0o755)),
        (&["dir"], "a directory's mode", |it| it.chmod("dir/deep", 0o700)),
        (&["dir"], "an empty directory", |it| fs::create_dir(it.path("dir/deep/new")).unwrap()),
        (&["dir"], "a hidden file", |it| it.write("dir/.hidden", "2")),
        (&["dir"], "a file that becomes a link", |it| {
            it.write("dir/copy", ":");
            relink(it, "dir/tool.sh", "copy");
        }),
        (&["empty"], "a file in an empty directory", |it| it.write("empty/x", "")),
        (&["link"], "a link's target", |it| relink(it, "link", "other")),
        (&["link"], "what a link leads to", |it| it.write("real.lock", "v2")),
        (&["linklink"], "what a link to a link leads to", |it| it.write("real.lock", "v2")),
        (&["linklink"], "a link on the way", |it| relink(it, "link", "other")),
        (&["dirlink/*.sh"], "a file behind a link", |it| it.write("dir/tool.sh", "exit")),
        (&["dirlink/*.sh"], "a link on the way of a path", |it| {
            it.write("dir2/tool.sh", ":");
            relink(it, "dirlink", "dir2");
        }),
        (&["[ad]link"], "what a link leads to that another one passed", |it| it.write("dir/.hidden", "2")),
        (&["**/*.py"], "a file anywhere", |it| it.write("dir/deep/er/x.py", "y")),
        (&["**/*.py"], "a new one anywhere", |it| it.write("new/y.py", "y")),
        (&["./dir/", "a.c"], "any of several paths", |it| it.write("a.c", "int x;")),
    ];
    for (paths, what, change) in changes {
        let watch = Watch::on(paths);
        watch.chmod("dir/tool.sh", 0o644);
        assert!(!watch.hits().await);
        assert!(watch.hits().await, "nothing changed: {what} of {paths:?}");
        change(&watch);
        assert!(!watch.hits().await, "{what} of {paths:?}");
        assert!(watch.hits().await, "{what} of {paths:?}, once");
    }
}

#[tokio::test]
async fn unmatched_files_and_times_do_not_count() {
    let changes: [(&[&str], &str, Change); 7] = [
        (&["*.c"], "another file", |it| it.write("other", "p")),
        (&["*.c"], "a file of that name elsewhere", |it| it.write("dir/x.c", "")),
        (&["*.c"], "its time", |it| it.write("a.c", "int a;")),
        (&["dir"], "a name that begins alike", |it| it.write("dir-other", "")),
        (&["link"], "the source's other files", |it| it.write("a.c", "int x;")),
        (&["?.c"], "a longer name", |it| it.write("bb.c", "")),
        (&["[!b].c"], "an excluded name", |it| it.write("b.c", "int x;")),
    ];
    for (paths, what, change) in changes {
        let watch = Watch::on(paths);
        assert!(!watch.hits().await);
        change(&watch);
        assert!(watch.hits().await, "{what} of {paths:?}");
    }
}

#[tokio::test]
async fn a_path_that_matches_nothing_runs_the_step_each_time_with_a_warning() {
    for path in ["raal.lock", "*.rs", "dir/nothing", "a.c/x", ".hm/no.toml", "link/x"] {
        let watch = Watch::on(&["a.c", path]);
        for _ in 0..2 {
            let ended = watch.run().await;
            assert_eq!(ended.statuses(), [Passed], "{path}");
            let (reason, message) = &ended.misses()["a"];
            assert_eq!(*reason, Unavailable, "{path}");
            assert!(message.contains(path) && message.contains("matches nothing"), "{message}");
        }
    }
}

#[tokio::test]
async fn paths_of_composed_policies_count_too() {
    let mut watch = Watch::on(&[]);
    let sub = json!({ "policy": "on_change", "paths": ["*.c"] });
    let parts = json!([{ "policy": "forever" }, { "policy": "compose", "sub_policies": [sub] }]);
    watch.ir["graph"]["nodes"][0]["step"]["cache"] =
        json!({ "policy": "compose", "key": "dsl", "sub_policies": parts });
    assert!(!watch.hits().await);
    assert!(watch.hits().await);
    watch.write("c.c", "");
    assert!(!watch.hits().await);
}

#[tokio::test]
async fn paths_in_the_pipelines_directory_are_read_from_the_checkout() {
    let watch = Watch::on(&[".hm/*.txt", "a.c"]);
    watch.write(".hm/versions.txt", "1");
    assert!(!watch.hits().await);
    assert!(watch.hits().await);
    watch.write(".hm/versions.txt", "2");
    assert!(!watch.hits().await);
    watch.write(".hm/other", "2");
    assert!(watch.hits().await);
}

#[tokio::test]
async fn nothing_outside_of_the_project_and_no_pipe_or_device_is_opened() {
    let watch = Watch::on(&["dir", ".hm/*", "outside", "up"]);
    watch.write(".hm/x", "1");
    for dir in ["dir", ".hm"] {
        let pipe = watch.path(dir).join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        symlink("/dev/zero", watch.path(dir).join("endless")).unwrap();
    }
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "1").unwrap();
    symlink(outside.path(), watch.path("outside")).unwrap();
    symlink("../../../../../../../../etc", watch.path("up")).unwrap();
    assert!(!watch.hits().await);
    fs::write(outside.path().join("secret"), "2").unwrap();
    assert!(watch.hits().await, "the link counts, and not what it leads to outside");
    relink(&watch, "outside", "/nonexistent");
    assert!(!watch.hits().await);
}

#[tokio::test]
async fn symlink_loops_terminate() {
    let watch = Watch::on(&["loop", "**/x", "*/*/*/*/*/x"]);
    symlink("loop", watch.path("loop")).unwrap();
    symlink(".", watch.path("here")).unwrap();
    symlink("../dir", watch.path("dir/again")).unwrap();
    watch.write("x", "1");
    assert!(!watch.hits().await);
    assert!(watch.hits().await);
    watch.write("x", "2");
    assert!(!watch.hits().await);
}

#[tokio::test]
async fn a_path_that_leaves_the_project_is_refused_before_anything_runs() {
    for path in ["../other", "/etc/passwd", "dir/../../x"] {
        let watch = Watch::on(&[path]);
        let engine = watch.bench.builder().build().unwrap();
        let mut request = request(&watch.ir);
        request.repo_root = Path::new("/nonexistent").into();
        match engine.start(request).await {
            Err(BackendError::Invalid(invalid)) => assert!(invalid.to_string().contains(path), "{invalid}"),
            other => panic!("{path}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn changed_inputs_are_among_the_reasons_why_a_step_ran() {
    let watch = Watch::on(&["*.c"]);
    watch.run().await;
    watch.write("a.c", "int x;");
    watch.run().await;
    let store = &watch.bench.writer.store;
    let run = store.runs().last(watch.source.path(), None).unwrap().unwrap();
    assert_eq!(explain(store, &run, "a").unwrap().differences, [Difference::Inputs]);
}
