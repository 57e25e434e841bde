//! Which run of a pipeline was the last, so that the next one starts its longest path first.
//!
//! A small file per source directory and pipeline names the run; how long its steps took is in the run's journal. Trouble
//! with either costs nothing but the better order.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hm_exec::event;
use uuid::Uuid;

/// The history of one pipeline of one source directory.
#[derive(Debug)]
pub(crate) struct History {
    runs_dir: PathBuf,
    /// Where pointers lie.
    dir: PathBuf,
    pointer: PathBuf,
}

impl History {
    /// That of `pipeline` in `source_dir`, whose journals lie in `runs_dir`.
    pub(crate) fn of(runs_dir: &Path, source_dir: &Path, pipeline: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(source_dir.as_os_str().as_encoded_bytes()).update(b"\0").update(pipeline.as_bytes());
        let dir = runs_dir.with_file_name("last-runs");
        Self { runs_dir: runs_dir.into(), pointer: dir.join(&hasher.finalize().to_hex()[..32]), dir }
    }

    /// How long the steps of the last run took, by key. Empty where nothing is known.
    pub(crate) fn durations(&self) -> BTreeMap<Arc<str>, Duration> {
        let run = fs::read_to_string(&self.pointer).ok().and_then(|text| text.trim().parse::<Uuid>().ok());
        run.and_then(|run| event::durations(self.runs_dir.join(run.to_string())).ok()).unwrap_or_default()
    }

    /// Makes `run` the last one. Atomic: a reader sees this run or the one before.
    pub(crate) fn remember(&self, run: Uuid) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
        writeln!(file, "{run}")?;
        file.persist(&self.pointer).map_err(|error| error.error)?;
        Ok(())
    }
}
