//! Failures of registries, and retries.

use std::time::Duration;

use oci_client::errors::{DigestError, OciDistributionError, OciErrorCode};

use crate::store::StoreError;

/// The first pause. Each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// The failure of a request.
#[derive(Debug)]
pub(super) enum RegistryError {
    NotFound,
    Unauthorized,
    RateLimited,
    /// No connection, a broken connection, or a server error.
    Unreachable(String),
    /// The bytes are not the requested ones.
    WrongDigest {
        expected: String,
        found: String,
    },
    BadAnswer(String),
}

/// The failure of a download.
#[derive(Debug)]
pub(super) enum DownloadError {
    Registry(RegistryError),
    Store(StoreError),
}

impl From<RegistryError> for DownloadError {
    fn from(error: RegistryError) -> Self {
        Self::Registry(error)
    }
}

impl RegistryError {
    fn is_transient(&self) -> bool {
        // The bytes may also be wrong because they were corrupted in transit.
        matches!(self, Self::RateLimited | Self::Unreachable(_) | Self::WrongDigest { .. })
    }

    fn of_status(code: u16) -> Self {
        match code {
            401 | 403 => Self::Unauthorized,
            404 | 410 => Self::NotFound,
            429 => Self::RateLimited,
            408 | 500..=599 => Self::Unreachable(format!("it answered with status {code}")),
            code => Self::BadAnswer(format!("it answered with status {code}")),
        }
    }

    /// Converts an error. Texts of servers are omitted, and so are URLs, because those of redirects contain
    /// signatures.
    pub(super) fn of(error: OciDistributionError) -> Self {
        match error {
            OciDistributionError::ServerError { code, .. } => Self::of_status(code),
            OciDistributionError::RegistryError { envelope, .. } => {
                let code = envelope.errors.into_iter().next().map(|error| error.code);
                match code {
                    Some(OciErrorCode::Unauthorized | OciErrorCode::Denied) => Self::Unauthorized,
                    Some(OciErrorCode::Toomanyrequests) => Self::RateLimited,
                    Some(
                        OciErrorCode::BlobUnknown
                        | OciErrorCode::ManifestBlobUnknown
                        | OciErrorCode::ManifestUnknown
                        | OciErrorCode::NameUnknown
                        | OciErrorCode::NameInvalid
                        | OciErrorCode::NotFound,
                    ) => Self::NotFound,
                    Some(code) => Self::BadAnswer(format!("it answered with {code:?}")),
                    None => Self::BadAnswer("it answered with an unknown error".into()),
                }
            }
            OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => {
                Self::Unauthorized
            }
            OciDistributionError::ImageManifestNotFoundError(_) => Self::NotFound,
            OciDistributionError::RequestError(error) => {
                let error = error.without_url();
                Self::Unreachable(format!("{:#}", anyhow::Error::new(error)))
            }
            OciDistributionError::IoError(error) => Self::of_stream(&error),
            OciDistributionError::DigestError(DigestError::VerificationError { expected, actual }) => {
                Self::WrongDigest { expected, found: actual }
            }
            OciDistributionError::DigestError(error) => Self::BadAnswer(error.to_string()),
            OciDistributionError::RegistryTokenDecodeError(_) => Self::BadAnswer("its token is invalid".into()),
            _ => Self::BadAnswer("it violates the protocol".into()),
        }
    }

    /// Converts the error of an interrupted download.
    pub(super) fn of_stream(error: &std::io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<DigestError>()) {
            Some(DigestError::VerificationError { expected, actual }) => {
                Self::WrongDigest { expected: expected.clone(), found: actual.clone() }
            }
            _ => Self::Unreachable("the connection broke".into()),
        }
    }
}

/// The attempts at one operation.
#[derive(Debug)]
pub(super) struct Attempts {
    made: u32,
    most: u32,
}

impl Attempts {
    pub(super) fn new(most: u32) -> Self {
        Self { made: 1, most }
    }

    /// Waits before the next attempt if the error is transient and attempts remain. Otherwise returns the
    /// error as final.
    pub(super) async fn after(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        if !error.is_transient() || self.made >= self.most {
            return Err(error);
        }
        let pause = PAUSE.saturating_mul(1 << (self.made - 1).min(10)).min(LONGEST_PAUSE);
        tracing::debug!(?error, ?pause, "retrying a request to a registry");
        tokio::time::sleep(pause).await;
        self.made += 1;
        Ok(())
    }

    /// Restarts the count, because there was progress since the last error.
    pub(super) fn progressed(&mut self) {
        self.made = 1;
    }
}
