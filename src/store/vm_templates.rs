//! Booted virtual machines, which runner `vm` creates, uses and names `BOOT-KEY`. The store only limits the
//! space that they take.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{StoreError, error::IoContext, shared::Shared, tree};

/// Machines that were not used for this long are removed.
const KEPT_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// The virtual machines of a store.
#[derive(Debug)]
pub(crate) struct VmTemplates {
    shared: Arc<Shared>,
}

impl VmTemplates {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Returns the default directory of virtual machines.
    pub(crate) fn dir(&self) -> PathBuf {
        self.shared.paths.vm_templates()
    }

    /// Returns the prefix of the names of valid machines. It changes when the host reboots.
    pub(crate) fn name_prefix(&self) -> &str {
        let boot = self.shared.instance.boot();
        boot.get(..8).unwrap_or(boot)
    }

    /// Removes the machines in `dir` that are no longer valid, and those that were not used for a long time.
    /// Returns the bytes freed. A process that is just starting from a machine has its files open, or creates
    /// a new machine.
    pub(crate) fn remove_old(&self, dir: &Path) -> Result<u64, StoreError> {
        remove(dir, |name, age| age > KEPT_FOR || !name.starts_with(self.name_prefix()))
    }

    /// Removes all machines in the default directory. Returns the bytes freed.
    pub(super) fn remove_all(&self) -> Result<u64, StoreError> {
        remove(&self.dir(), |_, _| true)
    }
}

/// Removes the machines in `dir` whose name and age make them due.
fn remove(dir: &Path, is_due: impl Fn(&str, Duration) -> bool) -> Result<u64, StoreError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        entries => entries.doing("list", dir)?,
    };
    let mut freed = 0;
    for entry in entries {
        let path = entry.doing("list", dir)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        // Another process may be removing it.
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        let age = metadata.modified().ok().and_then(|used| used.elapsed().ok()).unwrap_or_default();
        if metadata.is_dir() && is_due(name, age) {
            let bytes = tree::measure(&path).doing("measure", &path)?.bytes();
            match tree::remove_tree(&path) {
                Ok(()) => freed += bytes,
                Err(error) => tracing::warn!(%error, path = %path.display(), "failed to remove a machine's files"),
            }
        }
    }
    Ok(freed)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, time::SystemTime};

    use super::*;
    use crate::store::{Forget, GcLimits, GcRequest, Store, UsageKind};

    #[test]
    fn machines_go_with_the_boot_with_time_and_with_everything_else() {
        let top = tempfile::tempdir().unwrap();
        let store = Store::open(top.path()).unwrap();
        let templates = store.vm_templates();
        assert_eq!(templates.remove_old(&templates.dir()).unwrap(), 0);
        let machine = |name: &str| {
            let dir = templates.dir().join(name);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("memory"), [1; 10_000]).unwrap();
            dir
        };
        let (fresh, old) = (format!("{}-fresh", templates.name_prefix()), format!("{}-old", templates.name_prefix()));
        let (fresh, old, other) = (machine(&fresh), machine(&old), machine("another-boot"));
        File::open(&old).unwrap().set_modified(SystemTime::now() - 2 * KEPT_FOR).unwrap();
        assert!(store.usage().unwrap().kinds[&UsageKind::Machines] >= 30_000);
        let limits = GcLimits::for_filesystem(&store.usage().unwrap().filesystem);
        let mut request = GcRequest::new(limits);
        let collected = store.gc(&request).unwrap().unwrap();
        assert!(collected.freed_bytes >= 20_000 && !old.exists() && !other.exists(), "{collected:?}");
        assert!(fresh.exists());
        request.forget = Forget::Everything;
        store.gc(&request).unwrap().unwrap();
        assert!(!fresh.exists());
    }
}
