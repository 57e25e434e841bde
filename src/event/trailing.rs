//! Fields after those that a record had in the first version of the format. Each field follows those that
//! were added before it. A record in which all of them are empty ends before them, as if they did not exist,
//! and a reader ignores what follows the fields that it knows.

use crate::model::{ArtifactRef, FailedTest, StepStatus, StepUsage, TestResults};

/// The maximum size of one step's artifacts in a record, in bytes.
const MAX_ARTIFACTS_BYTES: usize = 512 << 10;

/// The maximum size of the numbers of one artifact, in bytes.
const MAX_NUMBERS_BYTES: usize = 20;

/// What a status means beyond its code in the journal. A code of its own would make the journal unreadable
/// for older versions; so they read a flaky step as passed, and an allowed failure as a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refinement {
    /// The step passed after its command had failed.
    Flaky,
    /// The failure is allowed.
    Allowed,
}

/// The code of no refinement, if other fields follow.
const NO_REFINEMENT: u8 = 0;

impl Refinement {
    /// Returns what `status` means beyond its code.
    pub(super) const fn of(status: StepStatus) -> Option<Self> {
        match status {
            StepStatus::Flaky => Some(Self::Flaky),
            StepStatus::FailedAllowed => Some(Self::Allowed),
            _ => None,
        }
    }

    const fn code(self) -> u8 {
        match self {
            Self::Flaky => 1,
            Self::Allowed => 2,
        }
    }

    /// Returns the refinement with this code. Returns `None` for 0, and for a code of a later version.
    const fn with_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Flaky),
            2 => Some(Self::Allowed),
            _ => None,
        }
    }

    /// Returns the refined status. A status that has no such refinement stays as it is.
    const fn refine(self, status: StepStatus) -> StepStatus {
        match (self, status) {
            (Self::Flaky, StepStatus::Passed) => StepStatus::Flaky,
            (Self::Allowed, StepStatus::Failed | StepStatus::TimedOut | StepStatus::OutOfMemory) => {
                StepStatus::FailedAllowed
            }
            (_, status) => status,
        }
    }
}

/// The trailing fields of a step's end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct EndFields {
    pub(super) artifacts: Vec<ArtifactRef>,
    pub(super) refinement: Option<Refinement>,
    pub(super) usage: Option<StepUsage>,
    pub(super) tests: Option<TestResults>,
}

impl EndFields {
    /// Returns the refined status of a step whose record has `status`.
    pub(super) fn refine(&self, status: StepStatus) -> StepStatus {
        self.refinement.map_or(status, |refinement| refinement.refine(status))
    }
}

/// Encodes the trailing fields of a step's end. The result is empty if there are neither artifacts nor a
/// refinement nor a usage.
pub(super) fn encode_end<'a>(
    artifacts: impl Iterator<Item = (&'a str, &'a str, u64)>,
    (refinement, usage, tests): (Option<Refinement>, Option<StepUsage>, Option<&TestResults>),
) -> Vec<u8> {
    let (mut bytes, mut all, mut left_out) = (0, Vec::new(), 0_usize);
    for artifact in artifacts {
        bytes += artifact.0.len() + artifact.1.len() + MAX_NUMBERS_BYTES;
        if bytes > MAX_ARTIFACTS_BYTES {
            left_out += 1;
        } else {
            all.push(artifact);
        }
    }
    if left_out > 0 {
        tracing::warn!("{left_out} artifacts of a step are not recorded because their names are too long");
    }
    if all.is_empty() && refinement.is_none() && usage.is_none() && tests.is_none() {
        return Vec::new();
    }
    // These types cannot fail to encode.
    let mut fields = postcard::to_stdvec(&all).unwrap_or_default();
    if usage.is_some() || tests.is_some() {
        fields.push(refinement.map_or(NO_REFINEMENT, Refinement::code));
        // No usage is one of nothing.
        let StepUsage { peak_memory_bytes, cpu_ms, .. } = usage.unwrap_or_default();
        fields.extend(postcard::to_stdvec(&(peak_memory_bytes, cpu_ms)).unwrap_or_default());
        if let Some(TestResults { tests, failed, skipped, failures, .. }) = tests {
            let failures: Vec<_> = failures.iter().map(|failure| (&*failure.name, &*failure.message)).collect();
            fields.extend(postcard::to_stdvec(&(tests, failed, skipped, failures)).unwrap_or_default());
        }
    } else {
        fields.extend(refinement.map(Refinement::code));
    }
    fields
}

/// Decodes the trailing fields of a step's end. Any bytes after them belong to a later version.
pub(super) fn decode_end(bytes: &[u8]) -> Result<EndFields, postcard::Error> {
    if bytes.is_empty() {
        return Ok(EndFields::default());
    }
    let (all, later_fields) = postcard::take_from_bytes::<Vec<(String, String, u64)>>(bytes)?;
    let artifacts = all.into_iter().map(|(key, mime, size_bytes)| ArtifactRef { key, mime, size_bytes }).collect();
    let Some((code, later_fields)) = later_fields.split_first() else {
        return Ok(EndFields { artifacts, ..EndFields::default() });
    };
    let refinement = Refinement::with_code(*code);
    if later_fields.is_empty() {
        return Ok(EndFields { artifacts, refinement, ..EndFields::default() });
    }
    let ((peak_memory_bytes, cpu_ms), later_fields) = postcard::take_from_bytes(later_fields)?;
    let usage = Some(StepUsage::new(peak_memory_bytes, cpu_ms)).filter(|usage| *usage != StepUsage::default());
    let tests = if later_fields.is_empty() { None } else { Some(decode_tests(later_fields)?) };
    Ok(EndFields { artifacts, refinement, usage, tests })
}

/// Decodes the results of tests. Any bytes after them belong to a later version.
fn decode_tests(bytes: &[u8]) -> Result<TestResults, postcard::Error> {
    type Fields = (u32, u32, u32, Vec<(String, String)>);
    let ((tests, failed, skipped, failures), _later_fields) = postcard::take_from_bytes::<Fields>(bytes)?;
    let failures = failures.into_iter().map(|(name, message)| FailedTest { name, message }).collect();
    Ok(TestResults { tests, failed, skipped, failures })
}

/// Encodes the trailing field of a retry: the command's exit code, if the command failed.
pub(super) fn encode_retry(exit_code: Option<i32>) -> Vec<u8> {
    // The type cannot fail to encode.
    exit_code.map(|code| postcard::to_stdvec(&Some(code)).unwrap_or_default()).unwrap_or_default()
}

/// Decodes the trailing field of a retry. Any bytes after it belong to a later version.
pub(super) fn decode_retry(bytes: &[u8]) -> Result<Option<i32>, postcard::Error> {
    if bytes.is_empty() {
        return Ok(None);
    }
    postcard::take_from_bytes(bytes).map(|(exit_code, _later_fields)| exit_code)
}

#[cfg(test)]
mod tests {
    use super::{
        super::record::{FRAME_HEADER_BYTES, MAX_RECORD_BYTES, Record},
        *,
    };

    fn payload(trailing: &[u8]) -> Vec<u8> {
        let end = Record::StepEnd {
            at_ms: 1,
            step: 2,
            attempt: 1,
            status: 0,
            exit_code: 0,
            duration_ms: 1,
            snapshot: None,
            message: None,
            trailing,
        };
        let mut frame = Vec::new();
        end.append_to(&mut frame).unwrap();
        frame.split_off(FRAME_HEADER_BYTES)
    }

    fn decoded(payload: &[u8]) -> EndFields {
        let Ok(Record::StepEnd { trailing, .. }) = Record::decode(payload) else { panic!("another record") };
        decode_end(trailing).unwrap()
    }

    #[test]
    fn an_end_without_trailing_fields_is_as_it_was_before_they_existed() {
        let artifacts: [(&str, &str, u64); 0] = [];
        assert_eq!(encode_end(artifacts.into_iter(), (None, None, None)), [0_u8; 0]);
        assert_eq!(decoded(&payload(&[])), EndFields::default());
        assert!(decode_end(&[200]).is_err());
    }

    #[test]
    fn artifacts_survive_and_later_fields_may_follow() {
        let artifacts = [("out/a.txt", "text/plain", 3), ("b", "", u64::MAX)];
        let usage = Some(StepUsage::new(u64::MAX, 7));
        let failures = vec![FailedTest { name: "a".into(), message: "b".into() }];
        let tests = Some(TestResults { tests: 9, failed: 1, skipped: 2, failures });
        for (refinement, usage, tests) in [
            (None, None, None),
            (Some(Refinement::Flaky), None, None),
            (None, usage, None),
            (None, None, tests.clone()),
            (Some(Refinement::Allowed), usage, tests),
        ] {
            let mut fields = encode_end(artifacts.into_iter(), (refinement, usage, tests.as_ref()));
            if tests.is_some() {
                fields.extend_from_slice(b"later");
            }
            let found = decoded(&payload(&fields));
            assert_eq!((found.refinement, found.usage, &found.tests), (refinement, usage, &tests));
            let found: Vec<_> = found.artifacts.iter().map(|it| (&*it.key, &*it.mime, it.size_bytes)).collect();
            assert_eq!(found, artifacts);
        }
        // Too many for a record: only those that fit are kept.
        let long = "x".repeat(100_000);
        let fields = encode_end((0..20).map(|size| (&*long, "", size)), (Some(Refinement::Flaky), None, None));
        assert!(fields.len() < MAX_RECORD_BYTES / 2);
        let found = decode_end(&fields).unwrap();
        assert_eq!((found.artifacts.len(), found.refinement), (5, Some(Refinement::Flaky)));
    }

    #[test]
    fn a_refined_status_needs_one_that_it_refines_and_a_later_code_refines_nothing() {
        use StepStatus::{CacheHit, Failed, FailedAllowed, Flaky, OutOfMemory, Passed, TimedOut};
        let none: [(&str, &str, u64); 0] = [];
        for (status, base) in [(Flaky, Passed), (FailedAllowed, Failed), (Passed, Passed)] {
            let fields = decoded(&payload(&encode_end(none.into_iter(), (Refinement::of(status), None, None))));
            assert_eq!(fields.refine(base), status);
        }
        for status in [TimedOut, OutOfMemory] {
            assert_eq!(Refinement::Allowed.refine(status), FailedAllowed);
        }
        assert_eq!(Refinement::Allowed.refine(Passed), Passed);
        assert_eq!(Refinement::Flaky.refine(CacheHit), CacheHit);
        assert_eq!(decode_end(&[0, 77]).unwrap(), EndFields::default());
    }

    #[test]
    fn a_retry_has_an_exit_code_only_if_the_command_failed() {
        assert_eq!((encode_retry(None), decode_retry(&[])), (vec![], Ok(None)));
        for code in [1, 255, -1, i32::MAX, i32::MIN] {
            let mut field = encode_retry(Some(code));
            field.extend_from_slice(b"later");
            assert_eq!(decode_retry(&field), Ok(Some(code)));
        }
        assert!(decode_retry(&[7]).is_err());
    }
}
