//! Programs of this machine that serve a step's files to a virtual machine.
//!
//! Such a program runs next to the files instead of in them, in the step's namespaces and with no more rights
//! than a step's command. So it dies with the engine, however the engine ends.

use std::{
    ffi::CString,
    fmt,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    sync::Arc,
};

use uuid::Uuid;

use super::{
    attempt,
    boot::{Boot, commit, failed},
    jail::{End, JailPlace, JailSpec, Root},
    own_network::{self, StepNamespace},
    runner::SandboxRunner,
    step_spec::{c_string, environment},
};
use crate::{
    event::EventBus,
    ir::Env,
    model::SnapshotRef,
    network::{self, ConnectionSink, resolver_config},
    outputs::StepOutputs,
    runner::{
        Limits, Network, RunnerError,
        image_notes::{StepNotes, no_image},
        vm::{self, MachineBase},
    },
    store::{Store, StoreError, files::make_dir},
};

/// A step's files, before and after they are changed.
#[derive(Debug)]
pub(crate) struct Files(Boot);

impl Files {
    /// Returns the environment of a command over the files. Its own variables override the image's, which
    /// override the defaults.
    ///
    /// # Errors
    /// Returns an error if a variable contains a zero byte.
    pub(crate) fn environment(&self, env: &Env) -> Result<Vec<CString>, RunnerError> {
        environment(&self.0.env, env)
    }

    /// Copies the outputs of a step. No program may be changing the files any longer.
    pub(crate) async fn copy_outputs(
        &self,
        local: &SandboxRunner,
        store: &Arc<Store>,
        outputs: &Arc<StepOutputs>,
        workdir: &str,
    ) {
        match local.zygote(store).await {
            Ok(zygote) => local.copy_boot_outputs(&zygote, (store, &self.0), outputs, workdir).await,
            Err(error) => outputs.failed(error),
        }
    }

    /// Commits the snapshot of the changed files. No program may be changing them any longer.
    ///
    /// # Errors
    /// Returns an error if the layer cannot be put in place.
    pub(crate) async fn commit(self, store: &Arc<Store>) -> Result<SnapshotRef, RunnerError> {
        commit(self.0, store).await
    }
}

/// A program to run next to a step's files, which are its working directory.
#[derive(Debug)]
pub(crate) struct Program {
    /// The path and the arguments of the program.
    pub(crate) argv: Vec<CString>,
    /// The descriptors that the program gets from [`FIRST_FD`](super::jail::FIRST_FD) on.
    pub(crate) fds: Vec<OwnedFd>,
    /// The destination of the program's output.
    pub(crate) log: OwnedFd,
    pub(crate) network: ProgramNetwork,
}

/// The network of a program.
pub(crate) enum ProgramNetwork {
    /// The machine's.
    Shared,
    /// A new one that has only a loopback device.
    Loopback,
    /// One of its own, as steps with these limits have it. Its connections go to the sink.
    Private(Limits, ConnectionSink),
}

impl ProgramNetwork {
    /// Returns the network of a program that runs a step with these limits.
    pub(crate) fn of(limits: &Limits, bus: &EventBus, step_id: Uuid) -> Self {
        match limits.network {
            Network::Host => Self::Shared,
            Network::None => Self::Loopback,
            Network::Private => Self::Private(limits.clone(), own_network::journal(bus, step_id, None)),
        }
    }
}

impl fmt::Debug for ProgramNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shared => "Shared",
            Self::Loopback => "Loopback",
            Self::Private(..) => "Private",
        })
    }
}

/// A running program. Dropping it kills the program with all its processes.
#[derive(Debug)]
pub(crate) struct Serving {
    step: attempt::Step,
    /// The program's own network, if it has one.
    network: Option<network::Network>,
}

impl Serving {
    /// Waits for the program's end, and returns a description of how it ended.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(crate) async fn ended(&mut self) -> String {
        match self.step.ended().await {
            Ok(Ok(End::Exited { code })) => format!("it exited with code {code}"),
            Ok(Ok(_)) => "it was killed".into(),
            Ok(Err(error)) => format!("failed to {error}"),
            Err(error) => error.to_string(),
        }
    }

    /// Ends the program, and returns when no process of it is left.
    pub(crate) async fn end(self) {
        let Self { mut step, network } = self;
        step.kill();
        // It does not matter how the program ended.
        let ended = step.ended().await;
        if let Some(network) = network.filter(|_| ended.is_ok()) {
            network.end().await;
        }
    }
}

impl SandboxRunner {
    /// Assembles the files that a step starts from.
    ///
    /// # Errors
    /// Returns an error if the files cannot be assembled.
    pub(crate) async fn files(&self, context: &vm::BootContext, notes: StepNotes<'_>) -> Result<Files, RunnerError> {
        let zygote = self.zygote(&context.store).await?;
        let here = self.boot_context(&context.store, &zygote);
        let (parent, base) = match &context.base {
            MachineBase::Snapshot { snapshot, .. } => (Some(Arc::clone(snapshot)), snapshot.base.clone()),
            MachineBase::Image(image) => {
                let fetched = Box::pin(self.images.fetch(&context.store, image, zygote.id_map(), &notes)).await;
                (None, fetched.map_err(no_image)?)
            }
        };
        here.boot_over(&context.source, parent, base, false, None).await.map(Files)
    }

    /// Starts a program next to a step's files, or next to an empty directory if there are none.
    ///
    /// # Errors
    /// Returns an error if the sandbox cannot be set up. [`Serving::ended`] reports a program that cannot be
    /// started.
    ///
    /// # Cancel safety
    /// If the future is dropped, the program is killed.
    pub(crate) async fn serve(
        &self,
        store: &Arc<Store>,
        files: Option<&Files>,
        program: Program,
    ) -> Result<Serving, RunnerError> {
        let zygote = self.zygote(store).await?;
        let place = match files {
            Some(Files(boot)) => boot.staging.work().join("served"),
            None => store.instance().new_tmp(),
        };
        make_dir(&place).map_err(failed("make a directory to serve"))?;
        let path = |path: &Path| c_string("the store's path", path.as_os_str().as_bytes());
        let (root, binds) = match files {
            Some(Files(boot)) => (Root::Overlay(boot.root.clone()), boot.binds.clone()),
            None => (Root::Dir(path(&place)?), Vec::new()),
        };
        let is_shared = matches!(program.network, ProgramNetwork::Shared);
        let network = match program.network {
            ProgramNetwork::Private(limits, sink) => self.network(&zygote, &limits, sink).await?,
            ProgramNetwork::Shared | ProgramNetwork::Loopback => None,
        };
        let spec = JailSpec {
            resolver: network.is_some().then(resolver_config),
            place: JailPlace::Beside,
            binds,
            workdir: path(&place)?,
            argv: program.argv,
            env: environment(&Env::new(), &Env::new())?,
            ..self.jail(&zygote, &place, root)?
        };
        let null = std::fs::File::open("/dev/null").map_err(|error| {
            let path = "/dev/null".into();
            failed("start a program")(StoreError::Io { doing: "open", path, source: error })
        })?;
        let mut fds: Vec<BorrowedFd<'_>> = vec![program.log.as_fd(), program.log.as_fd(), null.as_fd()];
        fds.extend(program.fds.iter().map(AsFd::as_fd));
        let namespace = match &network {
            Some(network) => StepNamespace::Given(network.namespace()),
            None if is_shared => StepNamespace::Shared,
            None => StepNamespace::Loopback,
        };
        let started = attempt::start_on(&zygote, &spec, namespace, &fds).await;
        let started = started.map_err(|error| RunnerError::infrastructure("ask the sandbox's helper", error))?;
        started.map(|step| Serving { step, network }).map_err(attempt::setup_error)
    }
}
