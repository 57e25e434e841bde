//! The encoded form of traces.
//!
//! A name and a version, then one zstd frame with the reasons, the variables, and the entries in order of
//! their paths. Each path is stored as the number of bytes that it shares with the one before, and the rest.
//! A trace is influenced by its step, so the decoder limits and checks everything.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::{self, Read},
};

use serde::{Deserialize, Serialize};

/// The name and the version of the format. Increase the version with any change of a type in this file.
const HEADER: &[u8; 9] = b"hm-trace\x02";
/// That of the version before, which has fewer reasons.
const HEADER_1: &[u8; 9] = b"hm-trace\x01";

/// The longest path, in bytes. The kernel takes no longer ones in a call, but a resolved path may be longer.
pub(super) const MAX_PATH_BYTES: usize = 16 << 10;
/// The most entries of a trace.
pub(super) const MAX_ENTRIES: usize = 500_000;
/// The most bytes of all paths of a trace.
pub(super) const MAX_BYTES: usize = 32 << 20;
/// The most reasons that a trace records.
pub(super) const MAX_REASONS: usize = 100;
/// The most bytes of a decompressed trace: paths, and a few bytes for each.
const MAX_BODY_BYTES: u64 = (MAX_BYTES + 16 * MAX_ENTRIES) as u64;

/// What a step read of a path, and whether it wrote to it: a set.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Kinds(u8);

impl Kinds {
    /// The bytes of a file were read, or carried into the step's layer.
    pub const CONTENT: Self = Self(1);
    /// Existence, type, mode, owner and attributes were read.
    pub const METADATA: Self = Self(2);
    /// The names in a directory were read.
    pub const LISTING: Self = Self(4);
    /// The target of a link was read.
    pub const LINK: Self = Self(8);
    /// There was nothing.
    pub const ABSENT: Self = Self(16);
    /// A directory was passed through.
    pub const DIRECTORY: Self = Self(32);
    /// The step created, changed or removed it.
    pub const WRITTEN: Self = Self(64);

    const ALL: u8 = 127;

    /// Returns the union of two sets.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Returns whether all kinds of `other` are in this set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Returns whether the set is empty.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Debug for Kinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (Self::CONTENT, "content"),
            (Self::METADATA, "metadata"),
            (Self::LISTING, "listing"),
            (Self::LINK, "link"),
            (Self::ABSENT, "absent"),
            (Self::DIRECTORY, "directory"),
            (Self::WRITTEN, "written"),
        ];
        f.debug_set().entries(names.iter().filter(|(kind, _)| self.contains(*kind)).map(|(_, name)| name)).finish()
    }
}

/// A reason why a trace does not contain everything that its step depends on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Reason {
    /// It used its network. The text names what it reached.
    Network(String),
    /// It was on the machine's network.
    SharedNetwork,
    /// A program made system calls of another architecture.
    ForeignCalls,
    /// A program of the step traced others by seccomp, so the step ran untraced.
    OwnFilter,
    /// It read this file of the kernel.
    KernelFile(Vec<u8>),
    /// It read this secret.
    Secret(Vec<u8>),
    /// A system call could not be examined.
    Unexamined {
        /// Its name.
        call: String,
        /// The error.
        error: String,
    },
    /// This path was written by a call that was not traced.
    Untraced(Vec<u8>),
    /// It ran a program of a format that the machine may have an interpreter for.
    ForeignProgram(Vec<u8>),
    /// It read more than a trace can hold.
    TooMany,
    /// The kernel cannot trace steps, or hm itself is traced.
    Kernel,
    /// Paths that contain a secret's value were left out.
    SecretPath,
    /// This service ran beside it, and what a service reads is not traced.
    Service(String),
    /// It got files of other steps.
    OtherSteps,
    /// It saw the real times of source files.
    RealTimes,
    /// This file of the machine changed while it ran.
    Changed(Vec<u8>),
    /// The clock was set while it ran.
    Clock,
    /// What it read of this path is not what is there.
    Contradiction(Vec<u8>),
    /// The layer that it wrote was merged with others.
    Merged,
    /// It has cache directories.
    CacheDirs,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match self {
            Self::Network(to) => write!(f, "it used the network: {to}"),
            Self::SharedNetwork => f.write_str("it could use the machine's network"),
            Self::ForeignCalls => f.write_str("a program made 32-bit system calls, which are not traced"),
            Self::OwnFilter => f.write_str("a program of the step traced others by seccomp"),
            Self::KernelFile(path) => write!(f, "it read {}", text(path)),
            Self::Secret(name) => write!(f, "it read the secret {}", text(name)),
            Self::Unexamined { call, error } => write!(f, "a system call could not be examined ({call}: {error})"),
            Self::Untraced(path) => write!(f, "{} was written by a call that was not traced", text(path)),
            Self::ForeignProgram(path) => {
                write!(f, "it ran a program of a format that the machine interprets: {}", text(path))
            }
            Self::TooMany => f.write_str("it read too many paths"),
            Self::Kernel => f.write_str(
                "steps cannot be traced here: that takes Linux 5.19, and no other seccomp listener around hm",
            ),
            Self::SecretPath => f.write_str("paths that contain a secret's value were left out"),
            Self::Service(name) => write!(f, "its service {name} is not traced"),
            Self::OtherSteps => f.write_str("it got files of other steps"),
            Self::RealTimes => f.write_str("it saw the real times of source files"),
            Self::Changed(path) => write!(f, "{} changed while it ran", text(path)),
            Self::Clock => f.write_str("the clock was set while it ran"),
            Self::Contradiction(path) => write!(f, "what it read of {} cannot be confirmed", text(path)),
            Self::Merged => f.write_str("its layer was merged with others"),
            Self::CacheDirs => f.write_str("it has cache directories"),
        }
    }
}

/// What a step read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Trace {
    /// Why it is not complete. Empty if it is.
    pub reasons: BTreeSet<Reason>,
    /// The names of the variables that the step had.
    pub variables: BTreeSet<String>,
    /// What was read of each path. The paths are absolute, in the step's root, and contain no links.
    pub entries: BTreeMap<Vec<u8>, Kinds>,
}

/// The reason why bytes are not a trace.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// They do not start with the name and the version.
    #[error("it is not in a format that this version reads")]
    Header,
    /// The compressed part is damaged.
    #[error("it is damaged")]
    Compressed(#[source] io::Error),
    /// The content is damaged.
    #[error("it is damaged: {0}")]
    Content(&'static str),
}

#[derive(Serialize, Deserialize)]
struct Body {
    reasons: Vec<Reason>,
    variables: Vec<String>,
    entries: Vec<Front>,
}

/// An entry, by what differs from the one before.
#[derive(Serialize, Deserialize)]
struct Front {
    shared: u32,
    rest: Vec<u8>,
    kinds: Kinds,
}

impl Trace {
    /// Returns the encoded trace.
    ///
    /// # Errors
    /// Returns an error if it cannot be compressed.
    pub fn encode(&self) -> io::Result<Vec<u8>> {
        let mut before: &[u8] = &[];
        let mut entries = Vec::with_capacity(self.entries.len());
        for (path, kinds) in &self.entries {
            let shared = path.iter().zip(before).take_while(|(left, right)| left == right).count();
            let rest = path[shared..].to_vec();
            entries.push(Front { shared: u32::try_from(shared).unwrap_or(0), rest, kinds: *kinds });
            before = path;
        }
        let body = Body {
            reasons: self.reasons.iter().cloned().collect(),
            variables: self.variables.iter().cloned().collect(),
            entries,
        };
        let body = postcard::to_stdvec(&body).map_err(io::Error::other)?;
        let mut bytes = HEADER.to_vec();
        zstd::stream::copy_encode(&body[..], &mut bytes, 3)?;
        Ok(bytes)
    }

    /// Decodes a trace. The bytes may come from anywhere.
    ///
    /// # Errors
    /// Returns an error if they are not a trace of this version, or are larger than one can be.
    pub fn decode(bytes: &[u8]) -> Result<Self, TraceError> {
        let compressed =
            bytes.strip_prefix(HEADER).or_else(|| bytes.strip_prefix(HEADER_1)).ok_or(TraceError::Header)?;
        let mut body = Vec::new();
        let decoder = zstd::stream::read::Decoder::with_buffer(compressed).map_err(TraceError::Compressed)?;
        decoder.take(MAX_BODY_BYTES + 1).read_to_end(&mut body).map_err(TraceError::Compressed)?;
        if body.len() as u64 > MAX_BODY_BYTES {
            return Err(TraceError::Content("it is too large"));
        }
        let (body, rest) = postcard::take_from_bytes::<Body>(&body).map_err(|_| TraceError::Content("its fields"))?;
        if !rest.is_empty() {
            return Err(TraceError::Content("bytes follow it"));
        }
        let Body { reasons, variables, entries: fronts } = body;
        if reasons.len() > MAX_REASONS || fronts.len() > MAX_ENTRIES {
            return Err(TraceError::Content("it is too large"));
        }
        let (mut entries, mut total) = (BTreeMap::new(), 0);
        let mut before: Vec<u8> = Vec::new();
        for Front { shared, rest, kinds } in fronts {
            let shared = usize::try_from(shared).unwrap_or(usize::MAX);
            let mut path = before.get(..shared).ok_or(TraceError::Content("a path"))?.to_vec();
            path.extend(rest);
            total += path.len();
            if path.len() > MAX_PATH_BYTES || total > MAX_BYTES {
                return Err(TraceError::Content("it is too large"));
            }
            if !is_resolved(&path) || path <= before || kinds.is_empty() || kinds.0 & !Kinds::ALL != 0 {
                return Err(TraceError::Content("a path"));
            }
            entries.insert(path.clone(), kinds);
            before = path;
        }
        Ok(Self { reasons: reasons.into_iter().collect(), variables: variables.into_iter().collect(), entries })
    }
}

/// Returns whether a path is one that a resolution results in.
fn is_resolved(path: &[u8]) -> bool {
    let Some(names) = path.strip_prefix(b"/") else { return false };
    names.is_empty()
        || names.split(|byte| *byte == b'/').all(|name| !matches!(name, b"" | b"." | b"..") && !name.contains(&0))
}

/// Checks that decoding any bytes neither panics nor accepts anything that does not survive a round trip.
/// Shared by the property test and the fuzz target.
#[doc(hidden)]
pub fn check_decoder(bytes: &[u8]) {
    // With the header, so that what lies behind it is reached.
    let with_header = [HEADER, bytes].concat();
    // With a frame, so that what lies in it is reached.
    let mut framed = HEADER.to_vec();
    let _ = zstd::stream::copy_encode(bytes, &mut framed, 1);
    for bytes in [bytes, &with_header, &framed] {
        if let Ok(trace) = Trace::decode(bytes) {
            assert!(trace.entries.keys().all(|path| is_resolved(path)), "{trace:?}");
            let encoded = trace.encode().unwrap_or_else(|error| panic!("{error}"));
            let again = Trace::decode(&encoded).unwrap_or_else(|error| panic!("{error}: {trace:?}"));
            assert_eq!(trace, again);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn trace(paths: &[(&str, Kinds)]) -> Trace {
        Trace {
            entries: paths.iter().map(|(path, kinds)| (path.as_bytes().to_vec(), *kinds)).collect(),
            ..Trace::default()
        }
    }

    fn framed(body: &Body) -> Vec<u8> {
        let mut bytes = HEADER.to_vec();
        zstd::stream::copy_encode(&postcard::to_stdvec(body).unwrap()[..], &mut bytes, 1).unwrap();
        bytes
    }

    #[test]
    fn a_trace_survives_a_round_trip() {
        let mut it = trace(&[
            ("/", Kinds::DIRECTORY),
            ("/usr", Kinds::DIRECTORY),
            ("/usr/bin/make", Kinds::CONTENT.and(Kinds::METADATA)),
            ("/usr/bin/make.conf", Kinds::ABSENT),
        ]);
        it.entries.insert(b"/\xff\xfe".to_vec(), Kinds::LISTING);
        it.variables.insert("PATH".into());
        it.reasons.insert(Reason::KernelFile(b"/proc/uptime".to_vec()));
        assert_eq!(Trace::decode(&it.encode().unwrap()).unwrap(), it);
    }

    #[test]
    fn a_trace_of_the_version_before_is_read() {
        let it = trace(&[("/usr", Kinds::DIRECTORY)]);
        let encoded = it.encode().unwrap();
        let older = [&HEADER_1[..], &encoded[HEADER.len()..]].concat();
        assert_eq!(Trace::decode(&older).unwrap(), it);
        let later = [&b"hm-trace\x03"[..], &encoded[HEADER.len()..]].concat();
        assert!(matches!(Trace::decode(&later), Err(TraceError::Header)));
    }

    #[test]
    fn paths_that_no_resolution_results_in_are_refused() {
        for path in ["", "usr", "/usr/", "//", "/./a", "/a/..", "/a//b", "/a\0b"] {
            let front = Front { shared: 0, rest: path.as_bytes().to_vec(), kinds: Kinds::CONTENT };
            let body = Body { reasons: Vec::new(), variables: Vec::new(), entries: vec![front] };
            assert!(Trace::decode(&framed(&body)).is_err(), "{path:?}");
        }
    }

    #[test]
    fn paths_out_of_order_and_unknown_kinds_are_refused() {
        let front = |shared, rest: &str, kinds| Front { shared, rest: rest.as_bytes().to_vec(), kinds: Kinds(kinds) };
        for entries in [
            vec![front(0, "/b", 1), front(0, "/a", 1)],
            vec![front(0, "/a", 1), front(0, "/a", 1)],
            vec![front(0, "/a", 0)],
            vec![front(0, "/a", 128)],
            vec![front(1, "/a", 1)],
        ] {
            let body = Body { reasons: Vec::new(), variables: Vec::new(), entries };
            assert!(Trace::decode(&framed(&body)).is_err());
        }
    }

    #[test]
    fn a_small_file_that_decompresses_to_gigabytes_is_refused() {
        let mut bytes = HEADER.to_vec();
        zstd::stream::copy_encode(io::repeat(0).take(MAX_BODY_BYTES + 2), &mut bytes, 1).unwrap();
        assert!(matches!(Trace::decode(&bytes), Err(TraceError::Content("it is too large"))));
    }

    #[test]
    fn paths_that_share_almost_everything_do_not_multiply() {
        let long = [&b"/"[..], &[b'a'; MAX_PATH_BYTES - 1]].concat();
        let mut entries = vec![Front { shared: 0, rest: long.clone(), kinds: Kinds::CONTENT }];
        for index in 0..20_000_u32 {
            let rest = format!("b{index:06}").into_bytes();
            let shared = u32::try_from(MAX_PATH_BYTES - rest.len()).unwrap();
            entries.push(Front { shared, rest, kinds: Kinds::CONTENT });
        }
        let body = Body { reasons: Vec::new(), variables: Vec::new(), entries };
        assert!(matches!(Trace::decode(&framed(&body)), Err(TraceError::Content("it is too large"))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_survive(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            check_decoder(&bytes);
        }
    }
}
