//! `hm run --backend cloud`: submits the build to the hosted service, and shows it as a local one.

use std::{
    io::{self, IsTerminal, Write},
    path::Path,
    pin::pin,
    process::ExitCode,
    sync::Arc,
};

use hm_exec::{
    BackendHandle, Plan, RunRequest,
    cache::RemoteOrigin,
    ir::Env,
    project::{ProjectDir, Revision},
    service::{CloudBackend, Service, ServiceError, api, is_slug},
    source::{EarlyFreeze, SourceOptions},
    store::StoreHandle,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Args, End, Notices, SHUTDOWN_LIMIT, after::After, shadow::Shadow, verify::Verified, watch};
use crate::{
    config::{
        self, CloudConfig,
        variables::{CACHE_SHADOW, VERIFY},
    },
    exit_code,
    failure::{Failure, Outcome},
    reporter::{Format, View, text::clean, to_stderr},
    runtime::runtime,
    service,
    signals::Interrupts,
};

/// A build to submit.
pub(super) struct Submission<'a> {
    pub(super) args: &'a Args,
    pub(super) plan: Plan,
    pub(super) dir: &'a Path,
    pub(super) project: &'a ProjectDir,
    pub(super) pipeline: &'a str,
    pub(super) env: Env,
    pub(super) config: &'a CloudConfig,
    pub(super) source: &'a SourceOptions,
    pub(super) format: Format,
    pub(super) store: StoreHandle,
    pub(super) early: Option<Arc<EarlyFreeze>>,
    pub(super) after: After,
}

/// How the submission of a build ended.
enum Submitted {
    Started(BackendHandle),
    /// The user did not wait for the answer.
    Left,
}

const NOTICES: Notices = Notices {
    first: "cancelling: waiting for the service to stop the build; interrupt again to leave it",
    second: "leaving the build, which the service may still be stopping",
};

/// Returns an error if an argument, or the variable of shadow mode, has a meaning on this machine only.
pub(super) fn check(args: &Args, shadow: Shadow, verified: &Verified) -> Outcome<()> {
    if *verified != Verified::Nothing {
        let what = if verified.is_alone() { "`hm verify`" } else { VERIFY };
        return Err(Failure::input(format_args!("{what} has no meaning for a build on the service"))
            .hint("compare what steps leave on this machine"));
    }
    if shadow.is_on() {
        // A run that compares nothing must not look like one that found no difference.
        return Err(Failure::input(format_args!("{CACHE_SHADOW} has no meaning for a build on the service"))
            .hint("unset it, or run the build on this machine with `--backend local`"));
    }
    let given = [
        ("--secret", !args.bind.secrets.is_empty()),
        ("--image", !args.bind.images.is_empty()),
        ("--runner", args.bind.runner.is_some()),
        ("--host-dir", !args.host_dirs.is_empty()),
        ("--keep", args.keep),
        ("--check-inputs", args.check_inputs),
        ("--cache", args.cache.is_some()),
        ("--no-cache", args.no_cache),
        ("--no-caches", args.no_caches),
        ("--refresh", !args.refresh.is_empty()),
        ("--timeout", args.timeout.is_some()),
        ("--network", args.bind.network.is_some()),
        ("--remote", args.config.names_engine()),
    ];
    if let Some((option, _)) = given.iter().find(|(_, is_given)| *is_given) {
        return Err(Failure::input(format_args!("`{option}` has no meaning for a build on the service"))
            .hint("remove the option, or run the build on this machine with `--backend local`"));
    }
    let ignored = [("-j", args.jobs().is_some()), ("-k", args.keep_going), ("--offline", args.source.offline)];
    let ignored: Vec<_> = ignored.iter().filter(|(_, is_given)| *is_given).map(|(option, _)| *option).collect();
    if !ignored.is_empty() {
        to_stderr(&format!("note: the service decides what {} would", ignored.join(", ")));
    }
    Ok(())
}

impl Submission<'_> {
    pub(super) fn run(self) -> Outcome<ExitCode> {
        let config = self.config;
        let service = service::connect(config)?;
        let org = service::org(self.args.backend.org(), config)?;
        if !is_slug(&org) {
            return Err(Failure::input(format_args!(
                "`{}` is not the slug of an organization: expected letters, digits, `-`, `_` or `.`",
                clean(&org)
            )));
        }
        let (request, origin) = self.request();
        let runtime = runtime()?;
        let view = View::observed(self.format, self.args.logs, Some(&self.plan));
        let end = runtime.block_on(async {
            let mut interrupts = Interrupts::listen()?;
            let backend = CloudBackend::new(service.clone(), self.store.clone(), &org, &config.app_url.value);
            let place = Pipeline {
                service: &service,
                config,
                org: &org,
                name: self.pipeline,
                origin: origin.as_ref(),
                project: self.project,
            };
            let slug = match &config.pipeline {
                Some(pipeline) => Some(pipeline.value.clone()),
                None if request.source.repo_name.is_none() => tokio::select! {
                    slug = place.find_or_create(self.dir) => Some(slug?),
                    () = interrupts.next() => return Ok(End::Killed(None)),
                },
                None => None,
            };
            let submitted = match slug {
                Some(slug) => submit(backend.pipeline(slug), request, &mut interrupts).await,
                None => match submit(backend.clone(), request.clone(), &mut interrupts).await {
                    Err(error) if error.code() == Some("pipeline_not_found") => {
                        let slug = tokio::select! {
                            slug = place.find_or_create(self.dir) => slug?,
                            () = interrupts.next() => return Ok(End::Killed(None)),
                        };
                        submit(backend.pipeline(slug), request, &mut interrupts).await
                    }
                    submitted => submitted,
                },
            };
            match submitted {
                Ok(Submitted::Started(handle)) => {
                    let failed = |error| service::unwatched(config, error);
                    watch(handle, &mut interrupts, view, &NOTICES, failed).await
                }
                Ok(Submitted::Left) => Ok(End::Killed(None)),
                Err(ServiceError::Canceled) => Ok(End::Killed(None)),
                Err(ServiceError::Unwatched(error)) => {
                    Err(service::failure(config, "failed to watch the build, which continues at the service", *error))
                }
                Err(error) => Err(service::refused(config, &org, error)),
            }
        });
        runtime.shutdown_timeout(SHUTDOWN_LIMIT);
        match end? {
            End::Killed(screen) => {
                if let Some(screen) = screen {
                    screen.close(SHUTDOWN_LIMIT);
                }
                Ok(ExitCode::from(exit_code::INTERRUPTED))
            }
            End::Ended(outcome) => {
                if let Some(message) = &outcome.message {
                    to_stderr(&format!("note: {}", clean(message)));
                }
                self.after.run(&self.store, &outcome);
                Ok(exit_code::of_build(outcome.status))
            }
        }
    }

    /// Returns the request, and the origin of the source.
    fn request(&self) -> (RunRequest, Option<RemoteOrigin>) {
        let revision = Revision::of_checkout(self.dir);
        let origin = RemoteOrigin::of_checkout(self.dir);
        let mut request = RunRequest::new(self.plan.clone(), self.dir);
        request.pipeline_slug = self.pipeline.to_owned();
        request.env = self.env.clone();
        request.run_id = Some(Uuid::new_v4());
        request.early_freeze = self.early.clone();
        request.options.source_times = self.source.times;
        request.options.source_ignore.clone_from(&self.source.ignore);
        request.options.watch = self.args.backend.watches();
        let branch = self.args.backend.branch().map(Into::into).or(revision.branch);
        request.source.branch = branch.unwrap_or_else(|| "HEAD".into());
        request.source.commit = revision.commit.unwrap_or_else(|| service::NO_COMMIT.into());
        request.source.message = self.args.backend.message().map(Into::into);
        request.source.repo_name = origin.as_ref().and_then(|origin| origin.repo_name.clone());
        (request, origin)
    }
}

/// Submits a build. The first interrupt cancels it, also if the service has not answered yet.
async fn submit(
    backend: CloudBackend,
    request: RunRequest,
    interrupts: &mut Interrupts,
) -> Result<Submitted, ServiceError> {
    let cancel = CancellationToken::new();
    let mut submitted = pin!(backend.submit(request, cancel.clone()));
    loop {
        tokio::select! {
            handle = &mut submitted => return handle.map(Submitted::Started),
            () = interrupts.next() => {
                if cancel.is_cancelled() {
                    to_stderr("the service has not answered: a build may be running (see `hm cloud build list`)");
                    return Ok(Submitted::Left);
                }
                cancel.cancel();
                to_stderr("cancelling: waiting for the service's answer; interrupt again to leave");
            }
        }
    }
}

/// A pipeline that the service may not know yet.
struct Pipeline<'a> {
    service: &'a Service,
    config: &'a CloudConfig,
    org: &'a str,
    name: &'a str,
    origin: Option<&'a RemoteOrigin>,
    project: &'a ProjectDir,
}

impl Pipeline<'_> {
    /// Returns the slug of the pipeline with this name. Creates it if the service does not have it: on a
    /// terminal only if the user agrees.
    async fn find_or_create(&self, dir: &Path) -> Outcome<String> {
        let Self { service, config, org, name, origin, project } = self;
        let failed = |error| service::failure(config, "failed to look up the pipeline", error);
        if is_slug(name) {
            let own = origin.and_then(|origin| origin.repo_name.as_deref());
            let is_own = |its: Option<&str>| own.is_none_or(|own| its.is_none_or(|its| its.eq_ignore_ascii_case(own)));
            match service.pipeline(org, name).await {
                // The pipeline of another repository may have this slug.
                Ok(pipeline) if is_own(pipeline.repo_name.as_deref()) => return Ok(pipeline.slug),
                Ok(_) | Err(ServiceError::NotFound { .. }) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        let of_dir = || dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let repository = origin.map_or_else(of_dir, |origin| origin.url.clone());
        let can_ask = io::stdin().is_terminal() && io::stderr().is_terminal();
        if can_ask {
            let question = format!("The service has no pipeline `{name}` of {repository} in {org}. Create it? [y/N] ");
            if !agrees(question).await? {
                return Err(Failure::service(exit_code::PIPELINE, "the service has no such pipeline")
                    .hint("name another one with `[cloud] pipeline = \"SLUG\"` in .hm/config.toml"));
            }
        }
        let revision = Revision::of_checkout(dir);
        let default_branch = revision.default_branch.or(revision.branch).unwrap_or_else(|| "HEAD".into());
        let repo_name = origin.and_then(|origin| origin.repo_name.clone());
        let (name, description) = ((*name).to_owned(), None);
        let body = api::CreatePipelineRequest { default_branch, description, name, repo_name, repository };
        let created =
            service.create_pipeline(org, &body).await.map_err(|error| service::refused(config, org, error))?;
        let slug = &created.slug;
        let question = format!("Created pipeline `{slug}`. Record its name in .hm/config.toml? [y/N] ");
        let is_recorded = can_ask
            && agrees(question).await?
            && match config::set_projects(project, &[("cloud.pipeline", slug)]) {
                Ok(_) => true,
                Err(failure) => {
                    to_stderr(&format!("warning: {failure}"));
                    false
                }
            };
        if !is_recorded {
            let line = format!("[cloud] pipeline = \"{slug}\"");
            to_stderr(&format!("note: created pipeline `{slug}` in {org}; to name it, put {line} in .hm/config.toml"));
        }
        Ok(created.slug)
    }
}

/// Asks on the terminal. If the future is dropped, the thread that reads the answer ends with the process.
async fn agrees(question: String) -> Outcome<bool> {
    let failed = |error: tokio::task::JoinError| Failure::infrastructure("failed to prompt").because(error);
    tokio::task::spawn_blocking(move || ask(&question)).await.map_err(failed)?
}

fn ask(question: &str) -> Outcome<bool> {
    let failed = |error: io::Error| Failure::infrastructure("failed to prompt on the terminal").because(error);
    let question = crate::reporter::text::clean(question);
    let mut stderr = io::stderr().lock();
    stderr.write_all(question.as_bytes()).and_then(|()| stderr.flush()).map_err(failed)?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(failed)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
