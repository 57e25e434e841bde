//! The parts of the keys of a run's cached steps, kept in the run's directory to explain later why a step
//! ran.
//!
//! Commands and values of variables are stored only as hashes keyed with a secret of the store. They are
//! sufficient to detect differences, and useless to anyone without the secret.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{CacheKey, CacheMode, StepInputPart, StepInputs};
use crate::{
    ir::{CommandStep, Env},
    model::CacheMissReason,
    source::SourceTimes,
};

/// The beginning of the file: a name, and the version.
const HEADER: &[u8; 8] = b"hm-keys\x03";

/// The keyed hash of a text.
pub(super) type Hidden = [u8; 16];

/// A cached step of a run, as the build saw it.
#[derive(Debug)]
pub(crate) struct KeyRecord {
    pub(crate) step: Arc<CommandStep>,
    pub(crate) env: Arc<Env>,
    pub(crate) base: BaseRecord,
    pub(crate) key: CacheKey,
    pub(crate) runner: Arc<str>,
    pub(crate) runner_version: u32,
    pub(crate) mode: Arc<str>,
    pub(crate) runner_args: String,
    pub(crate) inputs: Option<[u8; 32]>,
    pub(crate) step_inputs: Option<Arc<StepInputs>>,
    /// Whether it was looked up by what it read. It has a key only if it was found.
    pub(crate) by_trace: bool,
    pub(crate) verdict: CacheVerdict,
}

/// What a step booted from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BaseRecord {
    Image { name: Arc<str>, identity: Arc<str> },
    Parent { step: Arc<str>, snapshot: Arc<str> },
}

/// The outcome of looking a step up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheVerdict {
    /// It was found.
    Hit {
        /// The run that made it.
        run: Uuid,
        /// The step's key there.
        step: Arc<str>,
        /// When it was made, in milliseconds since the Unix epoch.
        created_at: i64,
    },
    /// It had to run.
    Miss {
        /// The reason.
        reason: CacheMissReason,
        /// Details.
        message: Option<Arc<str>>,
    },
}

/// The contents of the file.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct RunParts {
    /// Environments. Steps that share an environment also share it here.
    envs: Vec<BTreeMap<String, Hidden>>,
    steps: BTreeMap<String, StepParts>,
    pub(super) project: String,
    pub(super) source_times: SourceTimes,
    /// The files of other steps that steps got. They follow the rest as a value of their own, which files of
    /// earlier versions lack.
    #[serde(skip)]
    step_inputs: BTreeMap<String, Vec<StepInputPart>>,
    /// The steps that were looked up by what they read. They follow in the same way, if there are some.
    #[serde(skip)]
    by_trace: BTreeSet<String>,
    /// What users set for the run. It follows in the same way, unless all of it is as it is by default.
    #[serde(skip)]
    pub(super) settings: RunSettings,
}

/// What users set for a run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct RunSettings {
    /// The mode.
    pub(super) mode: CacheMode,
    /// The modes of the steps that reuse less, by key.
    pub(super) limits: BTreeMap<String, CacheMode>,
    /// The digest of the patterns of files that are left out of the source.
    pub(super) source_ignore: Option<[u8; 32]>,
}

/// The parts of one step's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StepParts {
    pub(super) key: [u8; 32],
    pub(super) verdict: CacheVerdict,
    pub(super) dsl_key: String,
    pub(super) base: BaseRecord,
    pub(super) command: Hidden,
    env: u32,
    pub(super) runner: String,
    pub(super) runner_version: u32,
    pub(super) platform: String,
    pub(super) mode: String,
    pub(super) runner_args: Hidden,
    pub(super) inputs: Option<[u8; 32]>,
}

/// Returns the path of the file in a run's directory.
fn path(run_dir: &Path) -> PathBuf {
    run_dir.join("cache-keys")
}

/// Writes the file of a run.
pub(super) fn write(
    run_dir: &Path,
    secret: &[u8; 32],
    origin: (&str, SourceTimes),
    (records, settings): (&[KeyRecord], RunSettings),
) -> io::Result<()> {
    let parts = RunParts { settings, ..RunParts::of(secret, origin, records) };
    let mut bytes = HEADER.to_vec();
    bytes.extend(postcard::to_stdvec(&parts).map_err(io::Error::other)?);
    bytes.extend(postcard::to_stdvec(&parts.step_inputs).map_err(io::Error::other)?);
    let has_settings = parts.settings != RunSettings::default();
    if has_settings || !parts.by_trace.is_empty() {
        bytes.extend(postcard::to_stdvec(&parts.by_trace).map_err(io::Error::other)?);
    }
    if has_settings {
        bytes.extend(postcard::to_stdvec(&parts.settings).map_err(io::Error::other)?);
    }
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(path(run_dir))?.write_all(&bytes)
}

impl RunParts {
    /// Returns the parts of a run's steps. Texts are hidden by a hash keyed with `secret`.
    pub(super) fn of(secret: &[u8; 32], (project, source_times): (&str, SourceTimes), records: &[KeyRecord]) -> Self {
        let hide = |text: &str| {
            let mut hidden = Hidden::default();
            hidden.copy_from_slice(&blake3::keyed_hash(secret, text.as_bytes()).as_bytes()[..size_of::<Hidden>()]);
            hidden
        };
        let mut parts = Self { project: project.to_owned(), source_times, ..Self::default() };
        let mut last_env: Option<&Arc<Env>> = None;
        for record in records {
            let KeyRecord { step, env, base, key, runner, runner_version, mode, .. } = record;
            let KeyRecord { runner_args, inputs, step_inputs, by_trace, verdict, .. } = record;
            if last_env.is_none_or(|last| !Arc::ptr_eq(last, env)) {
                // The name is part of the hash, so that equal values of two variables have different hashes.
                let hidden = env.iter().map(|(name, value)| (name.clone(), hide(&format!("{name}={value}"))));
                parts.envs.push(hidden.collect());
                last_env = Some(env);
            }
            let own = StepParts {
                key: key.0,
                verdict: verdict.clone(),
                dsl_key: step.cache.as_ref().and_then(|cache| cache.key.as_deref()).unwrap_or_default().to_owned(),
                base: base.clone(),
                command: hide(&step.cmd),
                env: u32::try_from(parts.envs.len() - 1).unwrap_or(u32::MAX),
                runner: runner.to_string(),
                runner_version: *runner_version,
                platform: format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
                mode: mode.to_string(),
                runner_args: hide(runner_args),
                inputs: *inputs,
            };
            parts.steps.insert(step.key.to_string(), own);
            if let Some(inputs) = step_inputs {
                parts.step_inputs.insert(step.key.to_string(), inputs.parts().to_vec());
            }
            parts.by_trace.extend(by_trace.then(|| step.key.to_string()));
        }
        parts
    }

    /// Reads the file of a run. Returns `None` if there is none, for instance because no step was cached.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read, or is not in a format that this version reads.
    pub(super) fn read(run_dir: &Path) -> io::Result<Option<Self>> {
        let bytes = match fs::read(path(run_dir)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes?,
        };
        let invalid = || io::Error::new(io::ErrorKind::InvalidData, "it is not in a format that this version reads");
        let payload = bytes.strip_prefix(HEADER).ok_or_else(invalid)?;
        let (mut parts, rest) = postcard::take_from_bytes::<Self>(payload).map_err(|_| invalid())?;
        if !rest.is_empty() {
            let (step_inputs, rest) = postcard::take_from_bytes(rest).map_err(|_| invalid())?;
            parts.step_inputs = step_inputs;
            if !rest.is_empty() {
                let (by_trace, rest) = postcard::take_from_bytes(rest).map_err(|_| invalid())?;
                parts.by_trace = by_trace;
                if !rest.is_empty() {
                    let (settings, _later_fields) = postcard::take_from_bytes(rest).map_err(|_| invalid())?;
                    parts.settings = settings;
                }
            }
        }
        Ok(Some(parts))
    }

    pub(super) fn step(&self, key: &str) -> Option<&StepParts> {
        self.steps.get(key)
    }

    /// Returns the files of other steps that a step got.
    pub(super) fn step_inputs(&self, key: &str) -> &[StepInputPart] {
        self.step_inputs.get(key).map_or(&[], Vec::as_slice)
    }

    /// Returns whether a step was looked up by what it read.
    pub(super) fn by_trace(&self, key: &str) -> bool {
        self.by_trace.contains(key)
    }

    pub(super) fn env(&self, step: &StepParts) -> Option<&BTreeMap<String, Hidden>> {
        self.envs.get(usize::try_from(step.env).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_earlier_versions_lack_files_of_other_steps_and_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let origin = ("path:/p", SourceTimes::Normal);
        write(dir.path(), &[7; 32], origin, (&[], RunSettings::default())).unwrap();
        let bytes = fs::read(path(dir.path())).unwrap();
        let (earlier, no_step_inputs) = bytes.split_at(bytes.len() - 1);
        assert_eq!(no_step_inputs, [0]);
        fs::write(path(dir.path()), earlier).unwrap();
        let read = RunParts::read(dir.path()).unwrap().unwrap();
        assert_eq!((&*read.project, read.step_inputs("any")), ("path:/p", &[][..]));
        fs::write(path(dir.path()), &earlier[..earlier.len() - 1]).unwrap();
        assert!(RunParts::read(dir.path()).is_err());
    }

    #[test]
    fn settings_are_kept_if_they_are_not_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let limits = BTreeMap::from([("a".to_owned(), CacheMode::Off), ("b".to_owned(), CacheMode::Declared)]);
        let with = |mode, source_ignore| RunSettings { mode, source_ignore, ..RunSettings::default() };
        let limited = RunSettings { limits, ..RunSettings::default() };
        for settings in
            [with(CacheMode::Auto, Some([7; 32])), with(CacheMode::Off, None), limited, RunSettings::default()]
        {
            write(dir.path(), &[7; 32], ("path:/p", SourceTimes::Normal), (&[], settings.clone())).unwrap();
            assert_eq!(RunParts::read(dir.path()).unwrap().unwrap().settings, settings);
        }
    }
}
