//! The protocol between host and guest: frames of a length (32 bits, little endian) and a postcard value.

use std::{
    ffi::CString,
    io::{self, Read, Write},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The maximum length of a guest's frame, in bytes.
pub const MAX_FRAME_BYTES: usize = 1 << 20;

/// A request of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Run a step. This is the first order, and the only one of its kind.
    Run(Box<Job>),
    /// Send TERM to every process of the step.
    Terminate,
}

/// The parts of a step that the guest needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The script for `/bin/sh -c`.
    pub script: CString,
    /// The environment, as `NAME=value`.
    pub env: Vec<CString>,
    /// The working directory.
    pub workdir: CString,
    /// The maximum memory of all its processes together, in bytes.
    pub memory_bytes: u64,
    /// The maximum number of processes and threads.
    pub pids: Option<u64>,
    /// The maximum processor use, in millionths of a processor.
    pub micro_cpus: Option<u64>,
    /// The time of day: since the Unix epoch, in nanoseconds.
    pub now_nanos: u64,
    /// Fresh randomness. Without it, every machine that is started from a template would have the same.
    pub seed: [u8; 32],
}

/// A message of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Word {
    /// The guest waits for an order. This is the first word.
    Ready {
        /// The guest's [`VERSION`](super::VERSION).
        version: u32,
    },
    /// Output of the command.
    Output {
        /// Whether it is from standard error instead of standard output.
        stderr: bool,
        /// Any bytes.
        bytes: Vec<u8>,
    },
    /// The last word: the end of the command. Its processes have ended, and its files are flushed to the
    /// host.
    Ended(Ended),
    /// The last word: the reason why the command could not be run.
    Failed(String),
}

/// The end of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    /// It ended by itself: its exit code, or 128+n after signal n.
    Exited(i32),
    /// It exceeded its memory limit.
    OutOfMemory,
    /// It was killed together with all its processes.
    Killed,
    /// It ended by itself with this exit code, after it had reached its limit on processes.
    TooManyProcesses(i32),
}

/// Encodes a value as a frame.
///
/// # Errors
/// Returns an error if the value is too long for a frame's length.
pub fn encode(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut frame = postcard::to_extend(value, vec![0; 4]).map_err(io::Error::other)?;
    let length = u32::try_from(frame.len() - 4).map_err(io::Error::other)?;
    frame[..4].copy_from_slice(&length.to_le_bytes());
    Ok(frame)
}

pub(super) fn write(mut out: impl Write, value: &impl Serialize) -> io::Result<()> {
    out.write_all(&encode(value)?)
}

/// Reads a frame from the host. Its length is trusted.
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
