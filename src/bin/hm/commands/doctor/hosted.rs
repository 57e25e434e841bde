//! Checks the hosted service, for users who have set it up.

use std::time::Duration;

use hm_exec::service::{Pace, Service, ServiceError};
use tokio::time::timeout;

use super::checks::{Finding, good, lacking};
use crate::{
    commands::cloud::{config, described},
    config::CloudConfig,
    failure::Outcome,
    runtime::runtime,
    service::failure,
};

/// How long the service may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Looks up the user to whom the token belongs. Returns `None` if the service is not set up: there is no
/// token, and neither an organization nor a pipeline is chosen. Runs on this machine need no service, so
/// nothing found here is worse than a warning.
pub(super) fn check() -> Option<Finding> {
    const SEE: &str = "see `hm config`";
    let config = match config() {
        Ok(config) => config,
        Err(failure) => return Some(lacking(failure.to_string(), SEE)),
    };
    match config.token() {
        Err(failure) => Some(lacking(failure.to_string(), SEE)),
        Ok(Some(token)) => Some(
            look_up(&config, token.value.reveal())
                .unwrap_or_else(|failure| lacking(failure.to_string(), "see `hm cloud whoami`")),
        ),
        Ok(None) if config.org.is_some() || config.pipeline.is_some() => {
            Some(lacking(format!("not logged in to {}", config.api_url.value), "run `hm cloud login`"))
        }
        Ok(None) => None,
    }
}

fn look_up(config: &CloudConfig, token: &str) -> Outcome<Finding> {
    let url = &config.api_url.value;
    let failed = |error| failure(config, &format!("failed to ask {url}"), error);
    let pace = Pace { tries: 1, ..Pace::default() };
    let service = Service::new(url, token).map_err(failed)?.pace(pace);
    let answer = runtime()?.block_on(async { timeout(PATIENCE, service.user()).await });
    let Ok(answer) = answer else {
        let seconds = PATIENCE.as_secs();
        return Ok(lacking(format!("{url} did not answer within {seconds} s"), "try again later, or check HM_API_URL"));
    };
    Ok(match answer {
        Ok(user) => good(format!("{url}, logged in as {}", described(&user))),
        Err(error @ ServiceError::Unauthorized) => lacking(failed(error).to_string(), "run `hm cloud login`"),
        Err(error @ ServiceError::Network { .. }) => {
            lacking(failed(error).to_string(), "check the network, HM_API_URL, and the proxy in HTTPS_PROXY")
        }
        Err(error) => lacking(failed(error).to_string(), "see `hm cloud whoami`"),
    })
}
