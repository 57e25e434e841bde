//! The shared helper: starts the zygote when it is needed, and starts it again if it died.

use std::{
    path::PathBuf,
    sync::{Arc, Weak},
};

use tokio::sync::Mutex;

use super::{
    id_ranges::IdRanges,
    program,
    tree_ops::ZygoteTreeOps,
    zygote::{StartError, Zygote},
};
use crate::{
    jail::{UserNamespace, may_mount},
    store::{IdMap, Store, TreeOps},
};

/// How to start a [`UsernsHelper`].
#[derive(Debug, Clone, Default)]
pub struct UsernsOptions {
    program: Option<PathBuf>,
    user_namespace: Option<UserNamespace>,
}

impl UsernsOptions {
    /// Starts this `hm` as the helper, instead of the one found by default.
    #[must_use]
    pub fn program(mut self, program: impl Into<PathBuf>) -> Self {
        self.program = Some(program.into());
        self
    }

    /// Sets how ids are mapped, instead of the best way that this machine allows.
    #[must_use]
    pub fn user_namespace(mut self, user_namespace: UserNamespace) -> Self {
        self.user_namespace = Some(user_namespace);
        self
    }
}

/// The helper process in the user namespace of steps. A process needs only one: pass the same [`Arc`] to
/// everything that runs steps, or that reads or writes their layers.
///
/// Nothing is started before it is needed.
#[derive(Debug)]
pub struct UsernsHelper {
    options: UsernsOptions,
    running: Mutex<Option<Running>>,
}

/// A started zygote.
#[derive(Debug)]
struct Running {
    zygote: Arc<Zygote>,
    /// The stores that perform their tree operations through the zygote. Empty unless it maps a range of ids.
    stores: Vec<Weak<Store>>,
}

impl UsernsHelper {
    /// Creates a helper that is not started yet.
    #[must_use]
    pub fn new(options: UsernsOptions) -> Arc<Self> {
        Arc::new(Self { options, running: Mutex::default() })
    }

    /// Returns the zygote. Starts it if there is none or if it died. If it maps a range of ids, `store`
    /// performs its tree operations through it from now on.
    ///
    /// # Errors
    /// Returns an error if the zygote cannot be started.
    pub(crate) async fn zygote(&self, store: &Arc<Store>) -> Result<Arc<Zygote>, StartError> {
        let mut slot = self.running.lock().await;
        if let Some(running) = slot.as_mut().filter(|running| running.zygote.is_alive()) {
            running.serve(store);
            return Ok(Arc::clone(&running.zygote));
        }
        let options = self.options.clone();
        let started = tokio::task::spawn_blocking(move || options.start()).await;
        let zygote = Arc::new(started.map_err(|error| StartError::Talk(std::io::Error::other(error)))??);
        let running = slot.insert(Running { zygote: Arc::clone(&zygote), stores: Vec::new() });
        running.serve(store);
        Ok(zygote)
    }

    /// Returns how ids are mapped in this machine's steps, after setting up what `store` needs to read and
    /// write their layers.
    ///
    /// # Errors
    /// Returns an error if that takes a zygote, and it cannot be started.
    pub(crate) async fn prepare_trees(&self, store: &Arc<Store>) -> Result<IdMap, StartError> {
        match self.id_map().await {
            IdMap::Range => Ok(self.zygote(store).await?.id_map()),
            id_map => Ok(id_map),
        }
    }

    /// Returns how ids are mapped in steps. If there is no zygote yet, predicts this from the state of the
    /// machine, without starting anything.
    pub(crate) async fn id_map(&self) -> IdMap {
        self.id_map_with(self.running.lock().await.as_ref())
    }

    /// Does the same as [`id_map`](Self::id_map) without waiting: while the zygote is being started, this
    /// predicts, too.
    pub(crate) fn id_map_now(&self) -> IdMap {
        let running = self.running.try_lock().ok();
        self.id_map_with(running.as_ref().and_then(|running| running.as_ref()))
    }

    /// [`UsernsOptions::start`] decides in the same way.
    fn id_map_with(&self, running: Option<&Running>) -> IdMap {
        let user_namespace = match (running, self.options.user_namespace) {
            (Some(running), _) => running.zygote.user_namespace(),
            (None, Some(user_namespace)) => user_namespace,
            (None, None) if may_mount() => UserNamespace::None,
            (None, None) if IdRanges::of_this_user().is_ok() => UserNamespace::Range,
            (None, None) => UserNamespace::Single,
        };
        user_namespace.id_map()
    }
}

impl Running {
    /// Lets `store` perform its tree operations through the zygote, if its layers need that.
    fn serve(&mut self, store: &Arc<Store>) {
        if self.zygote.id_map() != IdMap::Range || self.stores.iter().any(|it| it.as_ptr() == Arc::as_ptr(store)) {
            return;
        }
        let ops: Arc<dyn TreeOps> = Arc::new(ZygoteTreeOps::new(Arc::clone(&self.zygote)));
        store.set_tree_ops(ops);
        self.stores.retain(|it| it.strong_count() > 0);
        self.stores.push(Arc::downgrade(store));
    }
}

impl UsernsOptions {
    /// Starts a zygote that maps ids as these options say, or otherwise in the best way that works.
    fn start(&self) -> Result<Zygote, StartError> {
        let program = program::locate(self.program.as_deref())?;
        let range = || match IdRanges::of_this_user() {
            Ok(ranges) => Zygote::start(&program, UserNamespace::Range, Some(&ranges)),
            Err(reason) => Err(StartError::NoRange(reason)),
        };
        match self.user_namespace {
            Some(UserNamespace::Range) => range(),
            Some(user_namespace) => Zygote::start(&program, user_namespace, None),
            None if may_mount() => Zygote::start(&program, UserNamespace::None, None),
            None => match range() {
                Err(error @ (StartError::NoRange(_) | StartError::MapIds { .. })) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "steps have a single id");
                    Zygote::start(&program, UserNamespace::Single, None)
                }
                started => started,
            },
        }
    }
}
