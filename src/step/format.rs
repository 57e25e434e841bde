//! The files `input.json` and `result.json`: a format with a version of its own, because the two ends may be different
//! builds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The version of both files. Raised with any change that an older reader would get wrong.
pub const VERSION: u32 = 1;

/// One attempt of one step, with everything that it starts from.
///
/// All paths are relative to the directory that has `input.json`. The command's output is that of the process; its exit
/// code, too, or 124 where it timed out, 143 where it was terminated, 137 where it was killed for its memory, and 125 where
/// it could not be run. What counts is in [`StepOutput`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepInput {
    /// [`VERSION`].
    pub version: u32,
    /// Run by `/bin/sh -c`.
    pub command: String,
    /// The whole environment, the image's included, apart from `PATH` and `HOME` where nobody sets them.
    pub env: BTreeMap<String, String>,
    /// Where the command starts: an absolute path in the step's filesystem.
    pub workdir: String,
    /// What the step's filesystem is made of, lowest first.
    pub stack: Vec<Lower>,
    /// Whether to pack what the command wrote as `layer.tar.zst`, where it exits 0.
    pub commit: bool,
    /// How long the command may take, in milliseconds; then TERM, grace, KILL.
    pub timeout_ms: Option<u64>,
    /// How long it may take between TERM and KILL, in milliseconds.
    pub grace_ms: u64,
    /// What it may use.
    pub limits: Limits,
}

/// A part of a step's filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Lower {
    /// A layer as OCI images have it: a tar, compressed with zstd or gzip, or not at all.
    Layer {
        /// The file.
        path: String,
        /// The SHA-256 of the tar, as `sha256:HEX`: the layer's name wherever it lies unpacked.
        diff_id: String,
    },
    /// The source tree, as files, to be seen at `/workspace`. Never written to.
    Workspace {
        /// The directory that has it, as `workspace`, and nothing else: as it is, the lower directory of an overlay.
        path: String,
    },
}

/// What a step may use. Absent is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Memory of its processes together, in bytes.
    pub memory_bytes: Option<u64>,
    /// Processors.
    pub cpus: Option<f64>,
    /// Processes and threads at a time.
    pub pids: Option<u64>,
    /// What it sees of the network.
    pub network: Network,
}

/// What a step sees of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// What the machine that runs it sees.
    #[default]
    Host,
    /// A loopback device of its own.
    None,
}

/// How a step ended, in `result.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepOutput {
    /// [`VERSION`].
    pub version: u32,
    /// How.
    pub exit: Exit,
    /// What is in `layer.tar.zst`, where there is one. Absent, too, where the command changed nothing.
    pub layer: Option<LayerOutput>,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Exit {
    /// By itself.
    Exited {
        /// Its code, or 128+n after signal n.
        code: i32,
        /// It reached its limit on processes. Absent otherwise, and from older builds.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        too_many_processes: bool,
    },
    /// It was killed for going over its memory limit.
    OutOfMemory,
    /// It was ended because its time was up.
    TimedOut,
    /// It was ended because whoever ran it was told to.
    Terminated,
    /// It could not be run.
    Failed {
        /// Why, and what to do.
        message: String,
        /// Whether another attempt, here or elsewhere, may end otherwise.
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

/// A layer that a step left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerOutput {
    /// The SHA-256 of the tar before compression, as `sha256:HEX`.
    pub diff_id: String,
}

/// Why a file of this format can't be read.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// Another version wrote it.
    #[error("version {found}, where this hm knows version {VERSION}: use the same hm on both sides")]
    Version {
        /// Which.
        found: u32,
    },
    /// It is not in this format.
    #[error("not in the format of version {VERSION}")]
    Malformed(#[source] serde_json::Error),
}

impl StepInput {
    /// Decodes `input.json`.
    ///
    /// # Errors
    /// Where it is of another version, or malformed.
    pub fn decode(json: &[u8]) -> Result<Self, FormatError> {
        decode(json)
    }
}

impl StepOutput {
    /// Decodes `result.json`.
    ///
    /// # Errors
    /// Where it is of another version, or malformed.
    pub fn decode(json: &[u8]) -> Result<Self, FormatError> {
        decode(json)
    }
}

/// Looks at the version first, so that a newer file is told as such and not as malformed.
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

    /// As it went out when it was version 1; what was sent then is read for ever.
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
