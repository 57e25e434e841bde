//! The journal's file, to which data is only appended. The module does not know the records' format.

use std::{fs::File, io, os::unix::fs::FileExt, sync::Arc};

use super::shared::Failure;

/// The file operations that a journal needs.
pub(super) trait Medium {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;
    fn set_len(&self, len: u64) -> io::Result<()>;
}

impl Medium for Arc<File> {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        FileExt::write_at(&**self, bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }
}

/// The appending end of a journal. After a failure its content is not changed: a torn frame before valid ones
/// would hide them.
#[derive(Debug)]
pub(super) struct Journal<M = Arc<File>> {
    medium: M,
    len: u64,
    failure: Option<Failure>,
}

impl<M: Medium> Journal<M> {
    pub(super) fn new(medium: M) -> Self {
        Self { medium, len: 0, failure: None }
    }

    /// Returns the length of the journal, in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Appends all of `bytes` (with one write, unless the system writes only a part of them), or nothing.
    pub(super) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(failure) = &self.failure {
            return Err(failure.to_error());
        }
        let mut written = 0;
        while written < bytes.len() {
            match self.medium.write_at(&bytes[written..], self.len + written as u64) {
                Ok(0) => return Err(self.fail(&io::ErrorKind::WriteZero.into())),
                Ok(more) => written += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.fail(&error)),
            }
        }
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn fail(&mut self, error: &io::Error) -> io::Error {
        // If this fails too, the torn frame is the last one, and readers by path report it.
        if let Err(error) = self.medium.set_len(self.len) {
            tracing::warn!(%error, "failed to cut a torn write off the journal");
        }
        self.failure.insert(Failure::new("write the journal", error)).to_error()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    /// A disk that accepts three bytes per write and has room for `room`.
    struct Disk {
        bytes: RefCell<Vec<u8>>,
        room: Cell<usize>,
    }

    impl Medium for &Disk {
        fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
            let mut file = self.bytes.borrow_mut();
            assert_eq!(offset, file.len() as u64);
            let len = bytes.len().min(3).min(self.room.get().saturating_sub(file.len()));
            if len == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            file.extend_from_slice(&bytes[..len]);
            Ok(len)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.bytes.borrow_mut().truncate(usize::try_from(len).unwrap());
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_leaves_whole_appends_and_stays_an_error_when_there_is_room_again() {
        let disk = Disk { bytes: RefCell::default(), room: Cell::new(14) };
        let mut journal = Journal::new(&disk);
        journal.append(b"one and a half").unwrap();
        disk.room.set(18);
        let error = journal.append(b"torn here").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(error.to_string().contains("failed to write the journal"), "{error}");
        assert_eq!(*disk.bytes.borrow(), b"one and a half");
        disk.room.set(1000);
        assert_eq!(journal.append(b"later").unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(*disk.bytes.borrow(), b"one and a half");
        assert_eq!(journal.len(), 14);
    }
}
