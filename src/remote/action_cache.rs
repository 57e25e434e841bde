//! An engine's action cache: the results of Actions.

use super::{Digest, Endpoint, RemoteError, RemoteErrorKind, reapi, retry::retried};

/// An engine's action cache.
#[derive(Debug, Clone)]
pub struct ActionCache {
    endpoint: Endpoint,
}

impl ActionCache {
    /// Returns the action cache of `endpoint`.
    #[must_use]
    pub fn new(endpoint: Endpoint) -> Self {
        Self { endpoint }
    }

    /// Returns the result of the Action with digest `action`, or `None` if it is not cached.
    ///
    /// # Errors
    /// Returns an error if the call fails.
    pub async fn get(&self, action: Digest) -> Result<Option<reapi::ActionResult>, RemoteError> {
        let asked = retried!(self.endpoint.retry(), {
            let mut client = self.endpoint.action_cache_client().await;
            let request = reapi::GetActionResultRequest {
                instance_name: self.endpoint.instance().to_owned(),
                action_digest: Some(action.into()),
                digest_function: action.function.number(),
                ..Default::default()
            };
            let answer = client.get_action_result(self.endpoint.request(request)).await;
            Ok(answer.map_err(|status| self.endpoint.error(&status))?.into_inner())
        });
        match asked {
            Ok(result) => Ok(Some(result)),
            Err(error) if error.kind() == RemoteErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Stores the result of the Action with digest `action`. The Action and all blobs that the result names
    /// must be in the engine's content-addressed store.
    ///
    /// # Errors
    /// Returns an error if the engine does not accept it.
    pub async fn put(&self, action: Digest, result: &reapi::ActionResult) -> Result<(), RemoteError> {
        retried!(self.endpoint.retry(), {
            let mut client = self.endpoint.action_cache_client().await;
            let request = reapi::UpdateActionResultRequest {
                instance_name: self.endpoint.instance().to_owned(),
                action_digest: Some(action.into()),
                action_result: Some(result.clone()),
                digest_function: action.function.number(),
                ..Default::default()
            };
            let answer = client.update_action_result(self.endpoint.request(request)).await;
            answer.map(drop).map_err(|status| self.endpoint.error(&status))
        })
    }
}
