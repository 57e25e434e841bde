//! Services of a step: each is a machine of its own. They share the step's network, which a further machine
//! holds.

use futures_util::future::try_join_all;

use super::{
    Command, NetworkRole, Output, Vm, VmBackend, VmRunner,
    runner::{Attempt, run as run_machine},
};
use crate::{
    image::ImageProgram,
    quote::quote,
    runner::{
        RunnerError, RunnerErrorKind, ServiceArg, ServiceBase,
        services::beside::{
            Attempts, EndedEarly, FAILED, ServiceAttempt, ServiceEnd, ServiceOutput, beside, command_line, grace,
            program, ready_mark, snapshot_of,
        },
    },
};

/// The end of a step and of the services beside it.
pub(super) struct Served<V> {
    pub(super) ended: Result<i32, RunnerError>,
    /// Whether the step was started.
    pub(super) has_run: bool,
    /// The service that the step failed for.
    pub(super) hint: Option<String>,
    /// The machine that holds the step's network. It is to be dropped after the step's.
    pub(super) holder: Option<V>,
}

impl<V> Served<V> {
    /// Returns the end of a step without services.
    pub(super) fn alone(ended: Result<i32, RunnerError>) -> Self {
        Self { ended, has_run: true, hint: None, holder: None }
    }

    fn before_it_ran(error: RunnerError) -> Self {
        Self { ended: Err(error), has_run: false, hint: None, holder: None }
    }
}

/// A service that is about to start.
struct Service<'a, V> {
    name: &'a str,
    arg: &'a ServiceArg,
    vm: V,
    script: String,
    workdir: String,
    /// The line that it prints when it is ready, if it has a condition.
    mark: Option<String>,
}

/// Runs a step in `vm` between its services. Returns when the machines of the services are destroyed.
///
/// # Cancel safety
/// Dropping the future drops the machines of the services.
pub(super) async fn run<B: VmBackend>(runner: &VmRunner<B>, attempt: Attempt<'_>, vm: &mut B::Vm) -> Served<B::Vm> {
    let ctx = attempt.ctx;
    let prepared = tokio::select! {
        biased;
        () = ctx.cancel.cancelled() => return Served::before_it_ran(ctx.interrupted()),
        prepared = prepare(runner, attempt, vm) => prepared,
    };
    match prepared {
        Ok((holder, services)) => Served { holder: Some(holder), ..run_with(services, attempt, vm).await },
        Err(error) => Served::before_it_ran(error),
    }
}

/// Starts the machines of the services, and joins them and the step's in a network. Returns the machine that
/// holds it, too.
async fn prepare<'a, B: VmBackend>(
    runner: &VmRunner<B>,
    attempt: Attempt<'a>,
    vm: &mut B::Vm,
) -> Result<(B::Vm, Vec<Service<'a, B::Vm>>), RunnerError> {
    let services = &attempt.limits.services;
    let names: Vec<&str> = services.keys().map(String::as_str).collect();
    let starting = try_join_all(services.iter().map(|(name, arg)| service(runner, attempt, (name, arg))));
    let (holder, mut services) = tokio::try_join!(runner.backend().hold_network(vm, &names), starting)?;
    vm.join(&holder, NetworkRole::Step);
    services.iter_mut().for_each(|service| service.vm.join(&holder, NetworkRole::Service));
    Ok((holder, services))
}

async fn service<'a, B: VmBackend>(
    runner: &VmRunner<B>,
    attempt: Attempt<'a>,
    (name, arg): (&'a str, &'a ServiceArg),
) -> Result<Service<'a, B::Vm>, RunnerError> {
    let input = attempt.input;
    let (snapshot, image) = match &arg.base {
        ServiceBase::Step(step) => (Some(snapshot_of(input, name, step)?), ""),
        ServiceBase::Image(image) => (None, image.as_str()),
    };
    let vm = runner.machine(attempt, snapshot, image).await?;
    let ImageProgram { argv, workdir } = program((name, arg), &input.workdir, || Ok(vm.program()))?;
    let mark = ready_mark(arg);
    let argv = command_line(arg, argv, mark.as_deref().unwrap_or_default());
    let words: Vec<_> = argv.iter().map(|word| quote(word)).collect();
    let script = format!("exec {}", words.join(" "));
    Ok(Service { name, arg, vm, script, workdir, mark })
}

async fn run_with<V: Vm>(services: Vec<Service<'_, V>>, attempt: Attempt<'_>, vm: &V) -> Served<V> {
    let (ctx, step_id) = (attempt.ctx, attempt.input.step_id);
    let attempts = Attempts::new(&ctx.cancel);
    let stop = attempts.stop.clone();
    let outputs: Vec<_> = services
        .iter()
        .map(|service| ServiceOutput::new(service.name, service.mark.as_deref(), &ctx.event_bus, step_id))
        .collect();
    let started = services.into_iter().zip(&outputs).map(|(service, output)| {
        let Service { arg, vm, script, workdir, .. } = service;
        let (stop, to) = (&stop, Output { service: Some(output), ..attempt.output() });
        let attempt = async move {
            let command = Command { script: &script, env: &arg.env, workdir: &workdir };
            let ended = run_machine(&vm, &command, &to, (stop, grace(ctx.grace))).await;
            vm.destroy().await;
            match ended {
                None => Ok(ServiceEnd::Killed),
                Some(Ok(code)) => Ok(ServiceEnd::Exited(code)),
                Some(Err(error)) => match error.kind() {
                    RunnerErrorKind::OutOfMemory => Ok(ServiceEnd::OutOfMemory),
                    RunnerErrorKind::TooManyProcesses => Ok(ServiceEnd::TooManyProcesses),
                    _ => Err(error),
                },
            }
        };
        ServiceAttempt { output, ready_timeout: arg.ready_timeout, attempt: Box::pin(attempt) }
    });
    let done = beside(attempts.with(started.collect()), |token| async move {
        run_machine(vm, &attempt.command(), &attempt.output(), (&token, ctx.grace)).await
    });
    let done = done.await;
    let has_run = done.step.is_some();
    let (ended, hint) = match done.verdict(ctx, step_id, Option::is_none) {
        Ok(ended) => (ended.unwrap_or_else(|| Err(ctx.interrupted())), None),
        Err(EndedEarly::Interrupted) => (Err(ctx.interrupted()), None),
        Err(EndedEarly::Broken(error)) => (Err(error), None),
        Err(EndedEarly::Failed(why)) => (Ok(FAILED), Some(why)),
    };
    Served { ended, has_run, hint, holder: None }
}
