//! Directories of runs that nobody keeps, and what processes that were killed have left of them.

use std::{
    fs::{self, DirEntry, File},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, SystemTime},
};

use tempfile::TempDir;

use super::logs::journal_path;

const PREFIX: &str = "hm-run-";

/// Younger directories may lack their journal, or its lock, because they are just being made.
const MIN_AGE: Duration = Duration::from_secs(60);

/// Makes a directory for a run among the system's temporary ones, and removes those whose runs were killed.
pub(super) fn create() -> io::Result<TempDir> {
    let parent = std::env::temp_dir();
    if let Err(error) = remove_abandoned(&parent, SystemTime::now()) {
        tracing::debug!(%error, "failed to look for runs that were killed");
    }
    tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)
}

fn remove_abandoned(parent: &Path, now: SystemTime) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            continue;
        }
        if let Err(error) = remove_if_abandoned(&entry, now) {
            tracing::debug!(%error, path = %entry.path().display(), "failed to remove a run that was killed");
        }
    }
    Ok(())
}

/// A run holds a lock on its journal as long as anybody writes or reads it, so one that can be had is nobody's.
fn remove_if_abandoned(entry: &DirEntry, now: SystemTime) -> io::Result<()> {
    let metadata = entry.metadata()?;
    let is_own = metadata.is_dir() && metadata.uid() == rustix::process::geteuid().as_raw();
    let age = now.duration_since(metadata.modified()?).unwrap_or_default();
    if !is_own || age < MIN_AGE {
        return Ok(());
    }
    match File::open(journal_path(&entry.path())) {
        Ok(journal) if journal.try_lock().is_err() => Ok(()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => fs::remove_dir_all(entry.path()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::logs::RunFiles;

    #[test]
    fn runs_that_were_killed_are_removed_and_no_others() {
        let parent = tempfile::tempdir().unwrap();
        let dir = |name: &str| parent.path().join(name);
        let live = RunFiles::create(&dir("hm-run-live"), None).unwrap();
        drop(RunFiles::create(&dir("hm-run-killed"), None).unwrap());
        fs::create_dir(dir("hm-run-killed-early")).unwrap();
        fs::create_dir(dir("other")).unwrap();
        fs::write(dir("hm-run-file"), "").unwrap();

        remove_abandoned(parent.path(), SystemTime::now()).unwrap();
        assert!(dir("hm-run-killed").exists(), "too young to tell");

        remove_abandoned(parent.path(), SystemTime::now() + 2 * MIN_AGE).unwrap();
        let mut left: Vec<_> = fs::read_dir(&parent).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["hm-run-file", "hm-run-live", "other"]);
        drop(live);
    }
}
