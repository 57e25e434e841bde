//! Files that a step leaves for the user.

use std::{fs, sync::Arc};

use crate::{
    conformance::harness::{Broken, Harness, Step, expect},
    outputs::{OutputPlace, StepOutputs},
};

/// Checks that regular files are copied, and no links, whether the command passed or failed.
pub(in crate::conformance) async fn are_copied(harness: &Harness<'_>) -> Result<(), Broken> {
    for code in [0, 3] {
        let to = harness.outside().join(code.to_string());
        fs::create_dir_all(&to)?;
        let place = OutputPlace { source_dir: to.clone(), pipeline: "ci".into(), step: "step".into() };
        let patterns: [Arc<str>; 2] = ["o/**/*.txt".into(), "other".into()];
        let outputs = Arc::new(StepOutputs::new(Arc::from(patterns), place));
        let mut run = harness.run()?;
        run.ctx.outputs = Some(Arc::clone(&outputs));
        let cmd = format!(
            "mkdir -p o/p && echo text > o/p/a.txt && echo no > o/b && ln -s /etc/passwd o/c.txt && mkfifo o/d.txt; exit {code}"
        );
        let done = run.step(harness.runner, Step::new(cmd)).await?;
        expect("the exit code", done.exit_code()?, code)?;
        let copied: Vec<_> = outputs.take().artifacts.into_iter().map(|it| (it.key, it.size_bytes)).collect();
        expect("the names and sizes of outputs", copied, [(".hm/out/ci/step/o/p/a.txt".to_owned(), 5)])?;
        expect("the text of an output", fs::read_to_string(to.join(".hm/out/ci/step/o/p/a.txt"))?.as_str(), "text\n")?;
    }
    Ok(())
}
