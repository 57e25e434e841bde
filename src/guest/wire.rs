//! What host and guest tell each other: frames of a length (32 bits, little endian) and a postcard value.

use std::{
    ffi::CString,
    io::{self, Read, Write},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// No frame that a guest sends is longer, in bytes.
#[cfg(feature = "qemu")]
pub(crate) const MAX_FRAME_BYTES: usize = 1 << 20;

/// What the host wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// To run a step. The first one, and the only one of its kind.
    Run(Box<Job>),
    /// To send TERM to every process of the step.
    Terminate,
}

/// A step, as far as the guest needs to know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// What `/bin/sh -c` runs.
    pub script: CString,
    /// The environment, as `NAME=value`.
    pub env: Vec<CString>,
    /// Where it starts.
    pub workdir: CString,
    /// Most memory of all its processes together, in bytes.
    pub memory_bytes: u64,
    /// Most processes and threads.
    pub pids: Option<u64>,
    /// Most processors kept busy, in millionths of one.
    pub micro_cpus: Option<u64>,
    /// The time of day: since the Unix epoch, in nanoseconds.
    pub now_nanos: u64,
    /// Fresh randomness: every machine that a template became would have the same.
    pub seed: [u8; 32],
}

/// What the guest has to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Word {
    /// It waits for an order. The first word.
    Ready {
        /// Its [`VERSION`](super::VERSION).
        version: u32,
    },
    /// The command printed this.
    Output {
        /// On standard error instead of standard output.
        stderr: bool,
        /// Anything.
        bytes: Vec<u8>,
    },
    /// The last word: how the command ended. Its processes are gone, and its files are with the host.
    Ended(Ended),
    /// The last word: why it could not be run.
    Failed(String),
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    /// By itself: its exit code, or 128+n after signal n.
    Exited(i32),
    /// For its memory.
    OutOfMemory,
    /// It was killed with all that belongs to it.
    Killed,
    /// By itself with this exit code, after it had reached its limit on processes.
    TooManyProcesses(i32),
}

/// A value as a frame.
///
/// # Errors
/// Where it is longer than a length can tell.
pub(crate) fn encode(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut frame = postcard::to_extend(value, vec![0; 4]).map_err(io::Error::other)?;
    let length = u32::try_from(frame.len() - 4).map_err(io::Error::other)?;
    frame[..4].copy_from_slice(&length.to_le_bytes());
    Ok(frame)
}

pub(super) fn write(mut out: impl Write, value: &impl Serialize) -> io::Result<()> {
    out.write_all(&encode(value)?)
}

/// Reads a frame of the host's, which is trusted to be as long as it says.
pub(super) fn read<T: DeserializeOwned>(mut from: impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    let mut body = Vec::new();
    from.take(length.into()).read_to_end(&mut body)?;
    postcard::from_bytes(&body).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut stream = Vec::new();
        write(&mut stream, &Order::Terminate).unwrap();
        write(&mut stream, &Order::Terminate).unwrap();
        let mut rest = &stream[..];
        for _ in 0..2 {
            assert_eq!(read::<Order>(&mut rest).unwrap(), Order::Terminate);
        }
        assert!(read::<Order>(rest).is_err());
        assert!(read::<Order>(&stream[..4]).is_err());
    }
}
