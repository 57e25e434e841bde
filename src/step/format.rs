//! The files `input.json` and `result.json`. The format has its own version, because writer and reader may be
//! different builds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The version of both files. Increase it with any change that an older reader would misinterpret.
pub const VERSION: u32 = 1;

/// One attempt of one step, with all its inputs.
///
/// All paths are relative to the directory of `input.json`. The command's output is that of the process. The
/// exit code of the process is that of the command, or 124 if it timed out, 143 if it was terminated, 137 if
/// it was killed for its memory use, and 125 if it could not be run. The authoritative result is in
/// [`StepOutput`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepInput {
    /// The [`VERSION`] of the format.
    pub version: u32,
    /// The script for `/bin/sh -c`.
    pub command: String,
    /// The whole environment, including the image's. `PATH` and `HOME` are absent if neither the image nor
    /// the step sets them.
    pub env: BTreeMap<String, String>,
    /// The working directory of the command: an absolute path in the step's filesystem.
    pub workdir: String,
    /// The parts of the step's filesystem, lowest first.
    pub stack: Vec<Lower>,
    /// Whether to pack the files that the command wrote as `layer.tar.zst`, if it exits with 0.
    pub commit: bool,
    /// Whether to pack them also if the command fails, so that users can inspect them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep: bool,
    /// The time limit of the command, in milliseconds; then TERM, grace, KILL.
    pub timeout_ms: Option<u64>,
    /// The time between TERM and KILL, in milliseconds.
    pub grace_ms: u64,
    /// The resource limits.
    pub limits: Limits,
}

/// A part of a step's filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Lower {
    /// A layer in the format of OCI images: a tar, uncompressed or compressed with zstd or gzip.
    Layer {
        /// The file.
        path: String,
        /// The SHA-256 of the tar, as `sha256:HEX`. It identifies the layer also when unpacked.
        diff_id: String,
    },
    /// The source tree, as files, mounted at `/workspace`. It is never written to.
    Workspace {
        /// The directory that contains the tree as `workspace`, and nothing else. It is used unchanged as the
        /// lower directory of an overlay.
        ///
        /// A file beside it, named like it with `.attributes` appended, may list the modes and times of the
        /// tree: see [`attributes`](crate::tree::attributes). Without that file, those of the directory are
        /// right.
        path: String,
    },
}

/// Appended to the path of a source, the name of the file with the modes and times of its tree.
pub const ATTRIBUTES_SUFFIX: &str = ".attributes";

/// The environment variable of `hm-step` with a directory for unpacked layers that outlive the step.
pub const LAYER_CACHE_VARIABLE: &str = "HM_LAYER_CACHE";

/// The resource limits of a step. An absent limit is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The memory of its processes together, in bytes.
    pub memory_bytes: Option<u64>,
    /// The number of processors.
    pub cpus: Option<f64>,
    /// The number of processes and threads at a time.
    pub pids: Option<u64>,
    /// The network access.
    pub network: Network,
}

/// The network access of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// The network of the machine that runs it.
    #[default]
    Host,
    /// A network of its own with only a loopback device.
    None,
}

/// The result of a step, in `result.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepOutput {
    /// The [`VERSION`] of the format.
    pub version: u32,
    /// The end of the command.
    pub exit: Exit,
    /// The content of `layer.tar.zst`, if there is one. Also absent if the command changed nothing.
    pub layer: Option<LayerOutput>,
    /// Why the layer of a step that did not pass could not be made. Absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_lost: Option<String>,
    /// Why the layer cache that the client named was not used. Absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_unused: Option<String>,
}

/// The end of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Exit {
    /// It ended by itself.
    Exited {
        /// Its exit code, or 128+n after signal n.
        code: i32,
        /// Whether it reached its limit on processes. Absent otherwise, and in files of older builds.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        too_many_processes: bool,
    },
    /// It was killed because it exceeded its memory limit.
    OutOfMemory,
    /// It was ended at its time limit.
    TimedOut,
    /// It was ended because its parent process was requested to end.
    Terminated,
    /// It could not be run.
    Failed {
        /// The reason, and the remedy.
        message: String,
        /// Whether another attempt, here or elsewhere, may succeed.
        retry: bool,
    },
}

impl Exit {
    /// Returns the exit of a command that ended by itself, within its limits.
    #[must_use]
    pub fn exited(code: i32) -> Self {
        Self::Exited { code, too_many_processes: false }
    }
}

/// A layer that a step produced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerOutput {
    /// The SHA-256 of the tar before compression, as `sha256:HEX`.
    pub diff_id: String,
}

/// The reason why a file of this format cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The file has another version.
    #[error("version {found} is not supported, expected version {VERSION}: use the same hm on both sides")]
    Version {
        /// The version of the file.
        found: u32,
    },
    /// The file is not in this format.
    #[error("not in the format of version {VERSION} as this build knows it: use the same hm on both sides")]
    Malformed(#[source] serde_json::Error),
}

impl StepInput {
    /// Decodes `input.json`.
    ///
    /// # Errors
    /// Returns an error if the file has another version, or is malformed.
    pub fn decode(json: &[u8]) -> Result<Self, FormatError> {
        decode(json)
    }

    /// Returns whether the files that the command wrote are packed after this end. Those of a step that did
    /// not pass are for inspection only: a failure to pack them does not change how the step ended.
    #[must_use]
    pub fn packs(&self, exit: &Exit) -> bool {
        match exit {
            Exit::Exited { code: 0, .. } => self.commit,
            Exit::Exited { .. } | Exit::OutOfMemory | Exit::TimedOut => self.keep,
            // The request to end leaves no time, or the command did not run.
            Exit::Terminated | Exit::Failed { .. } => false,
        }
    }
}

impl StepOutput {
    /// Decodes `result.json`.
    ///
    /// # Errors
    /// Returns an error if the file has another version, or is malformed.
    pub fn decode(json: &[u8]) -> Result<Self, FormatError> {
        decode(json)
    }
}

/// Checks the version first, so that a newer file is reported as such and not as malformed.
fn decode<T: DeserializeOwned>(json: &[u8]) -> Result<T, FormatError> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let Versioned { version } = serde_json::from_slice(json).map_err(FormatError::Malformed)?;
    if version != VERSION {
        return Err(FormatError::Version { found: version });
    }
    serde_json::from_slice(json).map_err(FormatError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text that version 1 wrote. It must remain readable forever.
    const INPUT: &str = r#"{"version":1,"command":"make","env":{"CI":"true"},"workdir":"/workspace","stack":[{"kind":"layer","path":"layers/0.tar.zst","diff_id":"sha256:00"},{"kind":"workspace","path":"source"}],"commit":true,"timeout_ms":60000,"grace_ms":5000,"limits":{"memory_bytes":1073741824,"cpus":1.5,"pids":null,"network":"none"}}"#;
    const OUTPUT: &str = r#"{"version":1,"exit":{"kind":"exited","code":0},"layer":{"diff_id":"sha256:00"}}"#;

    #[test]
    fn version_1_is_read_and_written_byte_for_byte() {
        let input = StepInput::decode(INPUT.as_bytes()).unwrap();
        assert_eq!(serde_json::to_string(&input).unwrap(), INPUT);
        let output = StepOutput::decode(OUTPUT.as_bytes()).unwrap();
        assert_eq!(serde_json::to_string(&output).unwrap(), OUTPUT);
        assert_eq!(output.exit, Exit::exited(0));
        let full = r#"{"version":1,"exit":{"kind":"exited","code":137,"too_many_processes":true},"layer":null}"#;
        let output = StepOutput::decode(full.as_bytes()).unwrap();
        assert_eq!(serde_json::to_string(&output).unwrap(), full);
    }

    #[test]
    fn other_versions_and_other_texts_are_told_apart() {
        let newer = StepInput::decode(br#"{"version":2,"anything":[]}"#).unwrap_err();
        assert!(matches!(newer, FormatError::Version { found: 2 }), "{newer}");
        for text in ["", "{}", "[]", r#"{"version":1}"#, &INPUT.replace("commit", "comit")] {
            let error = StepInput::decode(text.as_bytes()).unwrap_err();
            assert!(matches!(error, FormatError::Malformed(_)), "{text}: {error}");
        }
    }
}
