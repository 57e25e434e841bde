//! Services beside a step: started before it in its network namespace, and ended after it.

use std::{collections::VecDeque, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    attempt::{self, Control, OutputSink, Supervised},
    boot::{Boot, BootContext},
    jail::{End, JailSpec, Root},
    own_network::StepNamespace,
    runner::{SandboxRunner, c_string, environment},
    step_output::StepOutput,
};
use crate::{
    awake,
    event::EventBus,
    image::stored::command_of,
    ir::Env,
    model::StdStream,
    network::resolver_config,
    runner::{
        ExecutorInput, Limits, Ready, RunnerError, ServiceArg, StepContext,
        image_notes::{StepNotes, no_image},
    },
    store::Base,
    sync::Mutex,
    userns::Zygote,
};

/// How long services have to become ready.
const START_LIMIT: Duration = Duration::from_secs(30);

/// The number of lines of a service that are repeated when it has failed.
const LAST_LINES: usize = 10;

/// A longer line is cut into pieces.
const MAX_LINE_BYTES: usize = 64 << 10;

/// The exit code of a step whose service failed.
const FAILED: i32 = 1;

/// A service that is about to start.
#[derive(Debug)]
pub(super) struct Service {
    name: String,
    spec: JailSpec,
    /// Its files, which are discarded with this.
    _boot: Boot,
    /// The line that it prints when it is ready, if it has a condition.
    mark: Option<String>,
}

impl SandboxRunner {
    /// Runs the step of `spec` between its services.
    pub(super) async fn with_services(
        &self,
        (context, limits): (&BootContext<'_>, &Limits),
        (spec, namespace): (&JailSpec, StepNamespace<'_>),
        ctx: &StepContext,
        input: &ExecutorInput,
    ) -> Result<Supervised, RunnerError> {
        // The step's cache directories are its own.
        let context = &self.boot_context(context.store, context.zygote);
        let mut services = Vec::new();
        for (name, arg) in &limits.services {
            services.push(self.service(context, ctx, input, (name.as_str(), arg)).await?);
        }
        run_with(&services, context.zygote, (spec, namespace), ctx, input.step_id).await
    }

    async fn service(
        &self,
        context: &BootContext<'_>,
        ctx: &StepContext,
        input: &ExecutorInput,
        (name, arg): (&str, &ServiceArg),
    ) -> Result<Service, RunnerError> {
        let failed = |error| RunnerError::infrastructure("freeze the source", error);
        let source = ctx.archives.freeze(context.store).await.map_err(failed)?;
        let notes = StepNotes { bus: &ctx.event_bus, step_id: input.step_id };
        let id_map = context.zygote.id_map();
        let base = Box::pin(context.images.fetch(context.store, &arg.image, id_map, &notes)).await.map_err(no_image)?;
        let command = match &arg.cmd {
            Some(cmd) => vec!["/bin/sh".to_owned(), "-c".to_owned(), cmd.clone()],
            None => command_of(context.store, &base, id_map).map_err(no_image)?.ok_or_else(|| {
                RunnerError::unsupported(format!("service `{name}` needs a `cmd`: image {} has none", arg.image))
            })?,
        };
        let build = (base == Base::Host).then(|| context.overlays.of_build(ctx, input.run_id));
        let boot = context.boot_over(&source, None, base, false, build).await?;
        let mark = arg.ready.is_some().then(|| format!("hm: ready {}", Uuid::new_v4()));
        let jail = self.jail(context.zygote, context.store.dir(), Root::Overlay(boot.root.clone()))?;
        let mut argv = vec![c"/bin/sh".into(), c"-c".into(), c_string("a command", script(arg, mark.as_deref()))?];
        argv.push(c_string("a service's name", name)?);
        for part in command {
            argv.push(c_string("a service's command", part)?);
        }
        let env: Env = arg.env.clone().into_iter().collect();
        let spec = JailSpec {
            binds: boot.binds.clone(),
            resolver: Some(resolver_config()),
            argv,
            env: environment(&boot.env, &env)?,
            ..jail
        };
        Ok(Service { name: name.to_owned(), spec, _boot: boot, mark })
    }
}

/// Returns the script that runs a service. Its arguments are the service's command.
fn script(arg: &ServiceArg, mark: Option<&str>) -> String {
    let (Some(ready), Some(mark)) = (&arg.ready, mark) else { return "exec \"$@\"".into() };
    let check = match ready {
        Ready::Command(command) => format!("ready() {{ ( {command}\n) > /dev/null 2>&1 < /dev/null; }}"),
        // State 0A is a listener.
        Ready::Port(port) => format!(
            "ready() {{ cat /proc/net/tcp /proc/net/tcp6 2> /dev/null | while read -r _ local _ state _; do \
             case \"$local $state\" in *:{port:04X}' 0A') exit 1;; esac; done && return 1; return 0; }}"
        ),
    };
    format!("{check}\n( until ready; do sleep 0.2 2> /dev/null || sleep 1; done; echo '{mark}' ) &\nexec \"$@\"")
}

/// Runs a step between its services. Returns when every process of both is dead.
///
/// # Cancel safety
/// If the future is dropped, every process of the step and of its services gets SIGKILL.
async fn run_with(
    services: &[Service],
    zygote: &Zygote,
    (step, namespace): (&JailSpec, StepNamespace<'_>),
    ctx: &StepContext,
    step_id: Uuid,
) -> Result<Supervised, RunnerError> {
    let output = &StepOutput { bus: &ctx.event_bus, step_id };
    let stop = CancellationToken::new();
    let sinks: Vec<ServiceOutput<'_>> =
        services.iter().map(|service| ServiceOutput::new(service, &ctx.event_bus, step_id)).collect();
    let attempts = services.iter().zip(&sinks).map(|(service, sink)| {
        let control = Control { cancel: &stop, grace: ctx.grace };
        async move {
            let end = attempt::run(zygote, &service.spec, namespace, control, sink).await;
            let rest = sink.rest();
            if !rest.is_empty() {
                sink.step.output(StdStream::Stdout, &rest).await;
            }
            (sink, end.map(|ended| ended.end))
        }
    });
    let mut running: FuturesUnordered<_> = attempts.collect();
    let mut failure = None;
    let mut limit = std::pin::pin!(awake::sleep(START_LIMIT));
    for (service, sink) in services.iter().zip(&sinks) {
        tokio::select! {
            () = sink.ready() => {}
            ended = running.next() => failure = ended.map(Failure::of),
            () = &mut limit => failure = Some(Failure::Late(&service.name, sink.last())),
            () = ctx.cancel.cancelled() => failure = Some(Failure::Interrupted),
        }
        if failure.is_some() {
            break;
        }
    }
    let without_step = |end| Ok(Supervised { end, usage: None, ended_all: true });
    let mut ended = without_step(End::Interrupted);
    if failure.is_none() {
        let cancel = ctx.cancel.child_token();
        let control = Control { cancel: &cancel, grace: ctx.grace };
        let mut attempt = std::pin::pin!(attempt::run(zygote, step, namespace, control, output));
        ended = loop {
            tokio::select! {
                // A step that has ended needs its services no longer.
                biased;
                ended = &mut attempt => break ended,
                Some(service) = running.next(), if failure.is_none() => {
                    failure = Some(Failure::of(service));
                    cancel.cancel();
                }
            }
        };
        if failure.is_some() && !matches!(ended, Ok(Supervised { end: End::Interrupted, .. })) {
            // It ended at the same moment.
            failure = None;
        }
    }
    stop.cancel();
    while let Some((sink, end)) = running.next().await {
        if let Err(error) = end {
            tracing::debug!(%error, service = sink.name, "failed to end a service");
        }
    }
    match failure {
        None => ended,
        Some(Failure::Interrupted) => without_step(End::Interrupted),
        _ if ctx.cancel.is_cancelled() => without_step(End::Interrupted),
        Some(Failure::Broken(error)) => Err(error),
        Some(failure) => {
            output.output(StdStream::Stderr, failure.text().as_bytes()).await;
            without_step(End::Exited { code: FAILED })
        }
    }
}

/// Why a step with services does not run to its end.
#[derive(Debug)]
enum Failure<'a> {
    /// The attempt must end.
    Interrupted,
    /// A service could not be run.
    Broken(RunnerError),
    /// A service is not ready in time. These are its last lines.
    Late(&'a str, Vec<String>),
    /// A service has ended. These are its last lines.
    Ended(&'a str, End, Vec<String>),
}

impl<'a> Failure<'a> {
    fn of((sink, end): (&'a ServiceOutput<'a>, Result<End, RunnerError>)) -> Self {
        match end {
            Ok(end) => Self::Ended(sink.name, end, sink.last()),
            Err(error) => Self::Broken(error),
        }
    }

    /// Returns the report for the step's log.
    fn text(&self) -> String {
        let (what, lines) = match self {
            Self::Late(name, lines) => {
                (format!("service `{name}` was not ready within {} s", START_LIMIT.as_secs()), lines.as_slice())
            }
            Self::Ended(name, End::Exited { code }, lines) => {
                (format!("service `{name}` exited with {code} before the step had ended"), lines.as_slice())
            }
            Self::Ended(name, _, lines) => {
                (format!("service `{name}` was killed before the step had ended"), lines.as_slice())
            }
            Self::Interrupted | Self::Broken(_) => (String::new(), &[][..]),
        };
        let mut text = format!("error: {what}");
        text.push_str(if lines.is_empty() { "; it printed nothing\n" } else { "; its last lines:\n" });
        lines.iter().for_each(|line| text.push_str(&format!("  {line}\n")));
        text
    }
}

/// A service's output, as lines of the step's log.
struct ServiceOutput<'a> {
    name: &'a str,
    mark: Option<&'a str>,
    step: StepOutput<'a>,
    state: Mutex<OutputState>,
    is_ready: Notify,
}

#[derive(Default)]
struct OutputState {
    /// The unfinished lines of both streams.
    open: [Vec<u8>; 2],
    last: VecDeque<String>,
}

impl<'a> ServiceOutput<'a> {
    fn new(service: &'a Service, bus: &'a EventBus, step_id: Uuid) -> Self {
        let (name, mark) = (&*service.name, service.mark.as_deref());
        Self { name, mark, step: StepOutput { bus, step_id }, state: Mutex::default(), is_ready: Notify::new() }
    }

    /// Waits until the service is ready. Completes once.
    async fn ready(&self) {
        if self.mark.is_some() {
            self.is_ready.notified().await;
        }
    }

    fn last(&self) -> Vec<String> {
        self.state.lock().last.iter().cloned().collect()
    }

    /// Takes in output. Returns the finished lines, each with the service's name.
    fn lines(&self, stream: StdStream, bytes: &[u8]) -> Vec<u8> {
        let mut state = self.state.lock();
        let OutputState { open, last } = &mut *state;
        let open = &mut open[usize::from(stream == StdStream::Stderr)];
        let mut out = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            open.extend_from_slice(piece);
            if open.last() != Some(&b'\n') && open.len() < MAX_LINE_BYTES {
                continue;
            }
            let line = open.strip_suffix(b"\n").unwrap_or(open);
            let before = self.mark.and_then(|mark| line.strip_suffix(mark.as_bytes()));
            if before.is_some() {
                self.is_ready.notify_one();
            }
            if before.is_none_or(|before| !before.is_empty()) {
                self.line(before.unwrap_or(line), last, &mut out);
            }
            open.clear();
        }
        out
    }

    /// Returns the unfinished lines of a service that has ended.
    fn rest(&self) -> Vec<u8> {
        let mut state = self.state.lock();
        let OutputState { open, last } = &mut *state;
        let mut out = Vec::new();
        for open in open.iter_mut().filter(|open| !open.is_empty()) {
            self.line(open, last, &mut out);
            open.clear();
        }
        out
    }

    fn line(&self, line: &[u8], last: &mut VecDeque<String>, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("[{}] ", self.name).as_bytes());
        out.extend_from_slice(line);
        out.push(b'\n');
        last.push_back(String::from_utf8_lossy(&line[..line.len().min(1000)]).into_owned());
        if last.len() > LAST_LINES {
            last.pop_front();
        }
    }
}

impl OutputSink for ServiceOutput<'_> {
    async fn output(&self, stream: StdStream, bytes: &[u8]) {
        let lines = self.lines(stream, bytes);
        if !lines.is_empty() {
            self.step.output(stream, &lines).await;
        }
    }
}
