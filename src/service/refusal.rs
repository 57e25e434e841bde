//! Why one attempt at a request failed, and whether another may follow.

use std::{error::Error as _, time::Duration};

use harmont_cloud_raw::{Error, types as api};
use reqwest::{
    Response,
    header::{HeaderMap, RETRY_AFTER},
};

use super::error::ServiceError;

/// The longest pause that the service can ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);
/// The length to which the service's messages are clipped, in bytes.
const MAX_MESSAGE_BYTES: usize = 2 << 10;
/// The number of bytes of an unexpected answer that are read.
const MAX_ERROR_BYTES: usize = 64 << 10;
/// How long reading them may take.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// A failed attempt at a request.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) error: ServiceError,
    /// The least pause before the next attempt.
    pub(super) retry_after: Duration,
    /// Whether the request surely had no effect.
    pub(super) is_untaken: bool,
}

/// What the service says about an error.
#[derive(Debug, Default)]
struct Description {
    code: String,
    message: String,
    request_id: Option<String>,
}

/// The body of an error that the service's description has.
pub(super) trait Described {
    /// Returns the code, the message and the request's id.
    fn describe(self) -> (String, String, Option<String>);
}

impl Described for () {
    fn describe(self) -> (String, String, Option<String>) {
        Default::default()
    }
}

impl Described for api::Error {
    fn describe(self) -> (String, String, Option<String>) {
        let api::ErrorError { code, message, request_id, .. } = self.error;
        (code, message, request_id)
    }
}

impl Refusal {
    /// Returns the refusal for a failed request to `host`.
    pub(super) async fn of<E: Described>(error: Error<E>, host: &str) -> Self {
        match error {
            Error::CommunicationError(error) => {
                Self { is_untaken: error.is_connect(), ..Self::network(host, cause(&error)) }
            }
            Error::ErrorResponse(answer) => {
                let (status, retry_after) = (answer.status().as_u16(), retry_after(answer.headers()));
                let (code, message, request_id) = answer.into_inner().describe();
                Self::status(status, Description { code, message, request_id }, retry_after)
            }
            Error::UnexpectedResponse(answer) => Self::of_answer(answer).await,
            Error::ResponseBodyError(error) | Error::InvalidUpgrade(error) => Self::network(host, cause(&error)),
            Error::InvalidResponsePayload(_, error) => {
                // The error's text can have values of the answer.
                let (line, column) = (error.line(), error.column());
                Self::answer(format!("{:?} error at line {line}, column {column}", error.classify()))
            }
            Error::InvalidRequest(_) | Error::Custom(_) => Self::answer("the request could not be made".into()),
        }
    }

    /// Returns the refusal for an answer that the service's description does not have.
    pub(super) async fn of_answer(mut answer: Response) -> Self {
        let (status, retry_after) = (answer.status().as_u16(), retry_after(answer.headers()));
        let mut body = Vec::new();
        let read = async {
            while let Ok(Some(bytes)) = answer.chunk().await {
                body.extend_from_slice(&bytes);
                if body.len() > MAX_ERROR_BYTES {
                    break;
                }
            }
        };
        // The status alone is enough.
        let _ = tokio::time::timeout(READ_TIMEOUT, read).await;
        let described = serde_json::from_slice::<api::Error>(&body).map(Described::describe).unwrap_or_default();
        let (code, message, request_id) = described;
        Self::status(status, Description { code, message, request_id }, retry_after)
    }

    pub(super) fn network(host: &str, reason: String) -> Self {
        let error = ServiceError::Network { host: host.to_owned(), reason, may_be_done: true };
        Self { error, retry_after: Duration::ZERO, is_untaken: false }
    }

    fn answer(what: String) -> Self {
        Self { error: ServiceError::Answer(what), retry_after: Duration::ZERO, is_untaken: false }
    }

    fn status(status: u16, Description { code, message, request_id }: Description, retry_after: Duration) -> Self {
        let code = if code.is_empty() { format!("status {status}") } else { clip(code) };
        let message = if message.is_empty() { "no reason was given".into() } else { clip(message) };
        let error = match status {
            401 => ServiceError::Unauthorized,
            404 => ServiceError::NotFound { code, message },
            429 | 500.. => ServiceError::Busy { status, request_id: request_id.map(clip), may_be_done: true },
            400.. => ServiceError::Rejected { status, code, message },
            300..400 => ServiceError::Answer(format!("status {status}, a redirect, which is not followed")),
            _ => ServiceError::Answer(format!("status {status}")),
        };
        Self { error, retry_after, is_untaken: matches!(status, 429 | 503) }
    }

    /// Returns whether another attempt may succeed.
    pub(super) fn is_transient(&self) -> bool {
        match self.error {
            ServiceError::Network { .. } => true,
            ServiceError::Busy { status, .. } => matches!(status, 429 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }
}

fn retry_after(headers: &HeaderMap) -> Duration {
    let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    seconds.map(Duration::from_secs).unwrap_or_default().min(MAX_RETRY_AFTER)
}

fn clip(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_MESSAGE_BYTES));
    text
}

/// Describes an error of the network without the URL of the request, which can have a token: its innermost
/// cause.
pub(super) fn cause(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "the time limit was exceeded".into();
    }
    let mut innermost = error.source();
    while let Some(next) = innermost.and_then(|error| error.source()) {
        innermost = Some(next);
    }
    match innermost {
        Some(innermost) => innermost.to_string(),
        None if error.is_decode() || error.is_body() => "the connection broke off".into(),
        None => "the request failed".into(),
    }
}
