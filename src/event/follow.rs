//! Reads the journal of a run that another process may still write.
//!
//! The run is over when its journal has the build's end, or when its writer no longer locks the journal and
//! everything that was written has been read. The lock is tested before the length of the journal is, so
//! that nothing is missed that a writer appends before it ends.

use std::{fs::TryLockError, io, path::Path, sync::Arc};

use super::{
    BuildEvent, JournalError, RunMeta,
    cursor::{Cursor, Next},
    logs::journal_path,
    replay::OpenJournal,
};

/// The events of a run, as far as they have been written: see [`follow`].
#[derive(Debug)]
pub struct JournalFollower {
    journal: OpenJournal,
    cursor: Cursor,
}

/// What a [`JournalFollower`] returns.
#[derive(Debug, Clone, PartialEq)]
pub enum Followed {
    /// The next event.
    Event(BuildEvent),
    /// No further event has been written yet. The caller asks again after a while.
    Nothing,
    /// The run is over, and every event was returned. Without a `build_end` before, it was interrupted.
    Over,
}

/// Opens the journal of a run in `dir`, which may still be running.
///
/// # Errors
/// Returns the same errors as [`open`](super::open).
pub fn follow(dir: impl AsRef<Path>) -> Result<JournalFollower, JournalError> {
    let dir = dir.as_ref();
    let journal = OpenJournal::open(dir)?;
    let cursor = Cursor::new(Arc::new(journal.meta.clone().into()), dir, journal.first_record);
    Ok(JournalFollower { journal, cursor })
}

/// Returns whether a process still writes the journal of the run in `dir`.
///
/// # Errors
/// Returns an error if the journal cannot be opened or locked.
pub fn is_running(dir: impl AsRef<Path>) -> io::Result<bool> {
    is_locked(&std::fs::File::open(journal_path(dir.as_ref()))?)
}

/// Returns whether another process locks the file. If not, it is locked for a moment.
fn is_locked(file: &std::fs::File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => file.unlock().map(|()| false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

impl JournalFollower {
    /// Returns the constant data of the run.
    #[must_use]
    pub fn meta(&self) -> &RunMeta {
        &self.journal.meta
    }

    /// Returns the next event, if there is one.
    ///
    /// # Errors
    /// Returns an error if the journal cannot be read, or is damaged. It would be the same the next time.
    #[expect(clippy::should_implement_trait, reason = "no iterator: after `Nothing` there may be more")]
    pub fn next(&mut self) -> Result<Followed, JournalError> {
        loop {
            match self.cursor.next(&self.journal.file, self.journal.len) {
                Ok(Next::Event(event)) => return Ok(Followed::Event(event)),
                Ok(Next::Again) => {}
                Ok(Next::End) => return Ok(Followed::Over),
                Ok(Next::Wait) => match self.grow()? {
                    Growth::More => {}
                    Growth::NotYet => return Ok(Followed::Nothing),
                    Growth::Never => self.cursor.break_off(),
                },
                // The writer may have written only a part of the record yet.
                Err(JournalError::Truncated { offset }) => match self.grow()? {
                    Growth::More => {}
                    Growth::NotYet => return Ok(Followed::Nothing),
                    Growth::Never => return Err(JournalError::Truncated { offset }),
                },
                Err(error) => return Err(error),
            }
        }
    }

    /// Looks whether the journal has become longer.
    fn grow(&mut self) -> Result<Growth, JournalError> {
        let failed = |source| JournalError::Io { path: self.journal.path.clone(), source };
        let is_locked = is_locked(&self.journal.file).map_err(failed)?;
        let len = self.journal.file.metadata().map_err(failed)?.len();
        if len > self.journal.len {
            self.journal.len = len;
            return Ok(Growth::More);
        }
        Ok(if is_locked { Growth::NotYet } else { Growth::Never })
    }
}

/// Whether a journal has become longer.
enum Growth {
    More,
    NotYet,
    /// It has not, and no process writes it.
    Never,
}
