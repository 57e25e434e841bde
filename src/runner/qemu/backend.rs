//! The QEMU implementation of [`VmBackend`].

use std::{collections::HashMap, num::NonZeroUsize, path::PathBuf, sync::Arc};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::sync::OnceCell;

use super::{
    accel::Accelerator,
    error::NoMachine,
    launch::Host,
    machine::Machine,
    machine_size::{MachineSize, SizeDefaults},
    programs::{Places, Programs},
    template::{Template, Templates},
};
use crate::{
    blocking,
    model::SnapshotRef,
    runner::{
        CacheIdentity, ImageSupport, Limits, Probe, RunnerCapabilities, RunnerError, StepContext, StepRunner,
        image_notes::StepNotes,
        sandbox::{ProgramNetwork, SandboxBuilder, SandboxRunner},
        vm::{BootContext, EndedStep, Output, VmBackend},
    },
    store::{Store, StoreHandle},
    sync::Mutex,
};

/// A backend that creates virtual machines with QEMU.
#[derive(Debug)]
pub struct Qemu {
    places: Places,
    defaults: SizeDefaults,
    /// The sandbox that assembles a step's files, and runs QEMU next to them.
    local: SandboxRunner,
    store: StoreHandle,
    programs: OnceCell<Arc<Programs>>,
    place: Option<PathBuf>,
    templates: Mutex<HashMap<MachineSize, Slot>>,
}

/// The template of a size, if it exists. Locked while the template is made.
type Slot = Arc<tokio::sync::Mutex<Option<Template>>>;

/// A builder for a [`Qemu`].
#[derive(Debug, Clone, Default)]
pub struct QemuBuilder {
    places: Places,
    defaults: SizeDefaults,
    local: SandboxBuilder,
    place: Option<PathBuf>,
}

impl QemuBuilder {
    /// Runs this `qemu-system-x86_64`, instead of the one on the `PATH`.
    #[must_use]
    pub fn qemu(mut self, program: impl Into<PathBuf>) -> Self {
        self.places.qemu = Some(program.into());
        self
    }

    /// Runs this `virtiofsd`, instead of the one on the `PATH` or in the directories that distributions use.
    #[must_use]
    pub fn virtiofsd(mut self, program: impl Into<PathBuf>) -> Self {
        self.places.virtiofsd = Some(program.into());
        self
    }

    /// Boots this kernel (`vmlinuz-VERSION`), instead of the newest in `/boot`. By default a kernel for
    /// virtual machines is preferred.
    #[must_use]
    pub fn kernel(mut self, image: impl Into<PathBuf>) -> Self {
        self.places.kernel = Some(image.into());
        self
    }

    /// Takes the kernel's modules from this directory, instead of `/lib/modules/VERSION`.
    #[must_use]
    pub fn modules(mut self, dir: impl Into<PathBuf>) -> Self {
        self.places.modules = Some(dir.into());
        self
    }

    /// Runs this static `hm-step` in machines, instead of the one found by default: see
    /// [`step::locate`](crate::step::locate).
    #[must_use]
    pub fn guest(mut self, program: impl Into<PathBuf>) -> Self {
        self.places.guest = Some(program.into());
        self
    }

    /// Sets the memory of machines, in bytes, for steps that do not request more. The default is 2 GiB.
    /// Memory that no step touches has no cost.
    #[must_use]
    pub fn memory(mut self, bytes: u64) -> Self {
        self.defaults.memory_bytes = Some(bytes.max(MIN_MEMORY_BYTES).next_multiple_of(1 << 20));
        self
    }

    /// Sets the number of processors of machines, for steps that do not request more. The default is the
    /// number of this machine's processors.
    #[must_use]
    pub fn cpus(mut self, cpus: NonZeroUsize) -> Self {
        self.defaults.cpus = Some(cpus);
        self
    }

    /// Keeps templates of booted machines in this directory, instead of in the store's directory. Each takes
    /// some 150 MB.
    #[must_use]
    pub fn templates(mut self, dir: impl Into<PathBuf>) -> Self {
        self.place = Some(dir.into());
        self
    }

    /// Reads and writes layers in the store as this sandbox's steps would. The sandbox should use the same
    /// store.
    #[must_use]
    pub fn local(mut self, sandbox: SandboxBuilder) -> Self {
        self.local = sandbox;
        self
    }

    /// Builds a runner on this backend, with layers in `store`. Nothing is opened or started yet.
    #[must_use]
    pub fn build(self, store: impl Into<StoreHandle>) -> super::QemuRunner {
        let store = store.into();
        let backend = Qemu {
            places: self.places,
            defaults: self.defaults,
            local: self.local.store(store.clone()).build(),
            store: store.clone(),
            programs: OnceCell::new(),
            place: self.place,
            templates: Mutex::default(),
        };
        super::QemuRunner::new(backend, store)
    }
}

/// The memory that a kernel and the guest need, in bytes.
const MIN_MEMORY_BYTES: u64 = 384 << 20;

impl Qemu {
    /// Returns a builder for a backend with custom settings.
    #[must_use]
    pub fn builder() -> QemuBuilder {
        QemuBuilder::default()
    }

    /// Boots a machine of the default size, or checks for one that booted before, and returns its
    /// accelerator.
    ///
    /// # Errors
    /// Returns an error if there is no machine.
    pub async fn trial(&self) -> Result<Accelerator, RunnerError> {
        self.boxed_trial().await
    }

    fn boxed_trial(&self) -> BoxFuture<'_, Result<Accelerator, RunnerError>> {
        async move {
            let store = self.store.get().map_err(|error| RunnerError::infrastructure("open the store", error))?;
            let size = MachineSize::of(&Limits::default(), &self.defaults);
            Ok(self.template(&store, self.programs().await?, size).await?.accelerator)
        }
        .boxed()
    }

    /// Returns the directory of the templates.
    fn place(&self, store: &Store) -> PathBuf {
        self.place.clone().unwrap_or_else(|| store.vm_templates().dir())
    }

    async fn programs(&self) -> Result<&Arc<Programs>, RunnerError> {
        let places = || self.places.clone();
        let find = async || {
            let places = places();
            blocking::run("look for QEMU", move || Ok(Arc::new(Programs::find(&places)?))).await
        };
        self.programs.get_or_try_init(find).await
    }

    async fn template(
        &self,
        store: &Arc<Store>,
        programs: &Arc<Programs>,
        size: MachineSize,
    ) -> Result<Template, NoMachine> {
        let slot = Arc::clone(self.templates.lock().entry(size).or_default());
        let mut known = slot.lock().await;
        match &*known {
            Some(template) if template.is_there() => Ok(template.clone()),
            _ => {
                let place = self.place(store);
                let templates = Templates { place: &place, local: &self.local, store, programs };
                let template = templates.get(size).await?;
                Ok(known.insert(template).clone())
            }
        }
    }
}

/// The futures of a step, boxed: see `docs/design/runners.md`, section Compile time.
impl Qemu {
    fn boxed_boot<'a>(
        &'a self,
        context: &'a BootContext,
        limits: &'a Limits,
        output: &'a Output<'a>,
    ) -> BoxFuture<'a, Result<Machine, RunnerError>> {
        async move {
            let programs = self.programs().await?;
            let notes = StepNotes { bus: output.bus, step_id: output.step_id };
            let files = self.local.files(context, notes).await?;
            let started = async {
                let template = self.template(&context.store, programs, MachineSize::of(limits, &self.defaults)).await?;
                let host = Host { local: &self.local, store: &context.store, programs };
                let network = ProgramNetwork::of(limits, output.bus, output.step_id);
                Ok::<_, RunnerError>(Machine::start(host, &template, files, (limits, network)).await?)
            };
            output.booting(started).await
        }
        .boxed()
    }

    fn boxed_probe(&self) -> BoxFuture<'_, Probe> {
        async move {
            if let unusable @ Probe::Unusable { .. } = self.local.probe().await {
                return unusable;
            }
            match (self.programs().await, self.store.get()) {
                (Ok(_), Ok(store)) => {
                    let accelerator = Accelerator::first_choice(&self.place(&store), &store);
                    Probe::Usable { note: Some(accelerator.to_string()) }
                }
                (Err(error), _) => {
                    Probe::Unusable { reason: error.to_line(), hint: "or use another runner, such as `sandbox`".into() }
                }
                (_, Err(error)) => Probe::Unusable {
                    reason: format!("the store cannot be used: {}", error.to_line()),
                    hint: "set HM_CACHE_DIR to a directory that you can write to".into(),
                },
            }
        }
        .boxed()
    }
}

impl VmBackend for Qemu {
    const NAME: &'static str = "vm";
    /// Since 2, steps have a network of their own by default.
    const CACHE_VERSION: u32 = 2;
    const EGRESS: bool = true;
    const LAYERS: bool = true;
    type Vm = Machine;

    async fn create(&self, image: &str, _: &Limits) -> Result<Machine, RunnerError> {
        Err(RunnerError::unsupported(format!("a machine of `{image}` needs the source as a layer")))
    }

    async fn restore(&self, _: &str, _: &Limits) -> Result<Option<Machine>, RunnerError> {
        // All snapshots belong to the store.
        Ok(None)
    }

    async fn boot(
        &self,
        _: &StepContext,
        context: &BootContext,
        limits: &Limits,
        output: &Output<'_>,
    ) -> Result<Machine, RunnerError> {
        self.boxed_boot(context, limits, output).await
    }

    fn host_dirs(&self) -> &[PathBuf] {
        self.local.host_dirs()
    }

    async fn cache_identity(&self, _: Arc<Store>, image: Option<&str>) -> Result<Option<CacheIdentity>, RunnerError> {
        self.local.cache_identity(image).await
    }

    async fn remove(&self, _: &str) -> Result<(), RunnerError> {
        Ok(())
    }

    async fn copy_outputs(&self, machine: &mut Machine, step: EndedStep<'_>) {
        machine.stop().await.copy_outputs(&self.local, step.store, step.outputs, step.workdir).await;
    }

    async fn copy_snapshot_outputs(&self, ctx: &StepContext, _: &Arc<Store>, snapshot: SnapshotRef) {
        self.local.copy_snapshot_outputs(ctx, snapshot).await;
    }

    async fn probe(&self) -> Probe {
        self.boxed_probe().await
    }

    async fn probe_network(&self) -> Probe {
        self.local.probe_network().await
    }

    fn capabilities(&self) -> RunnerCapabilities {
        let RunnerCapabilities { ownership, xattrs, .. } = self.local.capabilities();
        RunnerCapabilities {
            ownership,
            xattrs,
            isolation: true,
            limits: true,
            network: true,
            private_network: true,
            outputs: true,
            images: ImageSupport::All,
            ..RunnerCapabilities::default()
        }
    }
}
