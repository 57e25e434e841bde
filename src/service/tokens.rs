//! Log tokens: short-lived, for the logs of one build.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::Mutex;

use super::{
    client::{BuildPlace, Service},
    error::ServiceError,
};

/// A token is not used for a new connection if it expires within this time.
const RESERVE: TimeDelta = TimeDelta::minutes(5);

/// The log token of a build, which all of its logs share. It is replaced before it expires, or when the
/// service refuses it.
#[derive(Debug)]
pub(super) struct LogTokens {
    service: Service,
    place: BuildPlace,
    current: Mutex<Option<LogToken>>,
}

struct LogToken {
    token: Arc<str>,
    expires_at: DateTime<Utc>,
}

impl std::fmt::Debug for LogToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogToken").field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

impl LogTokens {
    pub(super) fn new(service: Service, place: BuildPlace) -> Self {
        Self { service, place, current: Mutex::new(None) }
    }

    /// Returns a token other than `refused`. While one is requested, other callers wait for it.
    pub(super) async fn get(&self, refused: Option<&str>) -> Result<Arc<str>, ServiceError> {
        let mut current = self.current.lock().await;
        let usable = current.as_ref().filter(|current| {
            refused.is_none_or(|refused| refused != &*current.token) && current.expires_at - Utc::now() > RESERVE
        });
        if let Some(usable) = usable {
            return Ok(Arc::clone(&usable.token));
        }
        let answer = self.service.log_token(&self.place).await?;
        let token: Arc<str> = answer.token.into();
        *current = Some(LogToken { token: Arc::clone(&token), expires_at: answer.expires_at });
        Ok(token)
    }
}
