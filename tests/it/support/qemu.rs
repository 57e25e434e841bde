//! Virtual machines of tests: all tests share the templates of one booted machine.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use hm_exec::{
    runner::{
        Probe, StepRunner,
        qemu::{Qemu, QemuRunner},
        sandbox::SandboxRunner,
    },
    store::Store,
};
use tempfile::TempDir;

use super::{backends::usable, programs::hm};

/// A store, and the directory of the templates of booted machines.
pub(crate) struct Bench {
    pub(crate) store: Arc<Store>,
    /// Dropped after the store.
    _dir: TempDir,
    templates: Arc<TempDir>,
}

/// Shared by the tests that run at the same time.
static TEMPLATES: Mutex<Weak<TempDir>> = Mutex::new(Weak::new());

impl Bench {
    /// Returns `None` if no machine can be made: the test is then skipped.
    pub(crate) fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let mut shared = TEMPLATES.lock().unwrap_or_else(PoisonError::into_inner);
        let templates = shared.upgrade().unwrap_or_else(|| Arc::new(tempfile::tempdir().unwrap()));
        *shared = Arc::downgrade(&templates);
        let bench = Self { store, _dir: dir, templates };
        let vm = bench.vm();
        // A separate runtime, because the caller may have one of several kinds, or none.
        let probe = std::thread::scope(|scope| {
            let probing = scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(vm.probe())
            });
            probing.join().unwrap()
        });
        match probe {
            Probe::Unusable { reason, .. } => {
                usable("vm", false, &reason);
                None
            }
            _ => Some(bench),
        }
    }

    pub(crate) fn sandbox(&self) -> SandboxRunner {
        SandboxRunner::builder().store(Arc::clone(&self.store)).helper(hm()).build()
    }

    /// Returns the runner, with small machines because tests have many at once.
    pub(crate) fn vm(&self) -> QemuRunner {
        let builder = Qemu::builder().local(SandboxRunner::builder().helper(hm())).templates(self.templates.path());
        builder.memory(512 << 20).cpus(2.try_into().unwrap()).build(Arc::clone(&self.store))
    }

    pub(crate) fn templates(&self) -> &Path {
        self.templates.path()
    }
}
