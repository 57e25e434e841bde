//! A thread that removes trees, so that no step has to wait for that.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::mpsc,
    thread::{self, JoinHandle},
};

use super::tree_ops::CurrentTreeOps;

/// The directories of a layer in the making that no step has written to.
const UNWRITTEN: [&str; 1] = ["root"];

/// The file by which a volatile overlay marks its work directory.
const VOLATILE_MARK: &str = "work/incompat/volatile/dirty";

/// The directories that a volatile overlay leaves in its work directory, the innermost first.
const OVERLAY_WORK: [&str; 3] = ["work/incompat/volatile", "work/incompat", "work"];

/// Removes trees in the order of the requests. The owner has to [finish](Self::finish) it.
#[derive(Debug)]
pub(super) struct Remover {
    // Unbounded, because its length is limited by the number of trees on disk.
    orders: Option<mpsc::Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Order {
    Remove(PathBuf),
    /// The directories of a [`Staging`](super::Staging).
    RemoveStaging {
        dir: PathBuf,
        work: PathBuf,
    },
    /// The directories of an overlay, which have to be unmounted first.
    Unmount(PathBuf),
    Retry,
}

impl Remover {
    pub(super) fn start(ops: CurrentTreeOps) -> Self {
        let (orders, inbox) = mpsc::channel();
        let thread = thread::Builder::new().name("hm-remover".into()).spawn(move || work(&inbox, &ops));
        match thread {
            Ok(thread) => Self { orders: Some(orders), thread: Some(thread) },
            Err(error) => {
                tracing::warn!(%error, "failed to start the thread that removes files; they remain until the store is closed");
                Self { orders: None, thread: None }
            }
        }
    }

    pub(super) fn remove(&self, path: PathBuf) {
        self.send(Order::Remove(path));
    }

    /// Removes what is left of a [`Staging`](super::Staging).
    pub(super) fn remove_staging(&self, dir: PathBuf, work: PathBuf) {
        self.send(Order::RemoveStaging { dir, work });
    }

    /// Unmounts a [`StagedDir`](super::StagedDir) and removes it.
    pub(super) fn unmount(&self, home: PathBuf) {
        self.send(Order::Unmount(home));
    }

    /// Retries failed removals, after the [`TreeOps`](super::TreeOps) have changed.
    pub(super) fn retry(&self) {
        self.send(Order::Retry);
    }

    /// Waits until all requested trees are removed. Later requests have no effect.
    pub(super) fn finish(&mut self) {
        drop(self.orders.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::warn!("the thread that removes files panicked");
        }
    }

    fn send(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // Fails if the thread panicked. Closing the store then removes what is left.
            let _ = orders.send(order);
        }
    }
}

fn work(inbox: &mpsc::Receiver<Order>, ops: &CurrentTreeOps) {
    let mut stuck = Vec::new();
    while let Ok(order) = inbox.recv() {
        let paths = match order {
            Order::Remove(path) => vec![path],
            Order::RemoveStaging { dir, work } => remove_unwritten(dir, work),
            Order::Unmount(home) => {
                if let Err(error) = super::staged_dir::unmount(&home) {
                    // A mounted directory must not be removed: that would write to files that steps see.
                    report(&error, &home);
                    continue;
                }
                vec![home]
            }
            Order::Retry => std::mem::take(&mut stuck),
        };
        let ops = ops.get();
        for path in paths {
            if let Err(error) = ops.remove_tree(&path) {
                report(&error, &path);
                stuck.push(path);
            }
        }
    }
}

/// Removes the directories of a [`Staging`](super::Staging) that no step has written to. Returns those with
/// something else in them. Every step leaves two directories, and to look into them takes ten times as many
/// calls. No step can put a link in the place of what is removed.
fn remove_unwritten(dir: PathBuf, work: PathBuf) -> Vec<PathBuf> {
    // If it stays, its directory does, too.
    let _ = fs::remove_file(work.join(VOLATILE_MARK));
    let both = [(work, &OVERLAY_WORK[..]), (dir, &UNWRITTEN[..])];
    both.into_iter().filter(|(path, known)| !remove_empty(path, known)).map(|(path, _)| path).collect()
}

/// Removes a directory that has nothing in it but the directories `known`, which are empty in this order.
/// Returns whether that was so.
fn remove_empty(dir: &Path, known: &[&str]) -> bool {
    let remove = |path: &Path| match fs::remove_dir(path) {
        Err(error) => error.kind() == io::ErrorKind::NotFound,
        Ok(()) => true,
    };
    known.iter().all(|below| remove(&dir.join(below))) && remove(dir)
}

fn report(error: &io::Error, path: &Path) {
    tracing::debug!(%error, path = %path.display(), "could not remove a tree yet");
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn directories_are_removed_at_once_only_if_they_have_nothing_else_in_them() {
        let top = tempfile::tempdir().unwrap();
        let (dir, work) = (top.path().join("1"), top.path().join("1.work"));
        // What is left after making `files`.
        let left = |files: &[&str], more: &[&str]| {
            for file in files {
                let file = top.path().join(file);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, "").unwrap();
            }
            more.iter().for_each(|dir| fs::create_dir_all(top.path().join(dir)).unwrap());
            let left = remove_unwritten(dir.clone(), work.clone());
            let exist: Vec<_> = [&work, &dir].into_iter().filter(|dir| dir.exists()).cloned().collect();
            assert_eq!(left, exist);
            left.iter().for_each(|dir| fs::remove_dir_all(dir).unwrap());
            left.len()
        };
        let mark = "1.work/work/incompat/volatile/dirty";
        assert_eq!(left(&[mark], &["1/root"]), 0);
        assert_eq!(left(&[], &["1.work", "1/root"]), 0, "the overlay was never mounted");
        assert_eq!(left(&[mark], &[]), 0, "the layer was committed");
        assert_eq!(left(&[], &[]), 0);
        for (files, kept) in [
            (&[mark, "1.work/work/#5", "1/root/file"][..], 2),
            (&[mark, "1.work/work/incompat/volatile/more"], 1),
            (&["1.work/index/file"], 1),
            (&["1/other"], 1),
        ] {
            assert_eq!(left(files, &[]), kept, "{files:?}");
        }
        let other = top.path().join("other");
        fs::create_dir(&other).unwrap();
        fs::create_dir(&dir).unwrap();
        symlink(&other, dir.join("root")).unwrap();
        assert_eq!(remove_unwritten(dir.clone(), work), [dir]);
        assert!(other.exists());
    }
}
