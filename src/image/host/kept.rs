//! The skeleton's tree, which the store keeps for later runs.
//!
//! It is named by the digest of its description, which each run makes anew. So a change of the machine leads
//! to another tree, and so does a file that others may no longer read: a kept tree shows nothing that the
//! machine does not show to others at that time. What a step must not see of the system's directories is in
//! masks, which are never kept.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use super::{HostDir, skeleton::Skeleton};
use crate::{
    image::layers::{LayerLock, PartialTree, find_tree, keep_tree, new_tree, tree_id, try_lock_layer},
    store::{Lease, Store, StoreError},
};

/// A skeleton's tree. A kept one is protected from removal for as long as this lives, any other is removed
/// with it.
#[derive(Debug)]
pub(super) struct Tree {
    root: PathBuf,
    _lease: Lease,
    own: Option<PartialTree>,
}

impl Tree {
    /// Returns whether later runs have the same tree, unless the machine changes.
    pub(super) fn is_kept(&self) -> bool {
        self.own.is_none()
    }

    /// Returns the root of the tree, which must not be written to.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }
}

/// Returns the tree of the current skeleton: a kept one that is undamaged, or else a new one, which is kept
/// if possible.
pub(super) fn tree(store: &Arc<Store>, machine: &Path, dirs: &[HostDir], now: SystemTime) -> Result<Tree, StoreError> {
    let lease = store.lease()?;
    let skeleton = Skeleton::of(machine, dirs)?;
    let digest = skeleton.digest();
    let kept = |layer| store.layers().dir(&layer);
    if let Some(layer) = find_tree(store, &digest)? {
        return Ok(Tree { root: kept(layer), _lease: lease, own: None });
    }
    // If another process is making the tree, this one does not wait for it, and makes one for itself.
    let lock: Option<LayerLock> = try_lock_layer(store, &tree_id(&digest))?;
    if lock.is_some()
        && let Some(layer) = find_tree(store, &digest)?
    {
        return Ok(Tree { root: kept(layer), _lease: lease, own: None });
    }
    let new = new_tree(store)?;
    skeleton.make(machine, &new.root())?;
    // Files that changed while they were copied, or may have, are shown to this run only.
    let is_exact = skeleton.is_settled(now) && Skeleton::of(machine, dirs)?.digest() == digest;
    if lock.is_some() && is_exact {
        let layer = keep_tree(store, new, &digest)?;
        return Ok(Tree { root: kept(layer), _lease: lease, own: None });
    }
    Ok(Tree { root: new.root(), _lease: lease, own: Some(new) })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

    use super::*;
    use crate::store::{Forget, GcLimits, GcRequest};

    struct Machine {
        top: tempfile::TempDir,
        store: Arc<Store>,
    }

    impl Machine {
        fn new() -> Self {
            let top = tempfile::tempdir().unwrap();
            let store = Store::open(&top.path().join("store")).unwrap();
            let machine = Self { top, store };
            fs::create_dir_all(machine.path("var/lib/ucf")).unwrap();
            fs::create_dir_all(machine.path("var/log/daemon")).unwrap();
            fs::write(machine.path("var/lib/ucf/hashfile"), "hash").unwrap();
            fs::write(machine.path("var/lib/shells.state"), "/bin/sh").unwrap();
            machine
        }

        fn path(&self, path: &str) -> PathBuf {
            self.top.path().join("machine").join(path)
        }

        /// Returns the tree of a process that comes much later than the last change.
        fn tree(&self) -> Tree {
            self.tree_at(SystemTime::now() + Duration::from_secs(60))
        }

        fn tree_at(&self, now: SystemTime) -> Tree {
            tree(&self.store, &self.path(""), &[], now).unwrap()
        }

        fn collect(&self) {
            let limits = GcLimits::for_filesystem(&self.store.usage().unwrap().filesystem);
            let mut request = GcRequest::new(limits);
            request.forget = Forget::Everything;
            self.store.gc(&request).unwrap().unwrap();
        }
    }

    #[test]
    fn an_unchanged_machine_has_one_tree() {
        let machine = Machine::new();
        let first = machine.tree().root().to_path_buf();
        assert!(first.starts_with(machine.store.dir().join("layers")));
        assert_eq!(machine.tree().root(), first);
        // Another process.
        let reopened = Store::open(machine.store.dir()).unwrap();
        let later = SystemTime::now() + Duration::from_secs(60);
        assert_eq!(tree(&reopened, &machine.path(""), &[], later).unwrap().root(), first);
        assert_eq!(fs::read_to_string(first.join("var/lib/ucf/hashfile")).unwrap(), "hash");
    }

    #[test]
    fn a_change_of_the_machine_leads_to_another_tree() {
        let machine = Machine::new();
        let mut seen = vec![machine.tree().root().to_path_buf()];
        let hashes = machine.path("var/lib/ucf/hashfile");
        let changes: [(&str, &dyn Fn()); 5] = [
            ("a directory", &|| fs::create_dir(machine.path("var/lib/new")).unwrap()),
            ("a link", &|| std::os::unix::fs::symlink("/run", machine.path("var/run")).unwrap()),
            ("a mode", &|| {
                fs::set_permissions(machine.path("var/log/daemon"), fs::Permissions::from_mode(0o700)).unwrap();
            }),
            ("a state", &|| fs::write(&hashes, "more").unwrap()),
            ("what others may read", &|| {
                fs::set_permissions(&hashes, fs::Permissions::from_mode(0o600)).unwrap();
            }),
        ];
        for (what, change) in changes {
            change();
            let now = machine.tree().root().to_path_buf();
            assert!(!seen.contains(&now), "{what}");
            seen.push(now);
        }
        let last = seen.last().unwrap();
        assert!(!last.join("var/lib/ucf/hashfile").exists() && last.join("var/lib/shells.state").exists());
        assert!(last.join("var/lib/new").is_dir() && last.join("var/run").is_symlink());
    }

    #[test]
    fn state_behind_a_link_is_not_copied() {
        let machine = Machine::new();
        fs::write(machine.path("private"), "secret").unwrap();
        fs::set_permissions(machine.path("private"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::remove_file(machine.path("var/lib/shells.state")).unwrap();
        std::os::unix::fs::symlink(machine.path("private"), machine.path("var/lib/shells.state")).unwrap();
        let state = machine.tree().root().join("var/lib/shells.state");
        assert_eq!(fs::read_link(state).unwrap(), machine.path("private"));
    }

    #[test]
    fn a_tree_of_files_that_changed_just_now_is_for_one_run_only() {
        let machine = Machine::new();
        let tree = machine.tree_at(SystemTime::now());
        let root = tree.root().to_path_buf();
        assert!(root.starts_with(machine.store.dir().join("tmp")) && root.join("var/lib/ucf/hashfile").exists());
        drop(tree);
        assert_ne!(machine.tree_at(SystemTime::now()).root(), root);
        // A clock that was set back.
        let early = machine.tree_at(SystemTime::UNIX_EPOCH);
        assert!(early.root().starts_with(machine.store.dir().join("tmp")));
    }

    #[test]
    fn a_damaged_tree_is_made_again() {
        let machine = Machine::new();
        let root = machine.tree().root().to_path_buf();
        fs::remove_dir_all(root.join("var/log")).unwrap();
        // The next process examines it.
        let store = Store::open(machine.store.dir()).unwrap();
        let later = SystemTime::now() + Duration::from_secs(60);
        let healed = tree(&store, &machine.path(""), &[], later).unwrap();
        assert_eq!(healed.root(), root);
        assert!(root.join("var/log/daemon").is_dir());
    }

    #[test]
    fn two_processes_at_once_do_not_wait_for_each_other() {
        let machine = Machine::new();
        let dirs = [];
        let digest = Skeleton::of(&machine.path(""), &dirs).unwrap().digest();
        let other = Store::open(machine.store.dir()).unwrap();
        let lock = try_lock_layer(&other, &tree_id(&digest)).unwrap().unwrap();
        let own = machine.tree();
        assert!(own.root().starts_with(machine.store.dir().join("tmp")));
        drop(lock);
        let kept = machine.tree();
        assert!(kept.root().starts_with(machine.store.dir().join("layers")));
        assert!(own.root().join("var/lib").is_dir());
    }

    #[test]
    fn a_tree_in_use_is_not_collected() {
        let machine = Machine::new();
        let tree = machine.tree();
        let root = tree.root().to_path_buf();
        machine.collect();
        assert!(root.is_dir());
        drop(tree);
        machine.collect();
        assert!(!root.exists());
        assert_eq!(machine.tree().root(), root);
    }

    #[test]
    fn a_killed_process_leaves_a_whole_tree_or_none() {
        let machine = Machine::new();
        let digest = Skeleton::of(&machine.path(""), &[]).unwrap().digest();
        // Killed while it made the tree, and later between putting it in its place and naming it.
        let half = new_tree(&machine.store).unwrap();
        fs::create_dir(half.root().join("var")).unwrap();
        std::mem::forget(half);
        let root = machine.tree().root().to_path_buf();
        assert_eq!(root, machine.store.layers().dir(&tree_id(&digest)));
        let skeleton = Skeleton::of(&machine.path(""), &[]).unwrap();
        let placed = machine.store.layers().home(&tree_id(&digest));
        machine.collect();
        assert!(!placed.exists());
        let whole = placed.join("root");
        fs::create_dir_all(&whole).unwrap();
        skeleton.make(&machine.path(""), &whole).unwrap();
        assert_eq!(machine.tree().root(), root);
        assert!(root.join("var/log/daemon").is_dir());
    }
}
