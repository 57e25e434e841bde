//! Steps on a real engine, alone and in chains with steps on the sandbox.

use std::{fs, sync::Arc};

use hm_exec::{
    StepResult,
    image::ImageOptions,
    runner::{RunnerErrorKind, Secrets, StepRunner, cloud::CloudRunner},
};

use crate::support::{
    images::Image,
    processes::eventually,
    programs::hm,
    remote_engine::{TestEngine, step_program},
    sandbox::{Ask, Bench, Run},
};

/// A sandbox and a cloud runner over one store.
struct Mixed {
    bench: Bench,
    cloud: CloudRunner,
    image: String,
    _engine: TestEngine,
}

impl Mixed {
    async fn start() -> Option<Self> {
        let program = step_program()?;
        let engine = TestEngine::start()?;
        let bench = Bench::new();
        let layout = bench.path().join("image");
        Image::shell().write_oci(&layout, "it");
        let builder = CloudRunner::builder().endpoint(engine.options()).store(Arc::clone(&bench.store)).helper(hm());
        let builder = engine
            .platform()
            .into_iter()
            .fold(builder, |builder, (name, value)| builder.platform_property(name, value));
        let cloud = builder.images(ImageOptions::default()).step_program(program).build();
        let mixed = Self { image: format!("oci:{}:it", layout.display()), bench, cloud, _engine: engine };
        // A separate run, so that the messages about the image are not in the output of another run.
        let mut run = mixed.bench.run();
        mixed.local(&mut run, mixed.ask("true")).await;
        Some(mixed)
    }

    fn ask(&self, cmd: &str) -> Ask {
        Ask::new(cmd).image(self.image.clone())
    }

    async fn cloud(&self, run: &mut Run, ask: Ask) -> StepResult {
        let input = run.input(ask);
        self.cloud.execute(&run.ctx, input).await.unwrap_or_else(|error| panic!("{}", error.to_line()))
    }

    async fn local(&self, run: &mut Run, ask: Ask) -> StepResult {
        self.bench.step(run, ask).await.unwrap_or_else(|error| panic!("{}", error.to_line()))
    }
}

#[tokio::test]
async fn a_step_sees_the_source_and_its_output_and_exit_code_come_back() {
    let Some(mixed) = Mixed::start().await else { return };
    fs::create_dir(mixed.bench.source().join("dir")).unwrap();
    fs::write(mixed.bench.source().join("dir/file"), "from the source\n").unwrap();
    let mut run = mixed.bench.run();
    let ask = mixed.ask("cat dir/file; echo $FROM_IMAGE $OWN; echo oops >&2; exit 3").env("OWN", "set");
    assert_eq!(mixed.cloud(&mut run, ask).await.exit_code, 3);
    assert_eq!(run.output().await, "from the source\nyes set\nerr: oops\n");
}

#[tokio::test]
async fn steps_of_the_sandbox_and_of_the_engine_build_on_each_other() {
    let Some(mixed) = Mixed::start().await else { return };
    fs::write(mixed.bench.source().join("kept"), "kept\n").unwrap();
    let mut run = mixed.bench.run();
    let first = mixed.local(&mut run, mixed.ask("echo one > /data/one; rm /data/new; echo 1 > made")).await;
    let second = mixed.cloud(&mut run, mixed.ask("cat /data/one made; echo two > /data/two").after(&first)).await;
    let third = mixed.local(&mut run, mixed.ask("cat /data/two; echo three > /data/three").after(&second)).await;
    let look = "cat /data/one /data/two /data/three made kept; ls /data";
    let fourth = mixed.cloud(&mut run, mixed.ask(look).after(&third)).await;
    let fifth = mixed.local(&mut run, mixed.ask(look).after(&fourth)).await;
    assert_eq!(fifth.exit_code, 0);
    let seen = "one\ntwo\nthree\n1\nkept\none\nthree\ntwo\n";
    assert_eq!(run.output().await, format!("one\n1\ntwo\n{seen}{seen}"));
}

#[tokio::test]
async fn layers_of_a_parent_are_not_uploaded_again() {
    let Some(mixed) = Mixed::start().await else { return };
    let mut run = mixed.bench.run();
    let first = mixed.cloud(&mut run, mixed.ask("echo one > /data/one")).await;
    let before = mixed.cloud.uploaded();
    mixed.cloud(&mut run, mixed.ask("cat /data/one").after(&first)).await;
    // The new blobs are the input, the Action, and the directories `/` and `layers`; the command is the same.
    let after = mixed.cloud.uploaded();
    assert_eq!(after.blobs - before.blobs, 4, "{before:?} {after:?}");
}

#[tokio::test]
async fn a_cancelled_step_ends_soon() {
    let Some(mixed) = Mixed::start().await else { return };
    let mut run = mixed.bench.run();
    let (cancel, asked) = (run.ctx.cancel.clone(), mixed.ask("sleep 1000"));
    let input = run.input(asked);
    let stop = async {
        eventually("the step was sent", || mixed.cloud.uploaded().blobs > 0).await;
        cancel.cancel();
    };
    let (ended, ()) = tokio::join!(mixed.cloud.execute(&run.ctx, input), stop);
    assert_eq!(ended.unwrap_err().kind(), RunnerErrorKind::Cancelled);
}

#[tokio::test]
async fn steps_that_cannot_run_remotely_are_refused_before_any_upload() {
    let Some(mixed) = Mixed::start().await else { return };
    let mut secrets = Secrets::new();
    secrets.insert("TOKEN", "s3cret");
    for (mut run, ask, word) in
        [(mixed.bench.run(), Ask::new("true"), "host"), (mixed.bench.run_with(secrets), mixed.ask("true"), "secrets")]
    {
        let input = run.input(ask);
        let error = mixed.cloud.execute(&run.ctx, input).await.unwrap_err();
        assert!(!error.is_retryable() && error.to_string().contains(word), "{error}");
    }
}
