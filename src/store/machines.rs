//! Virtual machines that booted: made and used by runner `vm`, which names them `BOOT-KEY`. Here they only take space.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{GcRequest, Store, StoreError, error::Doing, gc::Forget, tree};

/// Those that were not used for so long go.
const KEPT_FOR: Duration = Duration::from_secs(24 * 60 * 60);

impl Store {
    /// Where they are, unless somebody says otherwise.
    pub(crate) fn machines_dir(&self) -> PathBuf {
        self.dir().join("vm")
    }

    /// What the names of those begin with that count: they do until this machine is started anew.
    pub(crate) fn boot_prefix(&self) -> &str {
        self.boot.get(..8).unwrap_or(&self.boot)
    }

    /// Removes those of `place` that do not count any more, and those that nobody used for long. Who is just starting from one
    /// has its files open, or makes a new one. In bytes.
    pub(crate) fn remove_old_machines(&self, place: &Path) -> Result<u64, StoreError> {
        self.remove_machines(place, |name, age| age > KEPT_FOR || !name.starts_with(self.boot_prefix()))
    }

    pub(super) fn collect_machines(&self, request: &GcRequest) -> Result<u64, StoreError> {
        match request.forget {
            Forget::Everything => self.remove_machines(&self.machines_dir(), |_, _| true),
            _ => self.remove_old_machines(&self.machines_dir()),
        }
    }

    fn remove_machines(&self, place: &Path, is_due: impl Fn(&str, Duration) -> bool) -> Result<u64, StoreError> {
        let entries = match fs::read_dir(place) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
            entries => entries.doing("list", place)?,
        };
        let mut freed = 0;
        for entry in entries {
            let path = entry.doing("list", place)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            // Another process may be at it.
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            let age = metadata.modified().ok().and_then(|used| used.elapsed().ok()).unwrap_or_default();
            if metadata.is_dir() && is_due(name, age) {
                let bytes = tree::measure(&path).doing("measure", &path)?.bytes();
                match tree::remove_tree(&path) {
                    Ok(()) => freed += bytes,
                    Err(error) => tracing::warn!(%error, path = %path.display(), "a machine's files can't be removed"),
                }
            }
        }
        Ok(freed)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, time::SystemTime};

    use super::*;
    use crate::store::{GcLimits, UsageKind};

    #[test]
    fn machines_go_with_the_boot_with_time_and_with_everything_else() {
        let top = tempfile::tempdir().unwrap();
        let store = Store::open(top.path()).unwrap();
        assert_eq!(store.remove_old_machines(&store.machines_dir()).unwrap(), 0);
        let machine = |name: &str| {
            let dir = store.machines_dir().join(name);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("memory"), [1; 10_000]).unwrap();
            dir
        };
        let (fresh, old) = (format!("{}-fresh", store.boot_prefix()), format!("{}-old", store.boot_prefix()));
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
