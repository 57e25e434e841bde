//! The journal's format: magic, version, and frames of records.
//!
//! ```text
//! "hm-jrnl\0"  u32 version  frame(RunMeta)  frame(Record)*
//!
//! frame = u32 length, u32 CRC-32, payload (postcard)
//! ```
//!
//! All integers outside payloads are little-endian. Within a version, kinds of records and trailing fields
//! may be added: a reader returns unknown kinds as [`Record::Unknown`], and ignores bytes after the fields
//! that it knows. Any other change increases the version.

use postcard::ser_flavors::Flavor;
use serde::{Deserialize, Serialize};

use super::{CacheMissReason, PlanDetails, RunMeta, ServerRun, StdStream, StepCommand};
use crate::model::{BuildStatus, StepStatus};

/// The first bytes of every journal.
pub(super) const MAGIC: [u8; 8] = *b"hm-jrnl\0";

/// The format version that is written, and the highest one that is read.
pub(super) const FORMAT_VERSION: u32 = 1;

/// The length of magic and version, in bytes.
pub(super) const PREAMBLE_BYTES: usize = 12;

/// The length of the header before a payload, in bytes.
pub(super) const FRAME_HEADER_BYTES: usize = 8;

/// The maximum length of a record, in bytes: the writer clips texts, the reader refuses longer records.
pub(super) const MAX_RECORD_BYTES: usize = 1 << 20;

/// The maximum length of preamble and header, in bytes. (100,000 steps take some ten million.)
pub(super) const MAX_HEADER_BYTES: usize = 256 << 20;

/// The length to which texts in records are clipped, in bytes.
pub(super) const MAX_TEXT_BYTES: usize = 64 << 10;

/// The length to which each command is clipped, in bytes.
const MAX_COMMAND_BYTES: usize = 4 << 10;

/// The length of all commands together, in bytes. If they are longer, each gets the same part of it.
const MAX_COMMANDS_BYTES: usize = 16 << 20;

/// An event as the journal stores it. `at_ms` is milliseconds since the start of the run.
///
/// The order of the variants and of their fields is the format: only append to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Record<'a> {
    StepStart {
        at_ms: u64,
        step: u32,
        attempt: u32,
    },
    /// `len` bytes at `offset` of the attempt's log arrived.
    Output {
        at_ms: u64,
        step: u32,
        attempt: u32,
        stream: u8,
        offset: u64,
        len: u64,
    },
    StepRetry {
        at_ms: u64,
        step: u32,
        attempt: u32,
        backoff_ms: u64,
        message: &'a str,
        /// The result of [`encode_retry`](super::trailing::encode_retry), after the other fields.
        #[serde(skip)]
        trailing: &'a [u8],
    },
    StepCacheHit {
        at_ms: u64,
        step: u32,
        tag: &'a str,
    },
    StepEnd {
        at_ms: u64,
        step: u32,
        attempt: u32,
        status: u8,
        exit_code: i32,
        duration_ms: u64,
        snapshot: Option<&'a str>,
        message: Option<&'a str>,
        /// The result of [`encode_end`](super::trailing::encode_end), after the other fields. Records without
        /// such fields, as older versions wrote them, end before it.
        #[serde(skip)]
        trailing: &'a [u8],
    },
    ChainFailed {
        at_ms: u64,
        step: u32,
        exit_code: i32,
        message: &'a str,
    },
    BuildEnd {
        at_ms: u64,
        status: u8,
        duration_ms: u64,
    },
    StepCacheMiss {
        at_ms: u64,
        step: u32,
        reason: u8,
        message: Option<&'a str>,
    },
    Connection {
        at_ms: u64,
        step: u32,
        attempt: u32,
        /// The result of [`encode_connection`](super::connections::encode_connection), after the other
        /// fields. Not decoded with them, because that would make every record larger.
        #[serde(skip)]
        trailing: &'a [u8],
    },
    Progress {
        at_ms: u64,
        /// `None` if the whole run waits.
        step: Option<u32>,
        activity: u8,
        /// How much is done, of how much.
        count: Option<(u64, u64)>,
    },
    StepShadow {
        at_ms: u64,
        step: u32,
        attempt: u32,
        found: bool,
        miss: Option<&'a str>,
        difference: Option<&'a str>,
        /// One per line.
        reasons: &'a str,
    },
    /// A kind of a newer version. It is never written.
    #[serde(skip)]
    Unknown {
        kind: u32,
    },
}

/// The number of [`Record::Connection`].
pub(super) const CONNECTION_KIND: u32 = 8;

/// The number of [`Record::Progress`].
pub(super) const PROGRESS_KIND: u32 = 9;

/// The number of record kinds.
const KNOWN_KINDS: u32 = 11;

impl<'a> Record<'a> {
    /// Decodes a frame's payload.
    pub(super) fn decode(payload: &'a [u8]) -> Result<Self, postcard::Error> {
        let (kind, _) = postcard::take_from_bytes::<u32>(payload)?;
        if kind >= KNOWN_KINDS {
            return Ok(Self::Unknown { kind });
        }
        let (mut record, later_fields) = postcard::take_from_bytes(payload)?;
        if let Self::StepEnd { trailing, .. } | Self::StepRetry { trailing, .. } | Self::Connection { trailing, .. } =
            &mut record
        {
            *trailing = later_fields;
        }
        Ok(record)
    }

    /// Appends the record to `buffer` as one frame. On failure the buffer is unchanged.
    pub(super) fn append_to(&self, buffer: &mut Vec<u8>) -> Result<(), postcard::Error> {
        match self {
            Self::StepEnd { trailing, .. } | Self::StepRetry { trailing, .. } | Self::Connection { trailing, .. } => {
                encode_with(buffer, self, trailing)
            }
            record => encode_with(buffer, record, &[]),
        }
    }
}

/// Appends a run's header to `buffer` as one frame. On failure the buffer is unchanged.
pub(super) fn encode_header(buffer: &mut Vec<u8>, meta: &RunMeta) -> Result<(), postcard::Error> {
    let mut trailing = meta.server.as_ref().map(postcard::to_stdvec).transpose()?.unwrap_or_default();
    if meta.details != PlanDetails::default() {
        if trailing.is_empty() {
            // No server is one that says nothing.
            trailing = postcard::to_stdvec(&ServerRun::default())?;
        }
        trailing = postcard::to_extend(&meta.details, trailing)?;
        if !meta.details.commands.is_empty() {
            trailing = postcard::to_extend(&meta.details.commands, trailing)?;
        }
    }
    encode_with(buffer, meta, &trailing)
}

/// Decodes a header's payload. Any bytes after the known fields belong to a later version.
pub(super) fn decode_header(payload: &[u8]) -> Result<RunMeta, postcard::Error> {
    let (mut meta, trailing) = postcard::take_from_bytes::<RunMeta>(payload)?;
    if trailing.is_empty() {
        return Ok(meta);
    }
    let (server, details) = postcard::take_from_bytes(trailing)?;
    meta.server = Some(server).filter(|server| *server != ServerRun::default());
    if !details.is_empty() {
        let (details, commands) = postcard::take_from_bytes(details)?;
        meta.details = details;
        if !commands.is_empty() {
            meta.details.commands = postcard::take_from_bytes(commands)?.0;
        }
    }
    Ok(meta)
}

/// Appends `value` to `buffer` as one frame. On failure the buffer is unchanged.
#[cfg(test)]
pub(super) fn encode<T: Serialize>(buffer: &mut Vec<u8>, value: &T) -> Result<(), postcard::Error> {
    encode_with(buffer, value, &[])
}

/// Does the same as [`encode`], with a trailing field.
fn encode_with<T: Serialize>(buffer: &mut Vec<u8>, value: &T, trailing: &[u8]) -> Result<(), postcard::Error> {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; FRAME_HEADER_BYTES]);
    let written = postcard::serialize_with_flavor(value, Append(buffer)).and_then(|()| {
        buffer.extend_from_slice(trailing);
        let payload = &buffer[start + FRAME_HEADER_BYTES..];
        let len = u32::try_from(payload.len()).map_err(|_| postcard::Error::SerializeBufferFull)?;
        let crc = crc32fast::hash(payload);
        buffer[start..start + 4].copy_from_slice(&len.to_le_bytes());
        buffer[start + 4..start + FRAME_HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
        Ok(())
    });
    if written.is_err() {
        buffer.truncate(start);
    }
    written
}

/// Makes postcard append to a borrowed buffer.
struct Append<'a>(&'a mut Vec<u8>);

impl Flavor for Append<'_> {
    type Output = ();

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// Clips `text` to the maximum length in a record, at the end of a character.
pub(super) fn clip(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT_BYTES)]
}

/// Clips commands to what a header has of them.
pub(super) fn clip_commands(commands: &mut [StepCommand]) {
    let all: usize = commands.iter().map(|command| command.text.len().min(MAX_COMMAND_BYTES)).sum();
    let max = if all <= MAX_COMMANDS_BYTES { MAX_COMMAND_BYTES } else { MAX_COMMANDS_BYTES / commands.len() };
    for command in commands.iter_mut().filter(|command| command.text.len() > max) {
        let kept = command.text.floor_char_boundary(max);
        command.omitted_bytes += (command.text.len() - kept) as u64;
        command.text = command.text[..kept].into();
    }
}

/// Returns a stream's code in the journal.
pub(super) const fn stream_code(stream: StdStream) -> u8 {
    match stream {
        StdStream::Stdout => 0,
        StdStream::Stderr => 1,
    }
}

/// Returns the stream with this code.
pub(super) const fn stream_of(code: u8) -> Option<StdStream> {
    match code {
        0 => Some(StdStream::Stdout),
        1 => Some(StdStream::Stderr),
        _ => None,
    }
}

/// Returns a step status's code in the journal. A refined status has the code of the status that it refines:
/// see [`Refinement`](super::trailing::Refinement).
pub(super) const fn step_status_code(status: StepStatus) -> u8 {
    match status {
        StepStatus::Passed | StepStatus::Flaky => 0,
        StepStatus::Failed | StepStatus::FailedAllowed => 1,
        StepStatus::Skipped => 2,
        StepStatus::Canceled => 3,
        StepStatus::CacheHit => 4,
        StepStatus::TimedOut => 5,
        StepStatus::OutOfMemory => 6,
        StepStatus::Infrastructure => 7,
    }
}

/// Returns the step status with this code.
pub(super) const fn step_status_of(code: u8) -> Option<StepStatus> {
    Some(match code {
        0 => StepStatus::Passed,
        1 => StepStatus::Failed,
        2 => StepStatus::Skipped,
        3 => StepStatus::Canceled,
        4 => StepStatus::CacheHit,
        5 => StepStatus::TimedOut,
        6 => StepStatus::OutOfMemory,
        7 => StepStatus::Infrastructure,
        _ => return None,
    })
}

/// Returns the code in the journal of a reason for a cache miss.
pub(super) const fn miss_reason_code(reason: CacheMissReason) -> u8 {
    match reason {
        CacheMissReason::Absent => 0,
        CacheMissReason::Expired => 1,
        CacheMissReason::Damaged => 2,
        CacheMissReason::Refresh => 3,
        CacheMissReason::Unavailable => 4,
    }
}

/// Returns the reason for a cache miss with this code.
pub(super) const fn miss_reason_of(code: u8) -> Option<CacheMissReason> {
    Some(match code {
        0 => CacheMissReason::Absent,
        1 => CacheMissReason::Expired,
        2 => CacheMissReason::Damaged,
        3 => CacheMissReason::Refresh,
        4 => CacheMissReason::Unavailable,
        _ => return None,
    })
}

/// Returns a build status's code in the journal.
pub(super) const fn build_status_code(status: BuildStatus) -> u8 {
    match status {
        BuildStatus::Passed => 0,
        BuildStatus::Failed => 1,
        BuildStatus::Canceled => 2,
        BuildStatus::TimedOut => 3,
        BuildStatus::Infrastructure => 4,
    }
}

/// Returns the build status with this code.
pub(super) const fn build_status_of(code: u8) -> Option<BuildStatus> {
    Some(match code {
        0 => BuildStatus::Passed,
        1 => BuildStatus::Failed,
        2 => BuildStatus::Canceled,
        3 => BuildStatus::TimedOut,
        4 => BuildStatus::Infrastructure,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload_of(record: Record<'_>) -> Vec<u8> {
        let mut frame = Vec::new();
        record.append_to(&mut frame).unwrap();
        frame.split_off(FRAME_HEADER_BYTES)
    }

    #[test]
    fn a_steps_whole_life_costs_about_fifty_bytes() {
        let mut buffer = Vec::new();
        encode(&mut buffer, &Record::StepStart { at_ms: 60_000, step: 99_999, attempt: 1 }).unwrap();
        let end = Record::StepEnd {
            at_ms: 60_010,
            step: 99_999,
            attempt: 1,
            status: 0,
            exit_code: 0,
            duration_ms: 10,
            snapshot: None,
            message: None,
            trailing: &[],
        };
        end.append_to(&mut buffer).unwrap();
        assert!(buffer.len() <= 50, "{}", buffer.len());
    }

    #[test]
    fn the_highest_known_kind_decodes_and_the_next_is_unknown() {
        let progress = Record::Progress { at_ms: 1, step: Some(2), activity: 3, count: Some((4, 5)) };
        assert_eq!(u32::from(payload_of(progress)[0]), PROGRESS_KIND);
        let (miss, difference) = (Some("F changed"), None);
        let last = Record::StepShadow { at_ms: 1, step: 2, attempt: 1, found: false, miss, difference, reasons: "" };
        let payload = payload_of(last);
        assert_eq!(u32::from(payload[0]), KNOWN_KINDS - 1);
        assert_eq!(Record::decode(&payload), Ok(last));
        assert_eq!(Record::decode(&[11, 1, 2, 3]), Ok(Record::Unknown { kind: KNOWN_KINDS }));
    }

    #[test]
    fn fields_that_a_newer_version_appends_are_overlooked() {
        let record = Record::StepStart { at_ms: 5, step: 6, attempt: 7 };
        let mut payload = payload_of(record);
        payload.extend_from_slice(b"later");
        assert_eq!(Record::decode(&payload), Ok(record));
    }

    #[test]
    fn every_status_survives_its_code() {
        for code in 0..=u8::MAX {
            if let Some(status) = step_status_of(code) {
                assert_eq!(step_status_code(status), code);
            }
            if let Some(status) = build_status_of(code) {
                assert_eq!(build_status_code(status), code);
            }
            if let Some(reason) = miss_reason_of(code) {
                assert_eq!(miss_reason_code(reason), code);
            }
            if let Some(stream) = stream_of(code) {
                assert_eq!(stream_code(stream), code);
            }
        }
        assert_eq!((0..=u8::MAX).filter_map(step_status_of).count(), 8);
        assert_eq!((0..=u8::MAX).filter_map(build_status_of).count(), 5);
        assert_eq!((0..=u8::MAX).filter_map(miss_reason_of).count(), 5);
    }

    #[test]
    fn commands_are_clipped_to_a_fair_part_at_a_character() {
        let of = |len: usize| StepCommand::new("ä".repeat(len / 2));
        let mut few = [of(10), of(MAX_COMMAND_BYTES), of(MAX_COMMAND_BYTES + 2)];
        clip_commands(&mut few);
        assert_eq!(few.each_ref().map(|it| it.omitted_bytes), [0, 0, 2]);
        assert_eq!(few.each_ref().map(|it| it.text.len()), [10, MAX_COMMAND_BYTES, MAX_COMMAND_BYTES]);
        // An odd number of bytes is the part of each of these.
        let mut many = vec![of(100 << 10); 16_383];
        many.push(of(10));
        clip_commands(&mut many);
        assert!(many.iter().map(|it| it.text.len()).sum::<usize>() <= MAX_COMMANDS_BYTES);
        assert!(many.iter().all(|it| it.text.chars().all(|c| c == 'ä')));
        let whole: Vec<u64> = many.iter().map(|it| it.text.len() as u64 + it.omitted_bytes).collect();
        assert_eq!((whole[0], whole.last()), (100 << 10, Some(&10)));
        let mut more = vec![of(1 << 10); 100_000];
        clip_commands(&mut more);
        assert_eq!((more[0].text.len(), more[0].omitted_bytes), (166, (1 << 10) - 166));
        clip_commands(&mut []);
    }

    #[test]
    fn texts_are_clipped_at_a_character() {
        let text = "ä".repeat(MAX_TEXT_BYTES);
        assert!(clip(&text).len() <= MAX_TEXT_BYTES);
        assert_eq!(clip("short"), "short");
    }
}
