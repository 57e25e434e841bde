//! The backend: what all containers of a runner share.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bollard::Docker as Client;
use tokio::sync::OnceCell;
use uuid::Uuid;

use super::{
    collect, connection,
    container::Container,
    footing::{Footing, FootingBase, Footings},
    images::{self, DaemonImage, is_the_stores},
    load::{self, Part},
    marks::{self, Marks},
    remover::Remover,
    sweep::{self, Swept},
    trouble,
};
use crate::{
    event::StdStream,
    ir::Env,
    runner::{
        CacheIdentity, ImageSupport, Limits, Probe, RunnerCapabilities, RunnerError, SnapshotRef, StepContext,
        vm::{Ground, GroundBase, Output, VmBackend},
    },
    store::{Base, IdMap, ImageOptions, Images, Notes, Snapshot, Store, StoreHandle, image_identity},
};

/// Makes containers at a Docker or Podman daemon.
#[derive(Debug)]
pub struct Docker {
    shared: Arc<Shared>,
}

/// Makes a [`Docker`].
#[derive(Debug, Clone, Default)]
pub struct DockerBuilder {
    host: Option<String>,
    images: ImageOptions,
    #[cfg(target_os = "linux")]
    local: crate::runner::sandbox::SandboxBuilder,
}

/// What all containers share.
#[derive(Debug)]
pub(super) struct Shared {
    host: Option<String>,
    options: ImageOptions,
    images: Images,
    connection: OnceCell<Connection>,
    runs: Mutex<HashMap<Uuid, Arc<Footings>>>,
    /// Images that are snapshots of their own, by id.
    own: Mutex<HashMap<String, Arc<Footing>>>,
    /// What images of the daemon became in the store, by id.
    bases: Mutex<HashMap<String, Arc<OnceCell<Base>>>>,
    pub(super) remover: Remover,
    /// Knows how ids are mapped in this machine's steps, with which containers share layers.
    #[cfg(target_os = "linux")]
    local: crate::runner::sandbox::SandboxRunner,
}

/// The daemon, once this process has talked to it.
#[derive(Debug)]
struct Connection {
    client: Client,
    marks: Marks,
}

impl DockerBuilder {
    /// Talks to the daemon there (`unix://PATH`, or `tcp://HOST:PORT` without encryption), instead of the one that
    /// `DOCKER_HOST` names, or whose socket lies at a usual place.
    #[must_use]
    pub fn host(mut self, host: impl Into<String>) -> Self {
        self.host = Some(host.into());
        self
    }

    /// Finds images in this way. The daemon pulls with its own settings.
    #[must_use]
    pub fn images(mut self, options: ImageOptions) -> Self {
        self.images = options;
        self
    }

    /// Reads and writes layers in the store as this sandbox's steps would. It should be on the same store.
    #[cfg(target_os = "linux")]
    #[must_use]
    pub fn local(mut self, sandbox: crate::runner::sandbox::SandboxBuilder) -> Self {
        self.local = sandbox;
        self
    }

    /// A runner on this backend, with layers in `store`. Nothing is connected or opened yet.
    #[must_use]
    pub fn build(self, store: impl Into<StoreHandle>) -> super::DockerRunner {
        let store = store.into();
        let shared = Shared {
            host: self.host,
            images: Images::new(self.images.clone()),
            options: self.images,
            connection: OnceCell::new(),
            runs: Mutex::default(),
            own: Mutex::default(),
            bases: Mutex::default(),
            remover: Remover::default(),
            #[cfg(target_os = "linux")]
            local: self.local.store(store.clone()).build(),
        };
        super::DockerRunner::new(Docker { shared: Arc::new(shared) }, store)
    }
}

impl Docker {
    /// A backend with settings of its own.
    #[must_use]
    pub fn builder() -> DockerBuilder {
        DockerBuilder::default()
    }

    /// Removes what dead processes of this store left at the daemon. The first step of a process does that, too.
    ///
    /// # Errors
    /// Where there is no daemon, or it does not let go of something.
    pub async fn sweep(&self, store: &Arc<Store>) -> Result<Swept, RunnerError> {
        let client = connection::connect(&connection::place(self.shared.host.as_deref())).await;
        let client = client.map_err(trouble::daemon("talk to the daemon"))?;
        let marks = Marks::of(store).map_err(trouble::store("read the store's name"))?;
        let swept = sweep::remove(&client, &marks.of_store(), |process| !store.is_open_in(process)).await;
        swept.map_err(trouble::daemon("remove what dead processes left"))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// The daemon. The first to ask for it removes what dead processes left there.
    async fn connection(&self, store: &Arc<Store>) -> Result<&Connection, RunnerError> {
        let connecting = self.connection.get_or_try_init(async || {
            let place = connection::place(self.host.as_deref());
            let client = connection::connect(&place).await.map_err(trouble::daemon("talk to the daemon"))?;
            let marks = Marks::of(store).map_err(trouble::store("read the store's name"))?;
            match sweep::remove(&client, &marks.of_store(), |process| !store.is_open_in(process)).await {
                Ok(swept) if swept == Swept::default() => {}
                Ok(Swept { containers, images }) => {
                    tracing::info!(containers, images, "left by killed runs, and removed")
                }
                Err(error) => tracing::warn!(%error, "what killed runs left at the daemon stays"),
            }
            Ok(Connection { client, marks })
        });
        connecting.await
    }

    /// The labels of what is made for a run.
    pub(super) fn labels(&self, run: Uuid) -> Result<HashMap<String, String>, RunnerError> {
        let connection = self.connection.get();
        let connection = connection.ok_or_else(|| RunnerError::unsupported("nobody has talked to the daemon yet"))?;
        Ok(connection.marks.labels(run))
    }

    /// What a run has at the daemon. It goes with the run.
    fn run(self: &Arc<Self>, ctx: &StepContext, run: Uuid) -> Arc<Footings> {
        let mut runs = lock(&self.runs);
        Arc::clone(runs.entry(run).or_insert_with(|| {
            let shared = Arc::clone(self);
            ctx.at_build_end(async move { shared.end_run(run).await });
            Arc::default()
        }))
    }

    async fn end_run(&self, run: Uuid) {
        lock(&self.runs).remove(&run);
        lock(&self.own).retain(|_, footing| footing.run != run);
        let Some(Connection { client, .. }) = self.connection.get() else { return };
        match sweep::remove(client, &marks::of_run(run), |_| true).await {
            Ok(swept) => tracing::debug!(?swept, %run, "removed at the build's end"),
            Err(error) => {
                tracing::warn!(%error, "what the build made at the daemon is left for the next one to remove")
            }
        }
    }

    /// Takes note of an image that is a snapshot.
    pub(super) fn keep(&self, footing: Footing) {
        lock(&self.own).insert(footing.image.clone(), Arc::new(footing));
    }

    /// Takes note of an image that has what a snapshot of the store has, so that its children need not load it.
    pub(super) fn put(&self, name: &SnapshotRef, image: Footing, base: Base, snapshot: &Snapshot) {
        let Some(footings) = lock(&self.runs).get(&image.run).map(Arc::clone) else { return };
        let (known, layers) = (image.layer_count(), snapshot.layers.clone());
        footings.put(&name.0, Arc::new(Footing { base: FootingBase::Store(base), known, layers, made: 0, ..image }));
    }

    /// Forgets an image that the daemon does not have any more.
    pub(super) fn forget(&self, footing: &Footing) {
        if let Some(footings) = lock(&self.runs).get(&footing.run) {
            footings.forget(&footing.image);
        }
    }

    /// How ids are mapped in the layers that the store gets.
    async fn id_map(&self, store: &Arc<Store>) -> Result<IdMap, RunnerError> {
        #[cfg(target_os = "linux")]
        return self.local.prepare_trees(store).await;
        #[cfg(not(target_os = "linux"))]
        {
            let _ = store;
            Ok(IdMap::Single)
        }
    }

    async fn mode(&self) -> &'static str {
        #[cfg(target_os = "linux")]
        let id_map = self.local.predicted_id_map().await;
        #[cfg(not(target_os = "linux"))]
        let id_map = IdMap::Single;
        match id_map {
            IdMap::Root => "root",
            IdMap::Range => "range",
            IdMap::Single => "single",
        }
    }

    /// The base of a footing as the store's own, taken there where only the daemon has it.
    pub(super) async fn base_in_store(
        &self,
        client: &Client,
        store: &Arc<Store>,
        footing: &Footing,
    ) -> Result<Base, RunnerError> {
        match &footing.base {
            FootingBase::Store(base) => Ok(base.clone()),
            FootingBase::Daemon(id) => self.daemon_base(client, store, id, footing.id_map).await,
        }
    }

    async fn daemon_base(
        &self,
        client: &Client,
        store: &Arc<Store>,
        id: &str,
        id_map: IdMap,
    ) -> Result<Base, RunnerError> {
        let cell = Arc::clone(lock(&self.bases).entry(id.to_owned()).or_default());
        let base = cell.get_or_try_init(async || {
            // Most daemons call an image as the store does.
            if let Ok(digest) = id.parse()
                && store.has_whole_image(&digest, id_map)
            {
                return Ok(Base::Image(digest));
            }
            let saved = collect::save(client, store, id).await?;
            saved.keep(id_map).await.map_err(trouble::image("take the image home"))
        });
        base.await.cloned()
    }

    /// Makes the image that containers start from.
    async fn make_footing(
        &self,
        connection: &Connection,
        ground: &Ground,
        output: &Output<'_>,
    ) -> Result<Arc<Footing>, RunnerError> {
        let (store, client) = (&ground.store, &connection.client);
        let id_map = self.id_map(store).await?;
        let (base, image, layers) = match &ground.base {
            GroundBase::Image(name) if &**name == "host" => return Err(no_host()),
            GroundBase::Image(name) if is_the_stores(name) => {
                let notes = StepNotes(*output);
                let base = Box::pin(self.images.fetch(store, name, id_map, &notes)).await;
                (FootingBase::Store(base.map_err(trouble::image("get the image"))?), None, Vec::new())
            }
            GroundBase::Image(name) => {
                let image = images::get(client, name, self.options.pull, output).await?;
                (FootingBase::Daemon(image.id.clone()), Some(image), Vec::new())
            }
            GroundBase::Snapshot { snapshot, delta, .. } => {
                if snapshot.id_map != id_map {
                    let why = "the snapshot to start from was made with another way of mapping ids: run its step again";
                    return Err(RunnerError::unsupported(why));
                }
                let image = match &snapshot.base {
                    Base::Host => return Err(no_host()),
                    Base::Rootfs(_) => None,
                    Base::Image(digest) => images::find(client, &digest.to_string()).await?,
                };
                let layers = delta.iter().chain(&snapshot.layers).cloned().collect();
                (FootingBase::Store(snapshot.base.clone()), image, layers)
            }
        };
        let above = ground.source.roots.iter().rev().cloned();
        let above: Vec<Part> =
            above.chain(layers.iter().rev().map(|layer| store.layer_dir(layer))).map(Part::Dir).collect();
        let labels = connection.marks.labels(ground.run);
        let loaded = match &image {
            Some(DaemonImage { diff_ids, .. }) => {
                let parts = diff_ids.iter().map(|diff_id| Part::There(*diff_id)).chain(above.iter().cloned()).collect();
                match load::load(client, store, parts, id_map, labels.clone()).await {
                    Ok(id) => Some((id, diff_ids.len() + above.len())),
                    // Not every daemon takes an image without the layers that it has.
                    Err(error) => {
                        tracing::debug!(error = error.to_line(), "the image is loaded with all its layers");
                        None
                    }
                }
            }
            None => None,
        };
        let mut env = image.map_or_else(Env::new, |image| image.env);
        let (image, known) = match loaded {
            Some(loaded) => loaded,
            None => {
                let whole = match &base {
                    FootingBase::Store(base) => base.clone(),
                    FootingBase::Daemon(id) => self.daemon_base(client, store, id, id_map).await?,
                };
                let lower = store.base_to_export(&whole, id_map).map_err(trouble::export("read the image"))?;
                env = store.image_env(&whole, id_map).map_err(trouble::image("read the image"))?;
                let parts: Vec<Part> = lower.into_iter().map(Part::Dir).chain(above).collect();
                let known = parts.len();
                (load::load(client, store, parts, id_map, labels).await?, known)
            }
        };
        let (run, source) = (ground.run, ground.source.id.clone());
        let stray = std::collections::BTreeSet::new();
        Ok(Arc::new(Footing { image, run, base, source, known, layers, made: 0, env, stray, id_map }))
    }
}

impl VmBackend for Docker {
    const NAME: &'static str = "docker";
    const LAYERS: bool = true;
    type Vm = Container;

    async fn create(&self, image: &str, _: &Limits) -> Result<Container, RunnerError> {
        Err(RunnerError::unsupported(format!("a container of `{image}` needs the source as a layer")))
    }

    async fn restore(&self, snapshot: &str, limits: &Limits) -> Result<Option<Container>, RunnerError> {
        let Some(footing) = lock(&self.shared.own).get(snapshot).map(Arc::clone) else { return Ok(None) };
        let Some(Connection { client, .. }) = self.shared.connection.get() else { return Ok(None) };
        Ok(Some(Container::new(Arc::clone(&self.shared), client.clone(), footing, limits.clone())))
    }

    async fn boot(
        &self,
        ctx: &StepContext,
        ground: &Ground,
        limits: &Limits,
        output: &Output<'_>,
    ) -> Result<Container, RunnerError> {
        let connection = self.shared.connection(&ground.store).await?;
        let cell = self.shared.run(ctx, ground.run).cell(ground);
        let footing = cell.get_or_try_init(|| Box::pin(self.shared.make_footing(connection, ground, output))).await?;
        let (shared, client) = (Arc::clone(&self.shared), connection.client.clone());
        Ok(Container::new(shared, client, Arc::clone(footing), limits.clone()))
    }

    async fn cache_identity(
        &self,
        store: Arc<Store>,
        image: Option<&str>,
    ) -> Result<Option<CacheIdentity>, RunnerError> {
        let image = match image {
            None => None,
            Some("host") => return Err(no_host()),
            Some(image) if is_the_stores(image) => {
                let base = Box::pin(self.shared.images.pin(&store, image, &())).await;
                let base = base.map_err(trouble::image("get the image"))?;
                let identity = trouble::on_thread("look at the image", move || {
                    image_identity(&base, &[]).map_err(trouble::store("tell what the image stands for"))
                });
                Some(identity.await?.into())
            }
            Some(image) => {
                let connection = self.shared.connection(&store).await?;
                let found = images::find(&connection.client, image).await?;
                let found = found.ok_or_else(|| RunnerError::unsupported("the daemon does not have the image yet"))?;
                Some(found.id.into())
            }
        };
        Ok(Some(CacheIdentity { image, mode: self.shared.mode().await.into() }))
    }

    async fn remove(&self, snapshot: &str) -> Result<(), RunnerError> {
        if lock(&self.shared.own).remove(snapshot).is_none() {
            return Ok(());
        }
        let Some(Connection { client, .. }) = self.shared.connection.get() else { return Ok(()) };
        match sweep::remove_image(client, snapshot).await {
            // Others stand on it: it goes with them, at the build's end.
            Err(bollard::errors::Error::DockerResponseServerError { status_code: 409, .. }) => Ok(()),
            removed => removed.map_err(trouble::daemon("remove the image")),
        }
    }

    async fn probe(&self) -> Probe {
        connection::probe(&connection::place(self.shared.host.as_deref())).await
    }

    fn capabilities(&self) -> RunnerCapabilities {
        RunnerCapabilities {
            // Daemons drop all but `security.capability` when they commit.
            xattrs: false,
            // A store of a single id has none.
            ownership: rustix::process::geteuid().is_root(),
            isolation: true,
            limits: true,
            network: true,
            images: ImageSupport::Portable,
            ..RunnerCapabilities::default()
        }
    }
}

fn no_host() -> RunnerError {
    RunnerError::unsupported(
        "image `host` is this machine's own system, which is no image: name another one, such as \
         `--image host=debian:bookworm`",
    )
}

/// Tells a step's user how its image is coming along.
struct StepNotes<'a>(Output<'a>);

impl Notes for StepNotes<'_> {
    async fn note(&self, mut line: String) {
        line.push('\n');
        self.0.write(StdStream::Stderr, line.as_bytes()).await;
    }
}
