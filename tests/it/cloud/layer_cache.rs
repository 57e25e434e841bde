//! Workers that keep unpacked layers: the source travels as layers, too, and steps see what they see without.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, symlink},
};

use hm_exec::runner::{StepRunner, cloud::CloudRunner};

use crate::support::{
    images::Image,
    programs::hm,
    remote_engine::step_program,
    sandbox::{Ask, Bench},
    stock_engine::{Habits, StockEngine},
};

#[tokio::test]
async fn steps_on_workers_that_keep_layers_see_what_steps_in_the_sandbox_see() {
    let Some(program) = step_program() else { return };
    let engine = StockEngine::start(Habits::nativelink());
    let (bench, cache) = (Bench::new(), tempfile::tempdir().unwrap());
    let source = bench.source();
    fs::create_dir_all(source.join("private/shared")).unwrap();
    for (path, mode) in [("plain", 0o644), ("private/script", 0o755), ("private/shared/read only", 0o444)] {
        fs::write(source.join(path), path).unwrap();
        fs::set_permissions(source.join(path), Permissions::from_mode(mode)).unwrap();
    }
    fs::write(source.join("removed"), "").unwrap();
    symlink("plain", source.join("private/link")).unwrap();
    fs::set_permissions(source.join("private"), Permissions::from_mode(0o700)).unwrap();
    let layout = bench.path().join("image");
    Image::shell().write_oci(&layout, "it");
    let runner = |dir: &std::path::Path| {
        let builder = CloudRunner::builder().endpoint(engine.options()).store(bench.store.clone()).helper(hm());
        builder.platform_property("hm-layer-cache", dir.display().to_string()).step_program(&program).build()
    };
    let look = |form: &str| {
        format!(
            "find . | sort | while read f; do stat -c '{form}' \"$f\"; done; cat plain; echo more >> made; cat made"
        )
    };
    let lines = |output: &str| -> Vec<String> {
        output.lines().filter(|it| !it.contains("unpack")).map(str::to_owned).collect()
    };
    let first = runner(cache.path());
    let (mut here, mut there) = (None, None);
    for round in 0..3 {
        if round == 1 {
            fs::write(source.join("plain"), "edited").unwrap();
            fs::remove_file(source.join("removed")).unwrap();
            fs::write(source.join("private/new"), "").unwrap();
        }
        // What an edit touches has the time at which its parent's snapshot was updated.
        let look = look(if round == 0 { "%n %F %a %Y" } else { "%n %F %a" });
        let ask = |parent: &Option<_>| match parent {
            None => Ask::new(&*look).image(format!("oci:{}:it", layout.display())),
            Some(parent) => Ask::new(&*look).after(parent),
        };
        let mut run = bench.run();
        here = Some(bench.step(&mut run, ask(&here)).await.unwrap());
        let expected = run.output().await;
        let mut run = bench.run();
        let input = run.input(ask(&there));
        let ended = first.execute(&run.ctx, input).await;
        there = Some(ended.unwrap_or_else(|error| panic!("{}", error.to_line())));
        assert_eq!(lines(&run.output().await), lines(&expected), "round {round}");
        assert!(expected.contains("./private directory 700"));
    }
    assert!(fs::read_dir(cache.path()).unwrap().count() >= 5);
    engine.assert_inputs_are_intact();

    // As in another process: the source is not packed again, and no file of it travels. A worker that cannot
    // use its cache says so once.
    let missing = cache.path().join("missing");
    let again = runner(&missing);
    let mut run = bench.run();
    for _ in 0..2 {
        let input = run.input(Ask::new("cat plain").image(format!("oci:{}:it", layout.display())));
        again.execute(&run.ctx, input).await.unwrap_or_else(|error| panic!("{}", error.to_line()));
    }
    let output = run.output().await;
    assert_eq!(output.matches("the layer cache").count(), 1, "{output}");
    assert!(output.contains(missing.to_str().unwrap()) && again.uploaded().bytes < 100_000, "{output}");
}
