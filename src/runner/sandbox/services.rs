//! Services of a step: each is an attempt of its own, in the step's network namespace.

use futures_util::future::try_join_all;
use uuid::Uuid;

use super::{
    attempt::{self, Control, Order, OutputSink, Supervised},
    boot::{Boot, BootContext, failed},
    cgroup::Limited,
    jail::{End, JailSpec, Root, SecretFile},
    runner::SandboxRunner,
    step_output::StepOutput,
    step_spec::{c_string, environment},
};
use crate::{
    image::{ImageProgram, stored::program_of},
    model::{StdStream, StepUsage},
    network::resolver_config,
    runner::{
        ExecutorInput, Limits, RunnerError, ServiceArg, ServiceBase, StepContext,
        image_notes::{StepNotes, no_image},
        services::beside::{
            Attempts, EndedEarly, FAILED, ServiceAttempt, ServiceEnd, ServiceOutput, beside, command_line, grace,
            program, ready_mark, snapshot_of,
        },
    },
    store::Base,
    sync::Mutex,
};

/// The end of a step and of the services beside it.
pub(super) struct Served {
    pub(super) ended: Result<Supervised, RunnerError>,
    /// Whether all processes of both are known to be dead.
    pub(super) all_dead: bool,
    /// The service that the step failed for.
    pub(super) hint: Option<String>,
}

impl Served {
    /// Returns the end of a step without services.
    pub(super) fn alone(ended: Result<Supervised, RunnerError>) -> Self {
        Self { all_dead: ended.is_ok(), ended, hint: None }
    }

    fn early(end: End, all_dead: bool) -> Self {
        Self { ended: Ok(Supervised { end, usage: None, ended_all: true }), all_dead, hint: None }
    }
}

/// A service that is about to start.
struct Service<'a> {
    name: &'a str,
    arg: &'a ServiceArg,
    spec: JailSpec,
    boot: Boot,
    /// The line that it prints when it is ready, if it has a condition.
    mark: Option<String>,
}

impl OutputSink for ServiceOutput<'_> {
    async fn output(&self, stream: StdStream, bytes: &[u8]) {
        self.write(stream, bytes).await;
    }
}

/// Runs a step between its services. Returns when every process of both is dead.
///
/// # Cancel safety
/// If the future is dropped, every process of the step and of its services gets SIGKILL.
pub(super) async fn run(
    runner: &SandboxRunner,
    context: &BootContext<'_>,
    (limits, ctx, input): ((&Limits, &Limited), &StepContext, &ExecutorInput),
    order: Order<'_>,
) -> Served {
    let starting =
        limits.0.services.iter().map(|(name, arg)| service(runner, context, (ctx, input), (name, arg, limits)));
    let started = tokio::select! {
        biased;
        () = ctx.cancel.cancelled() => return Served::early(End::Interrupted, true),
        started = try_join_all(starting) => started,
    };
    let services = match started {
        Ok(services) => services,
        // No process was started.
        Err(error) => return Served { ended: Err(error), all_dead: true, hint: None },
    };
    let served = run_with((&services, limits.1), context, (ctx, input.step_id), order).await;
    if served.all_dead {
        services.into_iter().for_each(|service| service.boot.discard());
    }
    served
}

/// Puts a service's files and its jail together.
async fn service<'a>(
    runner: &SandboxRunner,
    context: &BootContext<'_>,
    (ctx, input): (&StepContext, &ExecutorInput),
    (name, arg, (limits, limited)): (&'a str, &'a ServiceArg, (&Limits, &Limited)),
) -> Result<Service<'a>, RunnerError> {
    // The step's cache directories are its own.
    let context = runner.boot_context(context.store, context.zygote);
    let source = ctx.frozen_source(context.store).await.map_err(failed("freeze the source"))?;
    let id_map = context.zygote.id_map();
    let (parent, base) = match &arg.base {
        ServiceBase::Step(step) => {
            let snapshot = snapshot_of(input, name, step)?;
            let parent = context.store.snapshots().get(snapshot).map_err(failed("read a service's snapshot"))?;
            let base = parent.base.clone();
            (Some(parent), base)
        }
        ServiceBase::Image(image) => {
            let notes = StepNotes { bus: &ctx.event_bus, step_id: input.step_id };
            let fetched = Box::pin(context.images.fetch(context.store, image, id_map, &notes)).await;
            (None, fetched.map_err(no_image)?)
        }
    };
    let of_image = || program_of(context.store, &base, id_map).map_err(no_image);
    let ImageProgram { argv, workdir } = program((name, arg), &input.workdir, of_image)?;
    let build = (base == Base::Host).then(|| context.overlays.of_build(ctx, input.run_id));
    let boot = context.boot_over(&source, parent, base, !arg.secrets.is_empty(), build).await?;
    let secret = |secret: &String| match ctx.secrets.iter().find(|(name, _)| name == secret) {
        Some((_, value)) => {
            Ok(SecretFile { name: c_string("a secret's name", secret.as_str())?, value: value.to_owned() })
        }
        None => Err(RunnerError::unsupported(format!(
            "service `{name}` needs the secret `{}`: pass it with `--secret`",
            secret.escape_debug()
        ))),
    };
    let mark = ready_mark(arg);
    let argv = command_line(arg, argv, mark.as_deref().unwrap_or_default());
    let jail = runner.jail(context.zygote, context.store.dir(), Root::Overlay(boot.root.clone()))?;
    let spec = JailSpec {
        binds: boot.binds.clone(),
        resolver: Some(resolver_config()),
        // The step's: it must not see or forge what the step sends.
        shares_network: true,
        cgroups: limited.procs(),
        group_views: limited.views(),
        memory_bytes: limits.memory.map(|memory| memory.bytes),
        // Its pid 1 counts its own processes only, so the limit holds for each service and for the step.
        watch: limited.watch(),
        own_names: limits.services.keys().cloned().collect(),
        secrets: arg.secrets.iter().map(secret).collect::<Result<_, _>>()?,
        workdir: c_string("a service's work directory", workdir)?,
        argv: argv.into_iter().map(|part| c_string("a service's command", part)).collect::<Result<_, _>>()?,
        env: environment(&boot.env, &arg.env)?,
        ..jail
    };
    Ok(Service { name, arg, spec, boot, mark })
}

/// Returns how a service ended. Its limits are those of its step's control groups, or else it was watched.
fn service_end(end: &End, limited: &Limited) -> ServiceEnd {
    match end {
        End::OutOfMemory => ServiceEnd::OutOfMemory,
        End::TooManyProcesses => ServiceEnd::TooManyProcesses,
        End::Exited { code: 0 } => ServiceEnd::Exited(0),
        _ if limited.oom_killed().is_some() => ServiceEnd::OutOfMemory,
        End::Exited { .. } if limited.too_many_processes().is_some() => ServiceEnd::TooManyProcesses,
        End::Exited { code } => ServiceEnd::Exited(*code),
        _ => ServiceEnd::Killed,
    }
}

async fn run_with(
    (services, limited): (&[Service<'_>], &Limited),
    context: &BootContext<'_>,
    (ctx, step_id): (&StepContext, Uuid),
    order: Order<'_>,
) -> Served {
    let output = &StepOutput { bus: &ctx.event_bus, step_id };
    let used = &Mutex::new((0_u64, 0_u64));
    let attempts = Attempts::new(&ctx.cancel);
    let stop = attempts.stop.clone();
    let outputs: Vec<_> = services
        .iter()
        .map(|service| ServiceOutput::new(service.name, service.mark.as_deref(), &ctx.event_bus, step_id))
        .collect();
    let started = services.iter().zip(&outputs).map(|(service, output)| {
        let control = Control { cancel: &stop, grace: grace(ctx.grace) };
        let of_service = Order { spec: &service.spec, network: order.network, trace: None };
        let attempt = async move {
            // Its files are there: what is left takes milliseconds.
            output.started();
            let ended = attempt::run(context.zygote, of_service, control, output).await?;
            if let Some(usage) = ended.usage {
                let mut used = used.lock();
                *used = (used.0.saturating_add(usage.peak_memory_bytes), used.1.saturating_add(usage.cpu_ms));
            }
            Ok(service_end(&ended.end, limited))
        };
        ServiceAttempt { output, ready_timeout: service.arg.ready_timeout, attempt: Box::pin(attempt) }
    });
    let done = beside(attempts.with(started.collect()), |token| async move {
        let control = Control { cancel: &token, grace: ctx.grace };
        attempt::run(context.zygote, order, control, output).await
    });
    let done = done.await;
    let was_ended = |ended: &Result<Supervised, _>| matches!(ended, Ok(Supervised { end: End::Interrupted, .. }));
    let all_dead = done.all_ended && done.step.as_ref().is_none_or(Result::is_ok);
    match done.verdict(ctx, step_id, was_ended) {
        Ok(ended) => {
            let (memory, cpu) = *used.lock();
            let both = |own: StepUsage| {
                StepUsage::new(own.peak_memory_bytes.saturating_add(memory), own.cpu_ms.saturating_add(cpu))
            };
            let ended = ended.map(|ended| Supervised { usage: ended.usage.map(both), ..ended });
            Served { ended, all_dead, hint: None }
        }
        Err(EndedEarly::Interrupted) => Served::early(End::Interrupted, all_dead),
        Err(EndedEarly::Broken(error)) => Served { ended: Err(error), all_dead, hint: None },
        Err(EndedEarly::Failed(why)) => {
            let early = Served::early(End::Exited { code: FAILED }, all_dead);
            Served { hint: Some(why), ..early }
        }
    }
}
