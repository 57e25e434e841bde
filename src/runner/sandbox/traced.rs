//! One run of a step's command; what its tracer is given, and what becomes of its trace.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read, Seek, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use rustix::fs::MemfdFlags;

use super::{
    attempt::{self, Control, Order, Supervised},
    boot::Boot,
    cache_dirs,
    cgroup::Limited,
    jail::{
        DEFAULT_ENV, End, Root, TraceSpec,
        trace::{Reason, Trace},
    },
    own_network::{self, Destinations, StepNamespace},
    reuse::ReadByStep,
    runner::SandboxRunner,
    services::{self, Served},
    shadow::Shadowed,
    step_output::StepOutput,
    step_spec::step_spec,
};
use crate::{
    blocking, cache,
    event::SecretSearch,
    model::StdStream,
    network::NetworkSummary,
    runner::{ExecutorInput, Limits, Network, RunnerError, StepContext, machine_memory::MemoryWatch},
    store::Store,
    tree::{self, FileTime},
    userns::Zygote,
};

/// The line between the output of a step that could not be traced and that of its second run.
const AGAIN: &str =
    "hm: a program of this step traces others by seccomp, so the step is run again without being traced\n";

/// What running a step's command takes.
#[derive(Clone, Copy)]
pub(super) struct Once<'a> {
    pub(super) store: &'a Arc<Store>,
    pub(super) zygote: &'a Arc<Zygote>,
    pub(super) ctx: &'a StepContext,
    pub(super) input: &'a ExecutorInput,
    pub(super) limits: &'a Limits,
}

/// A step's command that was run.
pub(super) struct Ran {
    pub(super) boot: Boot,
    pub(super) limited: Limited,
    pub(super) started: MemoryWatch,
    /// The time that a file would have got when it started, if it was traced.
    started_at: FileTime,
    pub(super) ended: Result<Supervised, RunnerError>,
    /// Whether all processes of the step and of its services are known to be dead.
    pub(super) all_dead: bool,
    /// Whether the step ended because one of its services failed.
    pub(super) service_failed: bool,
    /// What its services, or its connections, say about its failure, if it failed.
    pub(super) hint: Option<String>,
    /// Whether it certainly used no network.
    is_unused: bool,
    /// What shadow mode knows of it, if the run is in that mode.
    pub(super) shadowed: Option<Box<Shadowed>>,
    /// What it read, if its result is to be found by that.
    pub(super) read: Option<Box<ReadByStep>>,
    /// The processor time that tracing took.
    pub(super) tracing: Option<Duration>,
}

impl SandboxRunner {
    /// Runs the step's command.
    pub(super) async fn once(&self, once: Once<'_>, tracing: Option<&Tracing>) -> Result<Ran, RunnerError> {
        let Once { store, zygote, ctx, input, limits } = once;
        let trace = tracing.map(|tracing| &tracing.file);
        let mut context = self.boot_context(store, zygote).hiding(limits);
        context.caches = cache_dirs::wanted(&limits.caches, ctx, zygote.id_map());
        let destinations = tracing.map(|tracing| tracing.destinations.clone());
        let sink = own_network::journal(&ctx.event_bus, input.step_id, destinations);
        // A new network takes as long as a third of the rest.
        let (mut boot, network) = tokio::try_join!(context.boot(ctx, input), self.network(zygote, limits, sink))?;
        self.bring_inputs(store, ctx, input, &mut boot).await?;
        let limited = self.hold(limits);
        let jail = self.jail(zygote, store.dir(), Root::Overlay(boot.root.clone()))?;
        let mut spec = step_spec(jail, &boot, (limits, &limited), ctx, input)?;
        spec.trace = trace.map(|_| trace_spec(&boot)).transpose()?;
        let control = Control { cancel: &ctx.cancel, grace: ctx.grace };
        let output = StepOutput { bus: &ctx.event_bus, step_id: input.step_id };
        let namespace = StepNamespace::of(limits, network.as_ref());
        let order = Order { spec: &spec, network: namespace, trace: trace.map(AsFd::as_fd) };
        let started = MemoryWatch::start();
        let started_at = trace.map(|_| tree::file_clock()).unwrap_or_default();
        let Served { ended, all_dead, hint } = match limits.services.is_empty() {
            true => Served::alone(attempt::run(zygote, order, control, &output).await),
            false => Box::pin(services::run(self, &context, ((limits, &limited), ctx, input), order)).await,
        };
        let mut summary = match network.filter(|_| all_dead) {
            Some(network) => network.end().await,
            None => NetworkSummary::default(),
        };
        // Checks of services are refused until those listen.
        summary.refused_within &= limits.services.is_empty();
        let service_failed = hint.is_some();
        let hint = hint.or(own_network::hint(&summary));
        let (is_unused, shadowed, read, tracing) = (summary.is_unused, None, None, None);
        Ok(Ran {
            boot,
            limited,
            started,
            started_at,
            ended,
            all_dead,
            service_failed,
            hint,
            is_unused,
            shadowed,
            read,
            tracing,
        })
    }

    /// Runs the step's command and keeps its trace. If the command cannot be traced, runs it again.
    pub(super) async fn traced(&self, once: Once<'_>, dir: &Arc<Path>) -> Result<Ran, RunnerError> {
        let Once { ctx, input, limits, .. } = once;
        let traced = Traced { dir, ctx, input };
        traced.forget().await?;
        let mut shadowed = match &ctx.shadow {
            Some(mode) => Some(self.predict(once, mode).await),
            None => None,
        };
        let file = TraceFile::new().map_err(|error| RunnerError::infrastructure("make a file for the trace", error))?;
        let since = (SystemTime::now(), Instant::now());
        let tracing = Tracing { file, destinations: Destinations::default() };
        let ran = self.once(once, Some(&tracing)).await?;
        match &ran.ended {
            Ok(Supervised { end: End::Untraceable, .. }) => {
                ran.boot.discard();
                drop(ran.limited);
                ctx.event_bus.output(input.step_id, StdStream::Stderr, AGAIN.as_bytes()).await;
                traced.keep_untraceable().await;
                let ran = self.once(once, None).await?;
                if let Some(shadowed) = &mut shadowed {
                    shadowed.untraced();
                }
                Ok(Ran { shadowed, ..ran })
            }
            Ok(Supervised { end: End::Exited { code }, .. }) => {
                let variables = ran.boot.env.keys().cloned().collect();
                let mut reasons = network_reasons(limits, ran.is_unused, &tracing.destinations);
                // What a service answers depends on files that the step did not read.
                reasons.extend(limits.services.keys().cloned().map(Reason::Service));
                let (trace, spent) = traced.keep(tracing.file, variables, reasons).await.unzip();
                if let (0, Some(shadowed)) = (*code, &mut shadowed) {
                    self.confirm(once, shadowed, trace.clone()).await;
                }
                let read = match trace.filter(|_| *code == 0 && ctx.reuse.is_some()) {
                    Some(trace) => self.read_by(once, (since, ran.started_at), trace).await.map(Box::new),
                    None => None,
                };
                Ok(Ran { shadowed, read, tracing: spent, ..ran })
            }
            // Such a step has no result that could be reused, but one may have been predicted.
            _ => Ok(Ran { shadowed, ..ran }),
        }
    }
}

/// What the trace of an attempt is collected in.
#[derive(Debug)]
pub(super) struct Tracing {
    file: TraceFile,
    destinations: Destinations,
}

/// The file that the step's pid 1 writes the trace to.
#[derive(Debug)]
pub(super) struct TraceFile(OwnedFd);

/// The facts about an attempt that belong in its trace.
#[derive(Debug, Clone, Copy)]
pub(super) struct Traced<'a> {
    pub(super) dir: &'a Arc<Path>,
    pub(super) ctx: &'a StepContext,
    pub(super) input: &'a ExecutorInput,
}

impl TraceFile {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(rustix::fs::memfd_create(c"hm-trace", MemfdFlags::CLOEXEC)?))
    }

    /// Reads what pid 1 wrote, and the processor time that tracing took. It is influenced by the step.
    pub(super) fn read(self) -> io::Result<(Trace, Duration)> {
        let mut file = File::from(self.0);
        let (mut spent, mut bytes) = ([0; 8], Vec::new());
        file.rewind()?;
        file.read_exact(&mut spent)?;
        file.read_to_end(&mut bytes)?;
        let trace = Trace::decode(&bytes).map_err(io::Error::other)?;
        Ok((trace, Duration::from_micros(u64::from_le_bytes(spent))))
    }
}

impl AsFd for TraceFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Describes what the tracer must know of the step's files.
fn trace_spec(boot: &Boot) -> Result<TraceSpec, RunnerError> {
    Ok(TraceSpec { uppers: boot.uppers()? })
}

impl Traced<'_> {
    /// Keeps the trace of an attempt, and returns it, and what it took. Traces are advisory: if one cannot be kept, that is a
    /// warning.
    async fn keep(self, file: TraceFile, image_env: Vec<String>, reasons: Vec<Reason>) -> Option<(Trace, Duration)> {
        let Self { dir, ctx, input } = self;
        let variables = DEFAULT_ENV.iter().map(|(name, _)| (*name).to_owned());
        let variables = variables.chain(image_env).chain(input.env.keys().cloned()).collect();
        let secrets = Arc::clone(&ctx.secrets);
        let (dir, step) = (Arc::clone(dir), Arc::clone(&input.step.key));
        let keeping = blocking::run("keep the trace of a step", move || -> io::Result<(Trace, Duration)> {
            let (mut trace, spent) = file.read()?;
            trace.variables = variables;
            trace.reasons.extend(reasons);
            leave_out(&mut trace, &SecretSearch::new(&secrets).map_err(io::Error::other)?);
            write(&dir, &step, &trace)?;
            Ok((trace, spent))
        });
        keeping
            .await
            .inspect_err(|error| tracing::warn!("failed to keep the trace of step {}: {error}", input.step.key))
            .ok()
    }

    /// Removes the trace of an earlier attempt, which this one may not replace.
    async fn forget(self) -> Result<(), RunnerError> {
        let path = cache::trace_path(self.dir, &self.input.step.key);
        let removed = blocking::run("remove an earlier trace", move || match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        });
        removed.await.map_err(|error| RunnerError::infrastructure("remove an earlier trace", error))
    }

    /// Records that a step ran untraced, because one of its programs traces others.
    pub(super) async fn keep_untraceable(self) {
        let (dir, step) = (Arc::clone(self.dir), Arc::clone(&self.input.step.key));
        let trace = Trace { reasons: [Reason::OwnFilter].into(), ..Trace::default() };
        let keeping = blocking::run("keep the trace of a step", move || write(&dir, &step, &trace));
        if let Err(error) = keeping.await {
            tracing::warn!("failed to keep the trace of step {}: {error}", self.input.step.key);
        }
    }
}

/// Leaves paths and reasons that contain a secret out of a trace, and says so.
fn leave_out(trace: &mut Trace, secrets: &SecretSearch) {
    let mut left_out: BTreeSet<Vec<u8>> = BTreeSet::new();
    for path in trace.entries.keys() {
        for found in secrets.find(path) {
            // The directories that end within the secret show a part of it.
            let within = (found.start + 1..found.end).filter(|&end| path[end] == b'/');
            left_out.extend(within.map(|end| path[..end].to_vec()));
            left_out.insert(path.clone());
        }
    }
    let reasons = trace.reasons.len();
    trace.reasons.retain(|reason| {
        let text = reason.to_string();
        let bytes = match reason {
            Reason::KernelFile(path) | Reason::Untraced(path) | Reason::ForeignProgram(path) => path,
            Reason::Secret(name) => name,
            _ => text.as_bytes(),
        };
        secrets.find(bytes).is_empty()
    });
    if !left_out.is_empty() || trace.reasons.len() < reasons {
        trace.entries.retain(|path, _| !left_out.contains(path));
        trace.reasons.insert(Reason::SecretPath);
    }
}

/// Writes a step's trace to the directory of a run's traces.
fn write(dir: &Path, step: &str, trace: &Trace) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let path = cache::trace_path(dir, step);
    // An earlier attempt of the step may have left one, and a reader must never see a part.
    let new = path.with_extension("new");
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(&new)?.write_all(&trace.encode()?)?;
    fs::rename(new, path)
}

/// Returns the reasons that the network gives.
fn network_reasons(limits: &Limits, is_unused: bool, destinations: &Destinations) -> Vec<Reason> {
    match limits.network {
        Network::None => Vec::new(),
        Network::Host => vec![Reason::SharedNetwork],
        Network::Private if is_unused => Vec::new(),
        Network::Private => {
            let names = destinations.names();
            // Questions for names are no connections.
            let names = if names.is_empty() { vec!["names were asked for".to_owned()] } else { names };
            names.into_iter().map(Reason::Network).collect()
        }
    }
}
