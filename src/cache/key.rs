//! Cache keys: everything that a step depends on, as 32 bytes.

use std::fmt;

use crate::{ir::Env, source::SourceTimes};

/// Must be increased whenever the same parts produce another key.
const VERSION: u8 = 3;

/// The key under which a cached step is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CacheKey(pub [u8; 32]);

impl fmt::Display for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

/// What a step boots from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BasePart<'a> {
    /// An image, by its identity.
    Image(&'a str),
    /// The snapshot of its parent, by name. A parent that ran again has another one.
    Snapshot(&'a str),
}

/// Everything that determines the result of a step. The source counts only as far as the step's policy refers
/// to it.
///
/// A key is a BLAKE3 hash of a version byte and then the parts in this order, each preceded by its length as
/// eight bytes, little-endian. The environment consists of the number of variables, followed by the variables
/// in byte order. The kind of the base is a part, too. Without inputs their part is empty. The last parts,
/// the files of other steps and the patterns of files that the source leaves out, are missing if there are
/// none.
///
/// ```
/// use hm_exec::{cache::{BasePart, KeyParts}, source::SourceTimes};
///
/// let parts = KeyParts {
///     dsl_key: "43da73fe",
///     base: BasePart::Image("sha256:9f86d081"),
///     command: "make",
///     env: &[("CI".to_owned(), "1".to_owned())].into(),
///     runner: "sandbox",
///     runner_version: 1,
///     os: "linux",
///     arch: "x86_64",
///     mode: "root",
///     runner_args: r#"{"network":"none"}"#,
///     project: "git:github.com/owner/repo",
///     source_times: SourceTimes::Normal,
///     inputs: None,
///     step_inputs: None,
///     source_ignore: None,
/// };
/// assert_eq!(parts.key(), parts.key());
/// assert_ne!(parts.key(), KeyParts { command: "make -j", ..parts }.key());
/// assert_ne!(parts.key(), KeyParts { project: "path:/home/alice/repo", ..parts }.key());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyParts<'a> {
    /// The key that the pipeline's language computed: `cache.key` of the IR.
    pub dsl_key: &'a str,
    /// What the step boots from.
    pub base: BasePart<'a>,
    /// The command.
    pub command: &'a str,
    /// The command's complete environment.
    pub env: &'a Env,
    /// The runner's name.
    pub runner: &'a str,
    /// [`StepRunner::CACHE_VERSION`](crate::runner::StepRunner::CACHE_VERSION).
    pub runner_version: u32,
    /// The operating system.
    pub os: &'a str,
    /// The processor architecture.
    pub arch: &'a str,
    /// [`CacheIdentity::mode`](crate::runner::CacheIdentity::mode).
    pub mode: &'a str,
    /// The arguments that change what the step sees or may do:
    /// [`ArgsSchema::in_keys`](crate::runner::ArgsSchema::in_keys).
    pub runner_args: &'a str,
    /// The [`ProjectId`](super::ProjectId).
    pub project: &'a str,
    /// Which times of source files the step sees.
    pub source_times: SourceTimes,
    /// The digest of what `on_change` paths match in the source.
    pub inputs: Option<&'a [u8; 32]>,
    /// The digest of the files of other steps that the step gets, and of where it gets them.
    pub step_inputs: Option<&'a [u8; 32]>,
    /// The digest of the patterns of files that are left out of the source, besides what ignore files name.
    pub source_ignore: Option<&'a [u8; 32]>,
}

impl KeyParts<'_> {
    /// Returns the key.
    #[must_use]
    pub fn key(&self) -> CacheKey {
        let Self { dsl_key, base, command, env, runner, runner_version, os, arch, mode, .. } = self;
        let Self { runner_args, project, source_times, inputs, step_inputs, source_ignore, .. } = self;
        let mut hasher = blake3::Hasher::new();
        let mut part = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        };
        let (kind, base) = match base {
            BasePart::Image(identity) => ("image", identity),
            BasePart::Snapshot(name) => ("snapshot", name),
        };
        part(&[VERSION]);
        [dsl_key, kind, base, command].into_iter().for_each(|text| part(text.as_bytes()));
        part(&(env.len() as u64).to_le_bytes());
        for (name, value) in *env {
            part(name.as_bytes());
            part(value.as_bytes());
        }
        part(runner.as_bytes());
        part(&runner_version.to_le_bytes());
        [os, arch, mode, runner_args, project].into_iter().for_each(|text| part(text.as_bytes()));
        part(source_times.as_str().as_bytes());
        part(inputs.map_or(&[], |digest| &digest[..]));
        if let Some(digest) = step_inputs {
            part(&digest[..]);
        }
        if let Some(digest) = source_ignore {
            part(b"source without");
            part(&digest[..]);
        }
        CacheKey(*hasher.finalize().as_bytes())
    }
}
