//! The client of the service: every request, with its limits, retries and errors.
//!
//! The types and paths are those of the crate `harmont-cloud-raw`, which is generated from the service's own
//! description. What that leaves out is here: time limits, retries, no redirects, and errors without URLs.

use std::{future::Future, time::Duration};

use harmont_cloud_raw::{Client, Error, ResponseValue, types as api};
use reqwest::{
    StatusCode,
    header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue},
    redirect::Policy,
};
use uuid::Uuid;

use super::{
    error::ServiceError,
    map,
    refusal::{Described, Refusal, cause},
    sse::LogStream,
};
use crate::backoff::Backoff;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// The limit of one attempt at a request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The limit of a request that uploads a source.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(300);
/// The number of attempts at a request.
const TRIES: u32 = 6;
/// The most pages of a list that are read.
const MAX_PAGES: usize = 50;

/// How often to try, and how long to wait between requests. Tests wait less.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// The number of attempts at a request.
    pub tries: u32,
    /// The pause after the first failure; it doubles.
    pub retry: Duration,
    /// The longest pause after a failure.
    pub longest_retry: Duration,
    /// The pause between two looks at a build.
    pub poll: Duration,
    /// The same, for a build that has not changed for half an hour.
    pub slow_poll: Duration,
    /// The first pause before a log is opened again.
    pub log_retry: Duration,
    /// How long a log may be silent after its job has ended.
    pub log_end: Duration,
    /// How long a cancelled build may take to end.
    pub cancel: Duration,
    /// How long the service may be unreachable while a build is watched.
    pub lost: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            tries: TRIES,
            retry: Duration::from_millis(500),
            longest_retry: Duration::from_secs(15),
            poll: Duration::from_millis(1500),
            slow_poll: Duration::from_secs(5),
            log_retry: Duration::from_millis(250),
            log_end: Duration::from_secs(10),
            cancel: Duration::from_secs(30),
            lost: Duration::from_secs(600),
        }
    }
}

impl Pace {
    pub(super) fn backoff(&self) -> Backoff {
        Backoff { first: self.retry, longest: self.longest_retry }
    }
}

/// Where a build is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildPlace {
    /// The organization's slug.
    pub org: String,
    /// The pipeline's slug, which is unique in the organization.
    pub pipeline: String,
    /// The build's number in the pipeline.
    pub number: i64,
}

/// A connection to the service. Cheap to clone.
#[derive(Clone)]
pub struct Service {
    raw: Client,
    /// Sends no credentials: for logs, whose token is in the URL.
    plain: reqwest::Client,
    base: String,
    host: String,
    token: String,
    pub(super) pace: Pace,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Service {
    /// Creates a connection to the service at `base`, with a token. Nothing is sent yet.
    ///
    /// # Errors
    /// Returns [`ServiceError::Unsupported`] if the URL or the token cannot be used.
    pub fn new(base: &str, token: &str) -> Result<Self, ServiceError> {
        let unusable = |_| ServiceError::Unsupported("the token has characters that no token has".into());
        let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(unusable)?;
        value.set_sensitive(true);
        Self::with(base, token, HeaderMap::from_iter([(AUTHORIZATION, value)]))
    }

    /// Creates a connection without a token, to obtain one.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn anonymous(base: &str) -> Result<Self, ServiceError> {
        Self::with(base, "", HeaderMap::new())
    }

    fn with(base: &str, token: &str, headers: HeaderMap) -> Result<Self, ServiceError> {
        let base = base.trim_end_matches('/');
        let url: reqwest::Url =
            base.parse().map_err(|_| ServiceError::Unsupported("the service's URL is not a URL".into()))?;
        let host = url.host_str().filter(|_| matches!(url.scheme(), "http" | "https"));
        let host = host.ok_or_else(|| ServiceError::Unsupported("the service's URL must be https://HOST".into()))?;
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
            return Err(ServiceError::Unsupported("the service's URL must not have a user or a query".into()));
        }
        crate::tls::choose_provider();
        let is_encrypted = url.scheme() == "https";
        let builder = || {
            let builder = reqwest::Client::builder()
                .connect_timeout(CONNECT_TIMEOUT)
                // A redirect would send the source, or a token, to another host.
                .redirect(Policy::none())
                .user_agent(concat!("hm-exec/", env!("CARGO_PKG_VERSION")));
            // A proxy could read the token.
            if is_encrypted { builder } else { builder.no_proxy() }
        };
        let failed = |error: reqwest::Error| {
            ServiceError::Unsupported(format!(
                "TLS is not available; is ca-certificates installed? ({})",
                cause(&error)
            ))
        };
        let authorized = builder().default_headers(headers).build().map_err(failed)?;
        let plain = builder().build().map_err(failed)?;
        let (raw, host) = (Client::new_with_client(base, authorized), host.to_owned());
        Ok(Self { raw, plain, base: base.to_owned(), host, token: token.to_owned(), pace: Pace::default() })
    }

    /// Changes how long to wait between requests.
    #[doc(hidden)]
    #[must_use]
    pub fn pace(mut self, pace: Pace) -> Self {
        self.pace = pace;
        self
    }

    /// Returns the URL of the service.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Returns the name of the host.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// Returns the token, to mask it.
    pub(super) fn token(&self) -> &str {
        &self.token
    }

    /// Makes a request that can be repeated.
    async fn get<T, E: Described, F>(&self, call: impl Fn() -> F) -> Result<T, ServiceError>
    where
        F: Future<Output = Result<ResponseValue<T>, Error<E>>>,
    {
        self.attempts(self.pace.tries, ANSWER_TIMEOUT, |_| true, call).await
    }

    /// Makes a request that creates something. It is repeated only if the service surely did not take it.
    async fn post<T, E: Described, F>(&self, call: impl Fn() -> F) -> Result<T, ServiceError>
    where
        F: Future<Output = Result<ResponseValue<T>, Error<E>>>,
    {
        self.attempts(self.pace.tries, UPLOAD_TIMEOUT, |refusal| refusal.is_untaken, call).await
    }

    /// Makes a request once.
    async fn once<T, E: Described, F>(&self, call: impl Fn() -> F) -> Result<T, ServiceError>
    where
        F: Future<Output = Result<ResponseValue<T>, Error<E>>>,
    {
        self.attempts(1, ANSWER_TIMEOUT, |_| false, call).await
    }

    async fn attempts<T, E: Described, F>(
        &self,
        tries: u32,
        limit: Duration,
        may_repeat: impl Fn(&Refusal) -> bool,
        call: impl Fn() -> F,
    ) -> Result<T, ServiceError>
    where
        F: Future<Output = Result<ResponseValue<T>, Error<E>>>,
    {
        let mut failures = 0;
        loop {
            let refusal = match tokio::time::timeout(limit, call()).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(error)) => Refusal::of(error, &self.host).await,
                Err(_) => Refusal::network(&self.host, format!("no answer within {} s", limit.as_secs())),
            };
            failures += 1;
            if failures >= tries || !refusal.is_transient() || !may_repeat(&refusal) {
                return Err(if refusal.is_untaken { refusal.error.surely_not_done() } else { refusal.error });
            }
            let pause = self.pace.backoff().pause(failures).max(refusal.retry_after);
            tracing::debug!(failures, ?pause, error = %refusal.error, "repeating a request to the service");
            tokio::time::sleep(pause).await;
        }
    }

    /// Opens the log of a job. `token` is the log token.
    pub(super) async fn open_log(&self, job: Uuid, token: &str) -> Result<LogStream, ServiceError> {
        let mut url: reqwest::Url =
            format!("{}/v0/jobs/{job}/logs", self.base).parse().map_err(|_| ServiceError::Answer("a job id".into()))?;
        url.query_pairs_mut().append_pair("token", token);
        let sent = self.plain.get(url).header(ACCEPT, "text/event-stream").send();
        let answer = match tokio::time::timeout(ANSWER_TIMEOUT, sent).await {
            Ok(answer) => answer.map_err(|error| Refusal::network(&self.host, cause(&error)).error)?,
            Err(_) => return Err(Refusal::network(&self.host, "no answer".into()).error),
        };
        match answer.status() {
            StatusCode::OK => Ok(LogStream::new(answer)),
            _ => Err(Refusal::of_answer(answer).await.error),
        }
    }
}

/// The requests, named as in the service's description.
impl Service {
    /// Creates a build of a pipeline that is known by its slug.
    ///
    /// # Errors
    /// Returns an error if the service did not create it, or if that is not known.
    pub async fn create_build(
        &self,
        org: &str,
        pipeline: &str,
        body: &api::CreateBuildRequest,
    ) -> Result<api::Build, ServiceError> {
        self.post(|| self.raw.create_build(org, pipeline, body)).await
    }

    /// Creates a build of a pipeline that is known by its repository and its name there.
    ///
    /// # Errors
    /// As [`create_build`](Self::create_build).
    pub async fn create_repository_build(
        &self,
        org: &str,
        body: &api::CreateRepoBuildRequest,
    ) -> Result<api::Build, ServiceError> {
        self.post(|| self.raw.create_build_by_source(org, body)).await
    }

    /// Returns a build.
    ///
    /// # Errors
    /// Returns an error if the service does not answer with it.
    pub async fn build(&self, BuildPlace { org, pipeline, number }: &BuildPlace) -> Result<api::Build, ServiceError> {
        self.get(|| self.raw.get_build(org, pipeline, *number)).await
    }

    /// Returns the jobs of a build, in its order.
    ///
    /// # Errors
    /// As [`build`](Self::build).
    pub async fn jobs(&self, BuildPlace { org, pipeline, number }: &BuildPlace) -> Result<Vec<api::Job>, ServiceError> {
        Ok(self.get(|| self.raw.list_jobs(org, pipeline, *number)).await?.data)
    }

    /// Returns a build and its jobs, without retries. If the build has ended, so have the jobs.
    pub(super) async fn look(
        &self,
        BuildPlace { org, pipeline, number }: &BuildPlace,
    ) -> Result<(Vec<api::Job>, api::Build), ServiceError> {
        let jobs = self.once(|| self.raw.list_jobs(org, pipeline, *number)).await?.data;
        let build = self.once(|| self.raw.get_build(org, pipeline, *number)).await?;
        match map::build_end(&build) {
            None => Ok((jobs, build)),
            Some(_) => Ok((self.once(|| self.raw.list_jobs(org, pipeline, *number)).await?.data, build)),
        }
    }

    /// Returns a job of a build.
    ///
    /// # Errors
    /// As [`build`](Self::build).
    pub async fn job(&self, place: &BuildPlace, job: &str) -> Result<api::Job, ServiceError> {
        self.get(|| self.raw.get_job(&place.org, &place.pipeline, place.number, job)).await
    }

    /// Cancels a build.
    ///
    /// # Errors
    /// Returns an error if the service does not take the request.
    pub async fn cancel(&self, BuildPlace { org, pipeline, number }: &BuildPlace) -> Result<api::Build, ServiceError> {
        self.get(|| self.raw.cancel_build(org, pipeline, *number)).await
    }

    pub(super) async fn log_token(
        &self,
        BuildPlace { org, pipeline, number }: &BuildPlace,
    ) -> Result<api::LogTokenResponse, ServiceError> {
        self.get(|| self.raw.get_build_log_token(org, pipeline, *number)).await
    }

    /// Returns the newest builds of a pipeline, at most `limit` if there is one.
    ///
    /// # Errors
    /// As [`build`](Self::build).
    pub async fn builds(&self, org: &str, pipeline: &str, limit: Option<u32>) -> Result<Vec<api::Build>, ServiceError> {
        pages(limit, async |cursor| {
            let page = self.get(|| self.raw.list_builds(org, pipeline, cursor, size(limit))).await?;
            Ok((page.data, page.next_cursor))
        })
        .await
    }

    /// Returns the pipelines of an organization.
    ///
    /// # Errors
    /// As [`build`](Self::build).
    pub async fn pipelines(&self, org: &str) -> Result<Vec<api::Pipeline>, ServiceError> {
        pages(None, async |cursor| {
            let page = self.get(|| self.raw.list_pipelines(org, cursor, None)).await?;
            Ok((page.data, page.next_cursor))
        })
        .await
    }

    /// Returns the user's organizations.
    ///
    /// # Errors
    /// As [`build`](Self::build).
    pub async fn organizations(&self) -> Result<Vec<api::Organization>, ServiceError> {
        pages(None, async |cursor| {
            let page = self.get(|| self.raw.list_organizations(cursor, None)).await?;
            Ok((page.data, page.next_cursor))
        })
        .await
    }

    /// Returns a pipeline.
    ///
    /// # Errors
    /// As [`build`](Self::build).
    pub async fn pipeline(&self, org: &str, pipeline: &str) -> Result<api::Pipeline, ServiceError> {
        self.get(|| self.raw.get_pipeline(org, pipeline)).await
    }

    /// Creates a pipeline.
    ///
    /// # Errors
    /// Returns an error if the service did not create it, or if that is not known.
    pub async fn create_pipeline(
        &self,
        org: &str,
        body: &api::CreatePipelineRequest,
    ) -> Result<api::Pipeline, ServiceError> {
        self.post(|| self.raw.create_pipeline(org, body)).await
    }

    /// Returns the user to whom the token belongs.
    ///
    /// # Errors
    /// As [`build`](Self::build).
    pub async fn user(&self) -> Result<api::CurrentUserResponse, ServiceError> {
        self.get(|| self.raw.get_current_user()).await
    }

    /// Makes the token invalid.
    ///
    /// # Errors
    /// Returns an error if the service does not take the request.
    pub async fn revoke_token(&self) -> Result<(), ServiceError> {
        self.get(|| self.raw.logout()).await
    }

    /// Asks once for the token that the user's browser left under `nonce`. Returns `None` if it is not there.
    ///
    /// # Errors
    /// Returns an error if the service does not answer.
    pub async fn claim_token(&self, nonce: &str) -> Result<Option<String>, ServiceError> {
        let body = api::CliClaimRequest { nonce: nonce.to_owned() };
        match self.post(|| self.raw.cli_claim(&body)).await {
            Ok(answer) => Ok(Some(answer.token)),
            Err(ServiceError::Rejected { status: 400, code, .. }) if code == "cli_code_invalid" => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the token for a code that the user copied from the browser.
    ///
    /// # Errors
    /// Returns an error if the service does not accept the code.
    pub async fn redeem_code(&self, code: &str) -> Result<String, ServiceError> {
        let body = api::CliRedeemRequest { code: code.to_owned() };
        Ok(self.post(|| self.raw.cli_redeem(&body)).await?.token)
    }

    /// Returns an organization's balance.
    ///
    /// # Errors
    /// As [`build`](Self::build).
    pub async fn balance(&self, org: &str) -> Result<api::BalanceResponse, ServiceError> {
        self.get(|| self.raw.get_billing_balance(org)).await
    }

    /// Returns an organization's newest payments.
    ///
    /// # Errors
    /// As [`build`](Self::build).
    pub async fn transactions(&self, org: &str, limit: u32) -> Result<Vec<api::Transaction>, ServiceError> {
        pages(Some(limit), async |cursor| {
            let page = self.get(|| self.raw.list_billing_transactions(org, cursor, size(Some(limit)))).await?;
            Ok((page.data, page.next_cursor))
        })
        .await
    }

    /// Returns what an organization used between two days, as `YYYY-MM-DD`.
    ///
    /// # Errors
    /// As [`build`](Self::build).
    pub async fn usage(&self, org: &str, from: &str, to: &str) -> Result<api::UsageResponse, ServiceError> {
        self.get(|| self.raw.get_billing_usage(org, from, to)).await
    }

    /// Returns the URL of a page where a payment can be made.
    ///
    /// # Errors
    /// Returns an error if the service does not take the request.
    pub async fn checkout(&self, org: &str, amount_cents: i64) -> Result<String, ServiceError> {
        let body = api::CheckoutRequest { amount_cents };
        Ok(self.post(|| self.raw.create_checkout(org, &body)).await?.checkout_url)
    }

    /// Redeems a coupon.
    ///
    /// # Errors
    /// Returns an error if the service does not accept the code.
    pub async fn redeem_coupon(&self, org: &str, code: &str) -> Result<api::RedeemCouponResponse, ServiceError> {
        let body = api::RedeemCouponRequest { code: code.to_owned() };
        self.post(|| self.raw.redeem_coupon(org, &body)).await
    }
}

/// Returns the size of a page, if the service should send a smaller one than usual.
fn size(limit: Option<u32>) -> Option<i64> {
    limit.map(|limit| i64::from(limit.clamp(1, 100)))
}

/// Reads the pages of a list, up to `limit` entries.
async fn pages<T>(
    limit: Option<u32>,
    page: impl AsyncFn(Option<&str>) -> Result<(Vec<T>, Option<String>), ServiceError>,
) -> Result<Vec<T>, ServiceError> {
    let limit = limit.map_or(usize::MAX, |limit| limit as usize);
    let (mut all, mut cursor) = (Vec::new(), None::<String>);
    for _ in 0..MAX_PAGES {
        let (entries, next) = page(cursor.as_deref()).await?;
        all.extend(entries);
        cursor = next;
        if cursor.is_none() || all.len() >= limit {
            break;
        }
    }
    if cursor.is_some() && all.len() < limit {
        tracing::warn!("the list has more entries than the {} that are shown", all.len());
    }
    all.truncate(limit);
    Ok(all)
}
