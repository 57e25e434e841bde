//! The hosted service, as the commands use it: the connection that the configuration describes, and the
//! failures that its errors are.

use std::io::IsTerminal;

use hm_exec::{
    BackendError,
    service::{Service, ServiceError},
    size,
};

use crate::{
    browser,
    config::CloudConfig,
    exit_code,
    failure::{Failure, Outcome},
};

/// The commit of a source without one.
pub(crate) const NO_COMMIT: &str = "0000000000000000000000000000000000000000";

/// Connects to the service with the user's token. Nothing is sent yet.
pub(crate) fn connect(config: &CloudConfig) -> Outcome<Service> {
    let url = &config.api_url.value;
    let token = config.token()?.ok_or_else(|| {
        Failure::service(exit_code::AUTH, format_args!("not logged in to {url}"))
            .hint("run `hm cloud login`, or set HM_API_TOKEN")
    })?;
    Service::new(url, token.value.reveal()).map_err(|error| failure(config, "failed to connect to the service", error))
}

/// Returns the organization of a command: the one that it names, else the configured one.
pub(crate) fn org(named: Option<&str>, config: &CloudConfig) -> Outcome<String> {
    let configured = config.org.as_ref().map(|org| org.value.as_str());
    named.or(configured).map(Into::into).ok_or_else(|| {
        Failure::input("no organization is named")
            .hint("use `--org SLUG`, set HM_ORG, or run `hm cloud org switch SLUG`; `hm cloud org list` lists yours")
    })
}

/// Returns the failure for an error of the service.
pub(crate) fn failure(config: &CloudConfig, what: &str, error: ServiceError) -> Failure {
    let url = &config.api_url.value;
    match error {
        ServiceError::Unauthorized => {
            let place = config.token().ok().flatten().map(|token| format!(" from {}", token.source));
            Failure::service(
                exit_code::AUTH,
                format_args!("{url} does not accept the token{}", place.unwrap_or_default()),
            )
            .hint("run `hm cloud login`")
        }
        ServiceError::TooLarge { limit, largest } => {
            let largest = largest.into_iter().map(|(path, bytes)| format!("{}: {}", path.display(), size::show(bytes)));
            Failure::input(format_args!("the source is larger than {} after compression", size::show(limit)))
                .details(largest)
                .hint("exclude files from the source with .gitignore or .ignore")
        }
        ServiceError::Unsupported(why) => Failure::input(format_args!("{what}: {why}")),
        ServiceError::Network { .. } => Failure::service(exit_code::NETWORK, what)
            .because(error)
            .hint(format_args!("check the network, HM_API_URL ({url}), and the proxy in HTTPS_PROXY")),
        ServiceError::Source(error) => Failure::infrastructure(what).because(error),
        ServiceError::Local { .. } => Failure::infrastructure(what).because(error),
        error => Failure::service(exit_code::API, what).because(error),
    }
}

/// Returns the failure for a build that the service did not accept.
pub(crate) fn refused(config: &CloudConfig, org: &str, error: ServiceError) -> Failure {
    if error.may_be_done() {
        return failure(config, "failed to submit the build", error)
            .hint("the build may have been created: run `hm cloud build list`");
    }
    let ServiceError::Rejected { status, code, message } = &error else {
        return failure(config, "failed to submit the build", error);
    };
    let refused =
        Failure::service(exit_code::PIPELINE, format_args!("the service refused the build [{code}]: {message}"));
    match status {
        402 => refused.hint(format_args!("run `hm cloud billing balance --org {org}`")),
        403 => refused.hint("builds by hand may be turned off: see `allow_manual` in `hm cloud pipeline show`"),
        404 => refused.hint(format_args!("run `hm cloud pipeline list --org {org}`")),
        _ => refused,
    }
}

/// Returns the failure for a build that could not be watched to its end.
pub(crate) fn unwatched(config: &CloudConfig, error: BackendError) -> Failure {
    let what = "failed to watch the build, which continues at the service";
    match error {
        BackendError::Unauthorized => failure(config, what, ServiceError::Unauthorized),
        BackendError::Other(error) => match error.downcast::<ServiceError>() {
            Ok(error) => failure(config, what, *error),
            Err(error) => Failure::service(exit_code::API, what).because(anyhow::anyhow!("{error}")),
        },
        BackendError::Transport(reason) => {
            Failure::service(exit_code::NETWORK, what).because(anyhow::anyhow!("{reason}"))
        }
        BackendError::NotFound(reason) => Failure::service(exit_code::API, what).because(anyhow::anyhow!("{reason}")),
        other => Failure::infrastructure(what).because(other),
    }
}

/// Opens a page in the user's browser, if there is a terminal. The caller prints the address, too.
pub(crate) fn browse(url: &str) {
    if std::io::stderr().is_terminal()
        && let Err(why) = browser::open(url)
    {
        tracing::debug!(why, "the browser was not opened");
    }
}
