//! Errors of an engine.

use std::{error::Error as _, io};

use bazel_remote_apis::google;
use prost::Message;
use tonic::{Code, Status};

use super::Digest;

/// The kind of a [`RemoteError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RemoteErrorKind {
    /// The engine denied access: the credentials are missing or insufficient.
    Denied,
    /// The engine cannot be reached, or closed the connection. It may come back.
    Unavailable,
    /// The engine considers the request invalid, for example because no worker has the platform, or because
    /// the instance is unknown.
    Refused,
    /// A quota is exhausted, or something is too large.
    Exhausted,
    /// Blobs that the request names are missing: see [`RemoteError::missing`].
    MissingBlobs,
    /// The requested resource does not exist.
    NotFound,
    /// The engine does not implement the call.
    Unimplemented,
    /// The received data does not match the request.
    Corrupt,
    /// A local file cannot be read or written.
    Local,
    /// The engine cancelled the call.
    Cancelled,
    /// The engine ended an Action at a time limit.
    TimedOut,
    /// Another internal error of the engine.
    Internal,
}

/// A failed call to an engine.
///
/// `Display` is a lowercase fragment with the engine's address and its message. The values of headers never
/// appear in it.
#[derive(Debug, thiserror::Error)]
#[error("{place} {}: {detail}{}", says(*kind), hint(*kind, place))]
pub struct RemoteError {
    place: String,
    kind: RemoteErrorKind,
    detail: String,
    missing: Vec<Digest>,
    #[source]
    source: Option<io::Error>,
}

fn says(kind: RemoteErrorKind) -> &'static str {
    match kind {
        RemoteErrorKind::Denied => "denied access",
        RemoteErrorKind::Unavailable => "is not reachable",
        RemoteErrorKind::Refused => "rejected the request",
        RemoteErrorKind::Exhausted => "is out of space or quota",
        RemoteErrorKind::MissingBlobs => "lacks blobs",
        RemoteErrorKind::NotFound => "does not have the object",
        RemoteErrorKind::Unimplemented => "does not support the call",
        RemoteErrorKind::Corrupt => "sent wrong data",
        RemoteErrorKind::Local => "was not at fault",
        RemoteErrorKind::Cancelled => "cancelled the call",
        RemoteErrorKind::TimedOut => "ended the step at the engine's time limit",
        RemoteErrorKind::Internal => "failed",
    }
}

fn hint(kind: RemoteErrorKind, place: &str) -> &'static str {
    match kind {
        // An engine that requires another client certificate often closes the connection without reporting
        // why.
        RemoteErrorKind::Unavailable if place.starts_with("grpcs://") || place.starts_with("https://") => {
            " (check its address and that it is running; if it closes the connection, check the headers and certificates)"
        }
        RemoteErrorKind::Denied => " (check the headers and certificates)",
        RemoteErrorKind::Unavailable => " (check its address and that it is running)",
        RemoteErrorKind::Refused => " (check the instance's name and the platform properties)",
        _ => "",
    }
}

impl RemoteError {
    /// Creates an error that this crate detected itself.
    pub(super) fn new(place: &str, kind: RemoteErrorKind, detail: impl Into<String>) -> Self {
        Self { place: place.into(), kind, detail: detail.into(), missing: Vec::new(), source: None }
    }

    /// Creates an error for missing blobs.
    pub(super) fn of_missing(place: &str, missing: Vec<Digest>) -> Self {
        let detail = match &missing[..] {
            [] => "unknown blobs".to_owned(),
            [digest] => digest.to_string(),
            [digest, others @ ..] => format!("{digest} and {} more", others.len()),
        };
        Self { missing, ..Self::new(place, RemoteErrorKind::MissingBlobs, detail) }
    }

    /// Creates an error for a local file.
    pub(super) fn local(place: &str, doing: impl Into<String>, source: io::Error) -> Self {
        Self { source: Some(source), ..Self::new(place, RemoteErrorKind::Local, doing) }
    }

    /// Returns the error as one of another kind.
    pub(super) fn of_kind(self, kind: RemoteErrorKind) -> Self {
        Self { kind, ..self }
    }

    /// Returns the error's kind.
    #[must_use]
    pub fn kind(&self) -> RemoteErrorKind {
        self.kind
    }

    /// Returns the blobs that a request named and that are missing.
    #[must_use]
    pub fn missing(&self) -> &[Digest] {
        &self.missing
    }

    /// Returns whether the same call may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self.kind, RemoteErrorKind::Unavailable)
    }

    /// Converts the status of a failed call. `mask` removes secrets from the engine's message.
    pub(super) fn of(place: &str, status: &Status, mask: impl Fn(&str) -> String) -> Self {
        let missing = missing_blobs(status.details());
        let mut detail = mask(&words(status));
        let kind = match status.code() {
            _ if is_certificate_error(status) => RemoteErrorKind::Denied,
            Code::Unauthenticated | Code::PermissionDenied => RemoteErrorKind::Denied,
            Code::FailedPrecondition if !missing.is_empty() => RemoteErrorKind::MissingBlobs,
            Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange | Code::AlreadyExists => {
                RemoteErrorKind::Refused
            }
            Code::ResourceExhausted => RemoteErrorKind::Exhausted,
            Code::NotFound => RemoteErrorKind::NotFound,
            Code::Unimplemented => RemoteErrorKind::Unimplemented,
            Code::DataLoss => RemoteErrorKind::Corrupt,
            Code::Unavailable | Code::Aborted | Code::DeadlineExceeded => RemoteErrorKind::Unavailable,
            // A connection that broke in the middle of a call. Created locally, or by a proxy on the way.
            Code::Internal | Code::Unknown | Code::Cancelled if is_reset(status) => RemoteErrorKind::Unavailable,
            Code::Cancelled => RemoteErrorKind::Cancelled,
            Code::Internal | Code::Unknown | Code::Ok => RemoteErrorKind::Internal,
        };
        if detail.is_empty() {
            detail = status.code().description().to_lowercase();
        }
        Self { missing, ..Self::new(place, kind, detail) }
    }

    /// Converts a status within an answer.
    pub(super) fn of_answer(place: &str, status: &google::rpc::Status, mask: impl Fn(&str) -> String) -> Self {
        let details = status.encode_to_vec();
        let status = Status::with_details(Code::from_i32(status.code), status.message.clone(), details.into());
        Self::of(place, &status, mask)
    }
}

/// Returns the engine's message, on one line, followed by the errors of the connection.
fn words(status: &Status) -> String {
    let mut words: String =
        status.message().chars().map(|it| if it.is_control() { ' ' } else { it }).take(500).collect();
    let mut source = status.source();
    while let Some(error) = source {
        let text = error.to_string();
        if !words.contains(&text) {
            if !words.is_empty() {
                words.push_str(": ");
            }
            words.push_str(&text);
        }
        source = error.source();
    }
    words
}

fn is_reset(status: &Status) -> bool {
    let message = status.message();
    status.source().is_some() || ["RST_STREAM", "GOAWAY", "h2 protocol error"].iter().any(|it| message.contains(it))
}

/// Returns whether TLS failed because of either side's certificate, which is permanent.
fn is_certificate_error(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        let io = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let tls = error.downcast_ref().or_else(|| io.and_then(|inner| inner.downcast_ref::<rustls::Error>()));
        if let Some(tls) = tls {
            return matches!(
                tls,
                rustls::Error::InvalidCertificate(_)
                    | rustls::Error::AlertReceived(
                        rustls::AlertDescription::CertificateRequired
                            | rustls::AlertDescription::BadCertificate
                            | rustls::AlertDescription::UnknownCA
                            | rustls::AlertDescription::AccessDenied
                            | rustls::AlertDescription::DecryptError
                            | rustls::AlertDescription::HandshakeFailure
                            | rustls::AlertDescription::CertificateUnknown
                            | rustls::AlertDescription::CertificateExpired
                    )
            );
        }
        source = error.source();
    }
    false
}

/// `google.rpc.PreconditionFailure`, which the protocol crate lacks.
#[derive(Clone, PartialEq, Message)]
struct PreconditionFailure {
    #[prost(message, repeated, tag = "1")]
    violations: Vec<Violation>,
}

#[derive(Clone, PartialEq, Message)]
struct Violation {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(string, tag = "2")]
    subject: String,
    #[prost(string, tag = "3")]
    description: String,
}

/// Returns the blobs that a status reports as missing: violations of type `MISSING` with the subject
/// `blobs/HASH/SIZE` or `blobs/blake3/HASH/SIZE`.
fn missing_blobs(details: &[u8]) -> Vec<Digest> {
    let Ok(status) = google::rpc::Status::decode(details) else { return Vec::new() };
    let failures = status.details.iter().filter(|it| it.type_url.ends_with("/google.rpc.PreconditionFailure"));
    let failures = failures.filter_map(|any| PreconditionFailure::decode(&any.value[..]).ok());
    failures
        .flat_map(|failure| failure.violations)
        .filter(|violation| violation.kind == "MISSING")
        .filter_map(|violation| {
            let (_, name) = violation.subject.rsplit_once("blobs/")?;
            name.parse().ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: &Status) -> RemoteError {
        RemoteError::of("grpc://host:1", status, |text| text.replace("s3cret", "***"))
    }

    #[test]
    fn codes_become_kinds_and_only_what_passes_is_transient() {
        for (code, kind) in [
            (Code::Unauthenticated, RemoteErrorKind::Denied),
            (Code::PermissionDenied, RemoteErrorKind::Denied),
            (Code::InvalidArgument, RemoteErrorKind::Refused),
            (Code::FailedPrecondition, RemoteErrorKind::Refused),
            (Code::ResourceExhausted, RemoteErrorKind::Exhausted),
            (Code::Unimplemented, RemoteErrorKind::Unimplemented),
            (Code::Internal, RemoteErrorKind::Internal),
        ] {
            let error = of(&Status::new(code, "why"));
            assert_eq!((error.kind(), error.is_transient()), (kind, false), "{error}");
        }
        for status in
            [Status::unavailable("gone"), Status::aborted("again"), Status::internal("stream error: RST_STREAM")]
        {
            assert!(of(&status).is_transient(), "{status}");
        }
    }

    #[test]
    fn missing_blobs_are_named() {
        let digest = Digest::of(b"blob");
        let subject = format!("blobs/{digest}");
        let violation = |kind: &str, subject: &str| Violation {
            kind: kind.into(),
            subject: subject.into(),
            description: String::new(),
        };
        let failure = PreconditionFailure {
            violations: vec![violation("MISSING", &subject), violation("MISSING", "x"), violation("OTHER", &subject)],
        };
        let any = google::protobuf::Any {
            type_url: "type.googleapis.com/google.rpc.PreconditionFailure".into(),
            value: failure.encode_to_vec(),
        };
        let status = google::rpc::Status { code: 9, message: "missing".into(), details: vec![any] };
        for error in [
            of(&Status::with_details(Code::FailedPrecondition, "missing", status.encode_to_vec().into())),
            RemoteError::of_answer("grpc://host:1", &status, str::to_owned),
        ] {
            assert_eq!((error.kind(), error.missing()), (RemoteErrorKind::MissingBlobs, &[digest][..]));
        }
    }

    #[test]
    fn secrets_and_control_characters_are_not_repeated() {
        let error = of(&Status::unauthenticated("bad token s3cret\n\u{1b}[31m"));
        assert_eq!(
            error.to_string(),
            "grpc://host:1 denied access: bad token ***  [31m (check the headers and certificates)"
        );
    }
}
