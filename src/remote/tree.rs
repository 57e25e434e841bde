//! Directory trees in the protocol's form: a message for each directory, named by its digest.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt},
    },
    path::Path,
    sync::Arc,
};

use bazel_remote_apis::google::protobuf::{Timestamp, UInt32Value};
use prost::Message;

use super::{Blob, Content, Digest, DigestFunction, reapi};

/// The attributes of a file or symbolic link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FileAttributes {
    /// The permissions, including whether it is executable.
    pub mode: u32,
    /// The modification time: seconds since the Unix epoch, and nanoseconds.
    pub mtime: (i64, u32),
}

/// The reason why something cannot be part of a tree.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// A name is not UTF-8, which the protocol requires.
    #[error("the name `{}` is not UTF-8, which remote execution requires", name.escape_default())]
    NoText {
        /// The name, lossily converted to text.
        name: String,
    },
    /// A path is taken by another entry, such as a file in the place of a directory.
    #[error("`{path}` is both a file and a directory")]
    Conflict {
        /// The path.
        path: String,
    },
    /// A file cannot be read.
    #[error("failed to read `{path}`")]
    Read {
        /// The path.
        path: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

/// A directory tree under construction. The order of insertion does not matter: equal trees have equal
/// digests.
#[derive(Debug, Clone, Default)]
pub struct DirectoryTree {
    function: DigestFunction,
    files: BTreeMap<String, reapi::FileNode>,
    links: BTreeMap<String, reapi::SymlinkNode>,
    dirs: BTreeMap<String, Self>,
    /// The attributes of the directory itself, if they are set.
    attributes: Option<FileAttributes>,
    known: BTreeMap<String, Digest>,
}

/// A finished tree.
#[derive(Debug, Clone)]
pub struct Tree {
    /// The digest of the root.
    pub root: Digest,
    /// The directory messages, including the root's, each once.
    pub directories: Vec<Blob>,
}

impl DirectoryTree {
    /// Creates an empty tree whose directories are named by `function`. The default is SHA-256.
    #[must_use]
    pub fn new(function: DigestFunction) -> Self {
        Self { function, ..Self::default() }
    }

    /// Adds a file, and creates the directories above it. `path` is relative, with `/` between names.
    ///
    /// # Errors
    /// Returns an error if a name is not UTF-8, or if another entry is in the way.
    pub fn add_file(&mut self, path: &[u8], digest: Digest, attributes: FileAttributes) -> Result<(), TreeError> {
        let (dir, name) = self.dir_of(path)?;
        let node = reapi::FileNode {
            name: name.clone(),
            digest: Some(digest.into()),
            is_executable: attributes.mode & 0o111 != 0,
            node_properties: Some(attributes.properties(true)),
        };
        dir.free(&name, path)?;
        dir.files.insert(name, node);
        Ok(())
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// Returns an error if a name or the target is not UTF-8, or if another entry is in the way.
    pub fn add_symlink(&mut self, path: &[u8], target: &[u8], attributes: FileAttributes) -> Result<(), TreeError> {
        let target = text(target)?;
        let (dir, name) = self.dir_of(path)?;
        dir.free(&name, path)?;
        let node_properties = Some(attributes.properties(false));
        dir.links.insert(name.clone(), reapi::SymlinkNode { name, target, node_properties });
        Ok(())
    }

    /// Adds a directory if it does not exist yet, and returns it.
    ///
    /// # Errors
    /// Returns an error if a name is not UTF-8, or if another entry is in the way.
    pub fn add_directory(&mut self, path: &[u8]) -> Result<&mut Self, TreeError> {
        let mut dir = self;
        for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
            let name = text(part)?;
            if dir.files.contains_key(&name) || dir.links.contains_key(&name) || dir.known.contains_key(&name) {
                return Err(TreeError::Conflict { path: String::from_utf8_lossy(path).into_owned() });
            }
            dir = dir.dirs.entry(name).or_default();
        }
        Ok(dir)
    }

    /// Sets the directory's own attributes. Without any, a worker may choose them.
    pub fn set_attributes(&mut self, attributes: FileAttributes) {
        self.attributes = Some(attributes);
    }

    /// Adds a finished tree as a directory.
    ///
    /// # Errors
    /// Returns an error if a name is not UTF-8, or if another entry is in the way.
    pub fn add_tree(&mut self, path: &[u8], root: Digest) -> Result<(), TreeError> {
        let (dir, name) = self.dir_of(path)?;
        dir.free(&name, path)?;
        dir.known.insert(name, root);
        Ok(())
    }

    /// Adds everything below a local directory: files, symbolic links, empty directories. Reads every file.
    /// Returns the blobs of the files. Sockets, FIFOs and devices are left out.
    ///
    /// # Errors
    /// Returns an error if something cannot be read or cannot be represented in the protocol.
    pub fn add_from_disk(&mut self, path: &[u8], from: &Path) -> Result<Vec<Blob>, TreeError> {
        let mut blobs = Vec::new();
        let mut left = vec![(path.to_vec(), from.to_path_buf())];
        while let Some((path, from)) = left.pop() {
            let failed = |source| TreeError::Read { path: from.display().to_string(), source };
            self.add_directory(&path)?;
            for entry in fs::read_dir(&from).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let here = entry.path();
                let failed = |source| TreeError::Read { path: here.display().to_string(), source };
                let metadata = entry.metadata().map_err(failed)?;
                let mut name = path.clone();
                if !name.is_empty() {
                    name.push(b'/');
                }
                name.extend_from_slice(entry.file_name().as_bytes());
                let attributes = FileAttributes {
                    mode: metadata.permissions().mode() & 0o7777,
                    mtime: (metadata.mtime(), u32::try_from(metadata.mtime_nsec()).unwrap_or(0)),
                };
                if metadata.is_dir() {
                    left.push((name, here));
                } else if metadata.is_symlink() {
                    let target = fs::read_link(&here).map_err(failed)?;
                    self.add_symlink(&name, target.as_os_str().as_bytes(), attributes)?;
                } else if metadata.is_file() {
                    let digest = self.function.of_file(&here).map_err(failed)?;
                    self.add_file(&name, digest, attributes)?;
                    blobs.push(Blob { digest, content: Content::File { path: here, offset: 0 } });
                }
            }
        }
        Ok(blobs)
    }

    /// Computes the digest of every directory. The depth of the tree costs heap, not stack.
    #[must_use]
    pub fn finish(self) -> Tree {
        /// A directory whose subdirectories are being processed.
        struct Open {
            name: String,
            message: reapi::Directory,
            left: std::collections::btree_map::IntoIter<String, DirectoryTree>,
        }
        let open = |name: String, tree: Self| {
            let known = tree.known.into_iter();
            let message = reapi::Directory {
                directories: known.map(|(name, it)| reapi::DirectoryNode { name, digest: Some(it.into()) }).collect(),
                files: tree.files.into_values().collect(),
                symlinks: tree.links.into_values().collect(),
                node_properties: tree.attributes.map(|attributes| attributes.properties(true)),
            };
            Open { name, message, left: tree.dirs.into_iter() }
        };
        let function = self.function;
        let mut directories: BTreeMap<Digest, Arc<[u8]>> = BTreeMap::new();
        let mut root = function.of(&[]);
        let mut path = vec![open(String::new(), self)];
        while let Some(top) = path.last_mut() {
            if let Some((name, tree)) = top.left.next() {
                path.push(open(name, tree));
                continue;
            }
            let Some(Open { name, mut message, .. }) = path.pop() else { break };
            message.directories.sort_by(|a, b| a.name.cmp(&b.name));
            let bytes = message.encode_to_vec();
            let digest = function.of(&bytes);
            directories.insert(digest, bytes.into());
            match path.last_mut() {
                Some(above) => {
                    above.message.directories.push(reapi::DirectoryNode { name, digest: Some(digest.into()) });
                }
                None => root = digest,
            }
        }
        let blob = |(digest, bytes)| Blob { digest, content: Content::Bytes(bytes) };
        Tree { root, directories: directories.into_iter().map(blob).collect() }
    }

    /// Returns the directory of a path, and its last name.
    fn dir_of(&mut self, path: &[u8]) -> Result<(&mut Self, String), TreeError> {
        let (dir, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&path[..0], path),
        };
        Ok((self.add_directory(dir)?, text(name)?))
    }

    fn free(&self, name: &str, path: &[u8]) -> Result<(), TreeError> {
        if self.dirs.contains_key(name)
            || self.known.contains_key(name)
            || self.files.contains_key(name)
            || self.links.contains_key(name)
        {
            return Err(TreeError::Conflict { path: String::from_utf8_lossy(path).into_owned() });
        }
        Ok(())
    }
}

impl FileAttributes {
    fn properties(self, with_mode: bool) -> reapi::NodeProperties {
        let (seconds, nanos) = self.mtime;
        reapi::NodeProperties {
            mtime: Some(Timestamp { seconds, nanos: i32::try_from(nanos).unwrap_or(0) }),
            unix_mode: with_mode.then_some(UInt32Value { value: self.mode & 0o7777 }),
            ..Default::default()
        }
    }
}

fn text(name: &[u8]) -> Result<String, TreeError> {
    String::from_utf8(name.to_vec())
        .map_err(|error| TreeError::NoText { name: String::from_utf8_lossy(error.as_bytes()).into_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(paths: &[&str]) -> Tree {
        let mut tree = DirectoryTree::default();
        for path in paths {
            let attributes = FileAttributes { mode: 0o644, mtime: (1, 2) };
            tree.add_file(path.as_bytes(), Digest::of(path.as_bytes()), attributes).unwrap();
        }
        tree.finish()
    }

    #[test]
    fn order_does_not_matter_and_directories_are_sorted() {
        let paths = ["b/x", "a", "b/a", "c/d/e", "b.c"];
        let mut other = paths;
        other.reverse();
        assert_eq!(tree(&paths).root, tree(&other).root);
        let tree = tree(&paths);
        let Content::Bytes(bytes) = &tree.directories.iter().find(|it| it.digest == tree.root).unwrap().content else {
            panic!("a directory is in memory")
        };
        let root = reapi::Directory::decode(&bytes[..]).unwrap();
        assert_eq!(root.files.iter().map(|it| &*it.name).collect::<Vec<_>>(), ["a", "b.c"]);
        assert_eq!(root.directories.iter().map(|it| &*it.name).collect::<Vec<_>>(), ["b", "c"]);
    }

    #[test]
    fn a_change_renames_only_the_directories_above_it() {
        let (old, new) = (tree(&["a/b/c", "a/d/e", "f/g"]), tree(&["a/b/c", "a/d/other", "f/g"]));
        let known: Vec<Digest> = old.directories.iter().map(|it| it.digest).collect();
        assert_eq!(new.directories.iter().filter(|it| !known.contains(&it.digest)).count(), 3);
    }

    #[test]
    fn what_is_on_disk_is_taken_whole() {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir_all(top.path().join("empty/deeper")).unwrap();
        fs::write(top.path().join("run"), "#!").unwrap();
        fs::set_permissions(top.path().join("run"), fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink("run", top.path().join("link")).unwrap();
        let mut tree = DirectoryTree::default();
        let blobs = tree.add_from_disk(b"in", top.path()).unwrap();
        assert_eq!(blobs.iter().map(|blob| blob.digest).collect::<Vec<_>>(), [Digest::of(b"#!")]);
        let inner = &tree.dirs["in"];
        assert!(inner.files["run"].is_executable && inner.dirs["empty"].dirs.contains_key("deeper"));
        assert_eq!(inner.links["link"].target, "run");
        assert_eq!(tree.finish().directories.len(), 4);
    }

    #[test]
    fn what_can_not_be_in_a_tree_is_refused() {
        let mut tree = DirectoryTree::default();
        let attributes = FileAttributes::default();
        tree.add_file(b"a", Digest::of(b""), attributes).unwrap();
        assert!(matches!(tree.add_file(b"a/b", Digest::of(b""), attributes), Err(TreeError::Conflict { .. })));
        assert!(matches!(tree.add_symlink(b"a", b"x", attributes), Err(TreeError::Conflict { .. })));
        assert!(matches!(tree.add_directory(b"\xff"), Err(TreeError::NoText { .. })));
    }

    #[test]
    fn a_tree_deeper_than_the_stack_is_named() {
        let path = vec!["d"; 100_000].join("/");
        let mut tree = DirectoryTree::default();
        tree.add_directory(path.as_bytes()).unwrap();
        assert_eq!(tree.finish().directories.len(), 100_001);
    }
}
