//! The request that creates a build.

use std::{collections::HashMap, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use tokio_util::sync::CancellationToken;

use super::{
    api,
    archive::MAX_ARCHIVE_BYTES,
    client::{BuildPlace, Service},
    error::ServiceError,
};
use crate::backend::RunRequest;

/// The service's limit for the body of a request, in bytes.
const MAX_BODY_BYTES: usize = 8_000_000;

/// How long a request that was sent may take after the user has cancelled the build.
const LAST_WAIT: Duration = Duration::from_secs(10);

/// A build to create.
#[derive(Debug)]
pub(super) struct Submission {
    org: String,
    target: Target,
    branch: String,
    commit: String,
    message: Option<String>,
    pipeline_ir: String,
    source_b64: String,
    env: HashMap<String, String>,
}

/// The pipeline of a build.
#[derive(Debug)]
enum Target {
    /// By its slug in the organization.
    Slug(String),
    /// By its repository, and its name there.
    Repository { repo_name: String, source_slug: String },
}

impl Submission {
    /// Makes the request, without the source.
    pub(super) fn of(request: &RunRequest, org: &str, pipeline: Option<&str>) -> Result<Self, ServiceError> {
        let target = match (pipeline, &request.source.repo_name) {
            (Some(slug), _) => Target::Slug(checked(slug, "the pipeline's slug")?),
            (None, Some(repo_name)) => {
                Target::Repository { repo_name: repo_name.clone(), source_slug: request.pipeline_slug.clone() }
            }
            (None, None) => {
                return Err(ServiceError::Unsupported("neither a pipeline nor a repository is named".into()));
            }
        };
        Ok(Self {
            org: checked(org, "the organization's slug")?,
            target,
            branch: request.source.branch.clone(),
            commit: request.source.commit.clone(),
            message: request.source.message.clone(),
            pipeline_ir: request.plan.ir_json().to_owned(),
            source_b64: String::new(),
            env: request.env.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
        })
    }

    /// Returns the length, nearly, that the packed source may have in bytes. The body has it in base64,
    /// beside the pipeline and the environment.
    pub(super) fn max_source_bytes(&self) -> u64 {
        let env = self.env.iter().map(|(name, value)| name.len() + value.len() + 6).sum::<usize>();
        let left = MAX_BODY_BYTES.saturating_sub(self.pipeline_ir.len() + env);
        MAX_ARCHIVE_BYTES.min((left / 4 * 3) as u64)
    }

    /// Adds the packed source.
    pub(super) fn with_source(mut self, packed: &[u8]) -> Self {
        self.source_b64 = STANDARD.encode(packed);
        self
    }

    /// Sends the request. If the user cancels the build, an answer is awaited for a short time only.
    pub(super) async fn send(self, service: &Service, cancel: &CancellationToken) -> Result<BuildPlace, ServiceError> {
        let org = self.org.clone();
        let mut answer = std::pin::pin!(self.post(service));
        let build = tokio::select! {
            build = &mut answer => build,
            () = cancel.cancelled() => tokio::time::timeout(LAST_WAIT, answer).await.unwrap_or_else(|_| {
                let (host, reason) = (service.host().to_owned(), "no answer yet".to_owned());
                Err(ServiceError::Network { host, reason, may_be_done: true })
            }),
        };
        let build = build.map_err(ServiceError::of_submission)?;
        Ok(BuildPlace { org, pipeline: checked(&build.pipeline_slug, "the pipeline's slug")?, number: build.number })
    }

    async fn post(self, service: &Service) -> Result<api::Build, ServiceError> {
        let Self { org, target, branch, commit, message, pipeline_ir, source_b64, env } = self;
        let (pipeline_ir, source_b64, source) = (Some(pipeline_ir), Some(source_b64), Some("api".to_owned()));
        match target {
            Target::Slug(slug) => {
                let body = api::CreateBuildRequest {
                    branch,
                    commit,
                    env: Some(env),
                    message,
                    pipeline_ir,
                    source,
                    source_b64,
                    source_sha256: None,
                    source_url: None,
                };
                service.create_build(&org, &slug, &body).await
            }
            Target::Repository { repo_name, source_slug } => {
                let body = api::CreateRepoBuildRequest {
                    branch,
                    commit,
                    env: Some(env),
                    message,
                    pipeline_ir,
                    repo_name,
                    source,
                    source_b64,
                    source_slug,
                };
                service.create_repository_build(&org, &body).await
            }
        }
    }
}

/// Returns whether a text is the slug of something, and so can be a part of a URL.
#[must_use]
pub fn is_slug(text: &str) -> bool {
    let is_of_slug = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !text.is_empty() && text.bytes().all(is_of_slug) && !matches!(text, "." | "..")
}

/// Returns a slug, if it is one that can be a part of a URL.
pub(super) fn checked(slug: &str, what: &str) -> Result<String, ServiceError> {
    if !is_slug(slug) {
        return Err(ServiceError::Unsupported(format!(
            "{what} has other characters than letters, digits, `-`, `_`, `.`"
        )));
    }
    Ok(slug.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_slugs_become_parts_of_a_url() {
        for good in ["acme", "a-b_c.d", "9"] {
            assert!(checked(good, "it").is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "a?b", "\u{e4}", "a\n"] {
            assert!(checked(bad, "it").is_err(), "{bad:?}");
        }
    }
}
