//! Whether everything that a step wrote is explained by its trace: see `docs/design/trace-cache.md`,
//! "When is it sound to put a layer over others?".

use std::collections::HashMap;

use rustix::fs::FileType;

use crate::{
    jail::trace::{Answer, Kinds, Trace},
    store::LayerEntry,
};

/// Looks at the entries of a layer one by one.
#[derive(Debug)]
pub(crate) struct Explained<'a> {
    read: HashMap<&'a [u8], (Kinds, &'a Answer)>,
    /// The directory whose content is the step's own, if the last entry is in one.
    own: Option<Vec<u8>>,
    unexplained: Option<Vec<u8>>,
}

impl<'a> Explained<'a> {
    /// Begins with what the step read, and the answers to that.
    pub(crate) fn new(asked: &'a Trace, answers: &'a [Answer]) -> Self {
        let entries = asked.entries.iter().zip(answers);
        let read = entries.map(|((path, kinds), answer)| (&path[..], (*kinds, answer))).collect();
        Self { read, own: None, unexplained: None }
    }

    /// Looks at the next entry, in the order of [`layer_digest`](crate::store::layer_digest). The path
    /// has no slash at its start.
    pub(crate) fn see(&mut self, path: &[u8], entry: LayerEntry) {
        if self.unexplained.is_some() {
            return;
        }
        let path = [b"/", path].concat();
        let is_own =
            |own: &Vec<u8>| path.strip_prefix(&own[..]).is_some_and(|it| it.is_empty() || it.starts_with(b"/"));
        if self.own.as_ref().is_some_and(is_own) {
            return;
        }
        self.own = None;
        let Some(&(kinds, answer)) = self.read.get(&path[..]) else {
            self.unexplained = Some(path);
            return;
        };
        let was_dir = matches!(answer, Answer::There(node) if node.file_type() == FileType::Directory);
        let is_written = kinds.contains(Kinds::WRITTEN);
        // What was in a directory that is hidden now.
        let is_listed = !was_dir || kinds.contains(Kinds::LISTING);
        let is_explained = match entry {
            // Its mode, owner and attributes are compared.
            LayerEntry::Directory if was_dir => true,
            LayerEntry::Directory => is_written,
            LayerEntry::Opaque => is_listed,
            LayerEntry::Whiteout => is_written && is_listed,
            LayerEntry::Other => {
                let is_carried = kinds.contains(Kinds::CONTENT) || kinds.contains(Kinds::LINK);
                (is_written || is_carried) && is_listed
            }
        };
        if !is_explained {
            self.unexplained = Some(path);
        } else if entry == LayerEntry::Opaque || entry == LayerEntry::Directory && !was_dir {
            self.own = Some(path);
        }
    }

    /// Returns whether a directory was at a path of the layer. The path has no slash at its start.
    pub(crate) fn was_dir(&self, path: &[u8]) -> bool {
        let found = self.read.get(&[b"/", path].concat()[..]);
        matches!(found, Some((_, Answer::There(node))) if node.file_type() == FileType::Directory)
    }

    /// Returns the first path that nothing explains.
    pub(crate) fn unexplained(self) -> Option<Vec<u8>> {
        self.unexplained
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jail::trace::Node;

    fn there(mode: u32) -> Answer {
        Answer::There(Node {
            mode,
            owner: (0, 0),
            device: 0,
            attributes: [0; 32],
            value: None,
            size: 0,
            modified: None,
            names_of: None,
        })
    }

    /// Returns the path that is unexplained in a layer with `entries`, after a step that found `read`.
    fn unexplained(read: &[(&str, Kinds, Answer)], entries: &[(&str, LayerEntry)]) -> Option<String> {
        let asked = read.iter().map(|(path, kinds, _)| (path.as_bytes().to_vec(), *kinds)).collect();
        let asked = Trace { entries: asked, ..Trace::default() };
        // Traces are in the order of their paths.
        let mut read = read.to_vec();
        read.sort_by_key(|(path, ..)| *path);
        let answers: Vec<Answer> = read.into_iter().map(|(.., answer)| answer).collect();
        let mut explained = Explained::new(&asked, &answers);
        entries.iter().for_each(|(path, entry)| explained.see(path.as_bytes(), *entry));
        explained.unexplained().map(|path| String::from_utf8(path).unwrap())
    }

    #[test]
    fn each_entry_needs_what_a_look_up_compares() {
        use LayerEntry::{Directory, Opaque, Other, Whiteout};
        let (dir, file) = (there(0o4_0755), there(0o10_0644));
        let passed = ("/d", Kinds::DIRECTORY, dir.clone());
        let made = Kinds::WRITTEN.and(Kinds::ABSENT);
        let listed = Kinds::WRITTEN.and(Kinds::LISTING);
        let in_dir = |name, kinds, answer: &Answer| vec![passed.clone(), (name, kinds, answer.clone())];
        let layer = |entry| [("d", Directory), ("d/x", entry)];
        for (read, entries) in [
            (in_dir("/d/x", made, &Answer::Absent), &layer(Other)[..]),
            (in_dir("/d/x", Kinds::WRITTEN, &file), &layer(Other)),
            (in_dir("/d/x", Kinds::CONTENT, &file), &layer(Other)),
            (in_dir("/d/x", Kinds::WRITTEN, &file), &layer(Whiteout)),
            (in_dir("/d/x", listed, &dir), &layer(Whiteout)),
            (in_dir("/d/x", listed, &dir), &layer(Other)),
            (in_dir("/d/x", made, &Answer::Absent), &[("d", Directory), ("d/x", Directory), ("d/x/any", Other)]),
            (in_dir("/d/x", Kinds::WRITTEN, &file), &[("d", Directory), ("d/x", Directory), ("d/x/any", Directory)]),
            (
                in_dir("/d/x", listed, &dir),
                &[("d", Directory), ("d/x", Directory), ("d/x", Opaque), ("d/x/any", Other), ("d/x/y/z", Other)],
            ),
        ] {
            assert_eq!(unexplained(&read, entries), None, "{read:?} {entries:?}");
        }
        for (read, entries, path) in [
            (in_dir("/d/x", Kinds::DIRECTORY, &dir), &layer(Whiteout)[..], "/d/x"),
            (in_dir("/d/x", Kinds::METADATA, &file), &layer(Whiteout), "/d/x"),
            (in_dir("/d/x", Kinds::METADATA, &file), &layer(Other), "/d/x"),
            (in_dir("/d/x", Kinds::WRITTEN, &dir), &layer(Whiteout), "/d/x"),
            (in_dir("/d/x", Kinds::WRITTEN, &dir), &layer(Other), "/d/x"),
            (in_dir("/d/x", Kinds::ABSENT, &Answer::Absent), &layer(Directory), "/d/x"),
            (in_dir("/d/y", made, &Answer::Absent), &layer(Other), "/d/x"),
            (
                in_dir("/d/x", Kinds::WRITTEN.and(Kinds::DIRECTORY), &dir),
                &[("d", Directory), ("d/x", Directory), ("d/x", Opaque)],
                "/d/x",
            ),
            // The directory beside one that the step made is not its own.
            (
                in_dir("/d/x", made, &Answer::Absent),
                &[("d", Directory), ("d/x", Directory), ("d/x/any", Other), ("d/xy", Other)],
                "/d/xy",
            ),
            (vec![("/d/x", made, Answer::Absent)], &layer(Other), "/d"),
        ] {
            assert_eq!(unexplained(&read, entries).as_deref(), Some(path), "{read:?} {entries:?}");
        }
    }
}
