//! Looks for a step's result that need not be made again.
//!
//! ```text
//!   static key, view ──▶ kept look ──▶ no record was added since, and what was read ──▶ its result
//!                                      of the machine and of the source is not edited
//!                                           │ otherwise
//!                                           └──▶ a look
//! ```
//!
//! A look takes a process, and reads files. What it found is found in the same view again. The design is in
//! `docs/design/trace-cache.md`, "Looks that are not made".

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::{
    clock::{MARGIN, boot_id, since_1970},
    jail::trace::{Kinds, Status, Trace},
    view::View,
};
use crate::{
    cache::{TraceRecord, sealed},
    source::ComparedSources,
    store::{SourceId, Store, StoreError},
};

/// The path at which steps see the source.
const WORKSPACE: &[u8] = b"/workspace";
/// Must be increased whenever what is kept of a look has another form or meaning.
const VERSION: u8 = 1;

/// What is kept of a look.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Look {
    version: u8,
    found: Found,
    /// The source that the step would have seen.
    source: SourceId,
    /// The files of the machine that the step read, and their statuses; `None` if nothing was there.
    files: Vec<(Vec<u8>, Option<Status>)>,
    /// A time before the look, since 1970, and in which boot of the machine.
    looked: Duration,
    boot: String,
}

/// A look that is about to be made.
#[derive(Debug)]
pub(super) struct Looking {
    view: View,
    looked: Duration,
    compared: Arc<ComparedSources>,
}

impl Looking {
    /// Describes a look that begins at a time.
    pub(super) fn since(time: SystemTime, view: View, compared: Arc<ComparedSources>) -> Self {
        Self { view, looked: since_1970(time), compared }
    }

    /// Returns the key of the result that a kept look found, if it would be found again. A failure finds
    /// nothing.
    pub(super) fn found_before(&self, store: &Store, key: &[u8; 32]) -> Option<[u8; 32]> {
        self.find(store, key).unwrap_or_else(|error| {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot read what an earlier look found");
            None
        })
    }

    fn find(&self, store: &Store, key: &[u8; 32]) -> Result<Option<[u8; 32]>, StoreError> {
        let Some(kept) = store.traces().look(key, &self.view.name)? else { return Ok(None) };
        let Some(look) = Look::decode(&kept.look) else { return Ok(None) };
        if kept.newest != Some(look.found.newest) || !look.is_current((self.looked, boot_id())) {
            return Ok(None);
        }
        if look.source != self.view.source && self.reads_edits(store, (key, &look))? {
            return Ok(None);
        }
        if store.steps().read(|reader| reader.get(&look.found.result).is_none())? {
            return Ok(None);
        }
        if !kept.just_used
            && let Err(error) =
                store.traces().touch_look(key, (&self.view.name, &look.found.record), look.found.origin.as_slice())
        {
            // On a full disk, the result is as good.
            tracing::info!(error = &error as &dyn std::error::Error, "the use of a result is not recorded");
        }
        Ok(Some(look.found.result))
    }

    /// Returns whether the step might see an edit of the source in what it read.
    fn reads_edits(&self, store: &Store, (key, look): (&[u8; 32], &Look)) -> Result<bool, StoreError> {
        let Some(record) = store.traces().find(key, &look.found.record)?.and_then(|it| TraceRecord::decode(&it)) else {
            return Ok(true);
        };
        // The other source may have been removed.
        let Ok(edits) = self.compared.between(store, &look.source, &self.view.source) else { return Ok(true) };
        let is_passed_through = |kinds: Kinds| Kinds::DIRECTORY.contains(kinds);
        Ok(record.asked.entries.iter().any(|(path, kinds)| {
            let path = match &path[..] {
                WORKSPACE => b"",
                path => match path.strip_prefix(WORKSPACE).and_then(|path| path.strip_prefix(b"/")) {
                    Some(path) => path,
                    None => return false,
                },
            };
            edits.may_differ(path) || !is_passed_through(*kinds) && edits.lists_others(path)
        }))
    }

    /// Returns what is to be kept of the look, with the name of the view. `asked` is what the record has.
    /// Returns `None` if a later change of the machine's files might not be noticed.
    pub(super) fn ended(&self, asked: &Trace, found: Found) -> Option<([u8; 32], Vec<u8>)> {
        let mut files = Vec::new();
        for path in asked.entries.keys() {
            for place in self.view.on_machine(Path::new(OsStr::from_bytes(path))) {
                let place = place.into_os_string().into_encoded_bytes();
                let status = Status::lasting_at(&place).ok()?;
                // It may have changed during the look.
                if status.is_some_and(|status| status.is_since(self.looked.saturating_sub(MARGIN))) {
                    return None;
                }
                files.push((place, status));
            }
        }
        let (source, looked, boot) = (self.view.source.clone(), self.looked, boot_id().to_owned());
        let look = Look { version: VERSION, found, source, files, looked, boot };
        Some((self.view.name, look.encode()?))
    }
}

/// What a look found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Found {
    /// The record of the step that was added last. After another one, another result may be found first.
    pub(super) newest: [u8; 32],
    /// The record that matched, and the key of the result over the step's parent.
    pub(super) record: [u8; 32],
    pub(super) result: [u8; 32],
    /// The key of the result that this one was made of, if that was over another parent.
    pub(super) origin: Option<[u8; 32]>,
}

impl Look {
    /// Returns whether the machine's files are as they were.
    fn is_current(&self, (now, boot): (Duration, &str)) -> bool {
        // What changed before a clock was set back may have any status.
        let is_later = || self.looked <= now && self.boot == boot;
        let is_same = |(path, known): &(Vec<u8>, Option<Status>)| Status::at(path).is_ok_and(|is| is == *known);
        self.files.is_empty() || is_later() && self.files.iter().all(is_same)
    }

    fn encode(&self) -> Option<Vec<u8>> {
        let body = postcard::to_stdvec(self).ok()?;
        Some(sealed::seal(&body))
    }

    /// Decodes the stored form. Returns `None` if it is damaged or of another version.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (look, rest) = postcard::take_from_bytes::<Self>(sealed::open(bytes)?).ok()?;
        (rest.is_empty() && look.version == VERSION).then_some(look)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::*;

    struct Machine {
        _top: tempfile::TempDir,
        dir: PathBuf,
    }

    impl Machine {
        fn new() -> Self {
            let top = tempfile::tempdir().unwrap();
            let dir = top.path().canonicalize().unwrap().join("usr");
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("a"), "1").unwrap();
            Self { _top: top, dir }
        }

        /// Returns what is kept of a look at a time, at three paths of `/usr` and one elsewhere.
        fn look(&self, looked: Duration) -> Option<Look> {
            let source = SourceId::parse(&"a".repeat(64)).unwrap();
            let view = View { name: [1; 32], source, dirs: vec![("/usr".into(), self.dir.clone())] };
            let paths = [&b"/usr"[..], b"/usr/a", b"/usr/absent", b"/workspace/b"];
            let entries = paths.iter().map(|path| (path.to_vec(), Kinds::CONTENT)).collect();
            let asked = Trace { entries, ..Trace::default() };
            let found = Found { newest: [2; 32], record: [3; 32], result: [4; 32], origin: None };
            let (name, look) = Looking { view, looked, compared: Arc::default() }.ended(&asked, found)?;
            assert_eq!(name, [1; 32]);
            Some(Look::decode(&look).unwrap())
        }
    }

    fn now() -> Duration {
        since_1970(SystemTime::now())
    }

    #[test]
    fn each_damaged_byte_is_no_look() {
        let bytes = Machine::new().look(now() + 2 * MARGIN).unwrap().encode().unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(Look::decode(&damaged), None, "byte {at}");
            assert_eq!(Look::decode(&bytes[..at]), None, "cut at {at}");
        }
    }

    #[test]
    fn files_that_may_change_again_without_a_trace_are_not_kept() {
        let machine = Machine::new();
        assert_eq!(machine.look(now()), None, "they were made a moment ago");
        let look = machine.look(now() + 2 * MARGIN).unwrap();
        let kept: Vec<_> = look.files.iter().map(|(path, status)| (&path[..], status.is_some())).collect();
        let path = |name: &str| machine.dir.join(name).into_os_string().into_encoded_bytes();
        let usr = machine.dir.as_os_str().as_bytes();
        assert_eq!(kept, [(usr, true), (&path("a")[..], true), (&path("absent")[..], false)]);
    }

    #[test]
    fn a_look_is_current_until_a_file_changes_or_the_clock_is_set_or_the_machine_boots() {
        let machine = Machine::new();
        let (looked, boot) = (now() + 2 * MARGIN, boot_id());
        let look = machine.look(looked).unwrap();
        let is_current = || look.is_current((looked, boot));
        assert!(is_current());
        assert!(!look.is_current((looked - MARGIN, boot)));
        assert!(!look.is_current((looked, "another")));
        let elsewhere = Look { files: Vec::new(), ..look.clone() };
        assert!(elsewhere.is_current((Duration::ZERO, "another")), "nothing of the machine is in it");

        let time = fs::metadata(machine.dir.join("a")).unwrap().modified().unwrap();
        fs::write(machine.dir.join("a"), "2").unwrap();
        fs::File::options().write(true).open(machine.dir.join("a")).unwrap().set_modified(time).unwrap();
        assert!(!is_current(), "the same size and time");

        let look = machine.look(looked).unwrap();
        fs::write(machine.dir.join("absent"), "").unwrap();
        assert!(!look.is_current((looked, boot)));
        fs::remove_file(machine.dir.join("absent")).unwrap();
        assert!(!look.is_current((looked, boot)), "the directory has changed");
    }
}
