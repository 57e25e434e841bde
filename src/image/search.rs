//! Searches indexes, which may refer to further indexes, for the image for this machine.

use super::{
    ImageDigest,
    manifest::{Descriptor, DocumentError, ImageIndex},
};

/// The maximum depth of nested indexes, and the maximum number of documents. No legitimate image has more.
const MAX_DEPTH: u32 = 8;
const MAX_DOCUMENTS: u32 = 64;

/// A document to examine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub(super) digest: ImageDigest,
    /// Whether it is accepted without a check: its entry says that it is for this machine, or there is no
    /// other. If not, its configuration must say so.
    pub(super) is_certain: bool,
    depth: u32,
}

/// The documents still to be examined, and the platforms of those that were rejected.
#[derive(Debug)]
pub(super) struct ManifestSearch {
    /// The next document is the last element.
    next: Vec<Candidate>,
    seen: u32,
    found: Vec<String>,
}

impl ManifestSearch {
    /// Returns a search that begins at this document.
    pub(super) fn at(digest: ImageDigest) -> Self {
        Self { next: vec![Candidate { digest, is_certain: true, depth: 0 }], seen: 0, found: Vec::new() }
    }

    /// Returns a search that begins among these entries.
    pub(super) fn among(entries: &[&Descriptor], platforms: String) -> Self {
        let mut search = Self { next: Vec::new(), seen: 0, found: Vec::new() };
        search.add(entries, 0, platforms);
        search
    }

    /// Returns the next document to examine. Returns an error if there is none, because all are for other
    /// machines.
    pub(super) fn next(&mut self) -> Result<Candidate, DocumentError> {
        self.seen += 1;
        match self.next.pop() {
            Some(next) if next.depth > MAX_DEPTH || self.seen > MAX_DOCUMENTS => {
                Err(DocumentError::Malformed("its indexes refer to too many other indexes".into()))
            }
            Some(next) => Ok(next),
            None => Err(DocumentError::platform(self.found.join(", "))),
        }
    }

    /// Continues the search in the index that `at` turned out to be.
    pub(super) fn descend(&mut self, at: Candidate, index: &ImageIndex) {
        self.add(&index.candidates(), at.depth + 1, index.platforms());
    }

    /// Continues without a document that turned out to be for `platform`.
    pub(super) fn reject(&mut self, platform: String) {
        self.found.push(platform);
    }

    fn add(&mut self, entries: &[&Descriptor], depth: u32, platforms: String) {
        if entries.is_empty() {
            self.found.push(platforms);
        }
        let is_only = entries.len() == 1 && self.next.is_empty();
        self.next.extend(entries.iter().rev().map(|entry| Candidate {
            digest: entry.digest,
            is_certain: entry.platform.is_some() || is_only,
            depth,
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_goes_down_before_it_goes_on_and_ends() {
        let entry = |digest: &str| Descriptor {
            media_type: String::new(),
            digest: ImageDigest::of(digest.as_bytes()),
            size: 1,
            platform: None,
            annotations: Default::default(),
        };
        let (a, b, c) = (entry("a"), entry("b"), entry("c"));
        let mut search = ManifestSearch::among(&[&a, &b], String::new());
        let first = search.next().unwrap();
        assert!(first.digest == a.digest && !first.is_certain);
        search.descend(first, &ImageIndex { manifests: vec![c.clone()] });
        assert_eq!(search.next().unwrap().digest, c.digest);
        search.reject("linux/other".into());
        assert_eq!(search.next().unwrap().digest, b.digest);
        assert!(matches!(search.next(), Err(DocumentError::Platform { found, .. }) if found == "linux/other"));

        // An index cannot contain its own digest, but a registry may answer anything.
        let mut search = ManifestSearch::at(a.digest);
        let endless = ImageIndex { manifests: vec![a.clone(), a] };
        let error = (0..1000).find_map(|_| match search.next() {
            Ok(at) => {
                search.descend(at, &endless);
                None
            }
            Err(wrong) => Some(wrong),
        });
        assert!(matches!(error, Some(DocumentError::Malformed(_))), "{error:?}");
    }
}
