//! Engines with several digest functions: every request names the one that it uses, and a store works with
//! engines of both kinds.

use std::fs;

use hm_exec::{
    remote::{DigestFunction, Endpoint},
    runner::{StepRunner, cloud::CloudRunner},
};
use serde_json::json;

use crate::support::{
    images::Image,
    programs::hm,
    project::Ended,
    remote_engine::step_program,
    sandbox::{Ask, Bench},
    stock_engine::{Function, Habits, StockEngine},
    stock_project::Stock,
};

#[tokio::test]
async fn an_engines_default_digest_function_is_used_for_everything() {
    for (functions, expected) in [
        (vec![Function::Blake3], DigestFunction::Blake3),
        (vec![Function::Blake3, Function::Sha256], DigestFunction::Blake3),
        (vec![Function::Sha256, Function::Blake3], DigestFunction::Sha256),
    ] {
        let Some(program) = step_program() else { return };
        let engine = StockEngine::start(Habits { functions, ..Habits::default() });
        let limits = Endpoint::new(engine.options()).unwrap().limits().await.unwrap();
        assert_eq!(limits.digest_function, Some(expected));
        let bench = Bench::new();
        fs::create_dir(bench.source().join("dir")).unwrap();
        fs::write(bench.source().join("dir/file"), "from the source\n").unwrap();
        // More than a batch holds, and more than an engine puts into its answer.
        fs::write(bench.source().join("large"), vec![b'x'; 3 << 20]).unwrap();
        let layout = bench.path().join("image");
        Image::shell().write_oci(&layout, "it");
        let ask = |cmd: &str| Ask::new(cmd).image(format!("oci:{}:it", layout.display()));
        let runner = || {
            let builder = CloudRunner::builder().endpoint(engine.options()).store(bench.store.clone()).helper(hm());
            builder.step_program(&program).build()
        };
        let first = runner();
        let mut run = bench.run();
        let input = run.input(ask("cat dir/file; cp large /data/large; wc -c < large; echo oops >&2"));
        let made = first.execute(&run.ctx, input).await.unwrap_or_else(|error| panic!("{}", error.to_line()));
        let input = run.input(ask("wc -c < /data/large").after(&made));
        first.execute(&run.ctx, input).await.unwrap_or_else(|error| panic!("{}", error.to_line()));
        let child = bench.step(&mut run, ask("wc -c < /data/large").after(&made)).await.unwrap();
        assert_eq!(child.exit_code, 0);
        let output: String =
            run.output().await.lines().filter(|it| !it.contains("unpack")).collect::<Vec<_>>().join("|");
        assert_eq!(output, "from the source|3145728|3145728|3145728|err: oops");
        // As in another process: neither the image's layers nor the source's files are uploaded again.
        let second = runner();
        let mut run = bench.run();
        let input = run.input(ask("echo again"));
        second.execute(&run.ctx, input).await.unwrap_or_else(|error| panic!("{}", error.to_line()));
        assert!(second.uploaded().blobs <= 4, "{:?}", second.uploaded());
    }
}

#[test]
fn results_are_shared_by_an_engine_that_knows_only_blake3() {
    let habits = Habits { functions: vec![Function::Blake3], ..Habits::default() };
    let cached = json!({ "cache": { "policy": "forever", "key": "a" } });
    let Some(stock) = Stock::new(habits, &[("a", "echo ran; echo made > file", cached)]) else { return };
    stock.run(&["--remote-cache", "both"]).expect(0);
    let elsewhere = stock.project.dir.with_file_name("elsewhere");
    let ended = Ended::of(stock.hm(&["--remote-cache", "both"]).env("HM_CACHE_DIR", elsewhere)).expect(0);
    assert!(ended.stdout.contains("step_cache_hit"), "{ended:?}");
    assert_eq!(stock.engine.executed(), 1);
}

#[tokio::test]
async fn a_default_that_is_not_announced_is_not_used() {
    let Some(program) = step_program() else { return };
    let functions = vec![Function::Blake3, Function::Sha256];
    let engine = StockEngine::start(Habits { functions, announces_default: false, ..Habits::default() });
    let limits = Endpoint::new(engine.options()).unwrap().limits().await.unwrap();
    assert_eq!(limits.digest_function, Some(DigestFunction::Sha256));
    let bench = Bench::new();
    // More than a batch holds, so that it is uploaded by name.
    fs::write(bench.source().join("large"), vec![b'x'; 3 << 20]).unwrap();
    let layout = bench.path().join("image");
    Image::shell().write_oci(&layout, "it");
    let builder = CloudRunner::builder().endpoint(engine.options()).store(bench.store.clone()).helper(hm());
    let runner = builder.step_program(program).build();
    let mut run = bench.run();
    let input = run.input(Ask::new("wc -c < large").image(format!("oci:{}:it", layout.display())));
    let ended = runner.execute(&run.ctx, input).await.unwrap_or_else(|error| panic!("{}", error.to_line()));
    assert_eq!(ended.exit_code, 0);
    assert!(run.output().await.contains("3145728\n"));
    assert_eq!(engine.unnamed(), 0, "requests without a digest function");
}

#[tokio::test]
async fn two_engines_with_different_digest_functions_share_a_store() {
    let Some(program) = step_program() else { return };
    let engines = [Function::Sha256, Function::Blake3]
        .map(|function| StockEngine::start(Habits { functions: vec![function], ..Habits::default() }));
    let bench = Bench::new();
    fs::write(bench.source().join("file"), "from the source\n").unwrap();
    let layout = bench.path().join("image");
    Image::shell().write_oci(&layout, "it");
    let runner = |engine: &StockEngine| {
        let builder = CloudRunner::builder().endpoint(engine.options()).store(bench.store.clone()).helper(hm());
        builder.step_program(&program).build()
    };
    // Each step of a chain runs on the other engine.
    let runners = engines.each_ref().map(runner);
    let mut run = bench.run();
    let mut last = None;
    for at in 0..4 {
        let cmd = format!("cat file; cat /data/made 2>/dev/null; echo {at} >> /data/made");
        let ask = match &last {
            None => Ask::new(cmd).image(format!("oci:{}:it", layout.display())),
            Some(made) => Ask::new(cmd).after(made),
        };
        let input = run.input(ask);
        let ended = runners[at % 2].execute(&run.ctx, input).await;
        last = Some(ended.unwrap_or_else(|error| panic!("{}", error.to_line())));
    }
    let output = run.output().await;
    let output: Vec<&str> = output.lines().filter(|line| !line.contains("unpack")).collect();
    let source = "from the source";
    assert_eq!(output, [source, source, "0", source, "0", "1", source, "0", "1", "2"]);
    // As in another process: what both engines have is not uploaded again under its other name.
    for engine in &engines {
        let again = runner(engine);
        let mut run = bench.run();
        let input = run.input(Ask::new("cat /data/made").after(last.as_ref().unwrap()));
        again.execute(&run.ctx, input).await.unwrap_or_else(|error| panic!("{}", error.to_line()));
        assert_eq!(run.output().await.lines().filter(|line| !line.contains("unpack")).count(), 4);
        let uploaded = again.uploaded();
        assert!(uploaded.bytes < 100_000, "{uploaded:?}");
    }
}
