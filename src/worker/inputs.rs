//! The inputs of an Action: its Command, its input root, and the blobs in it.

use prost::Message;

use crate::remote::{Cas, Digest, DigestError, DigestFunction, RemoteError, reapi};

/// The maximum size of a directory or command message.
const MESSAGE_BYTES: u64 = 64 << 20;

/// The reason why an Action's input is not available.
#[derive(Debug, thiserror::Error)]
pub(super) enum InputError {
    /// An error of the engine's store.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// A message or a path is invalid.
    #[error("invalid action: {0}")]
    Malformed(String),
}

impl From<DigestError> for InputError {
    fn from(error: DigestError) -> Self {
        Self::Malformed(format!("invalid digest: {error}"))
    }
}

/// Returns the digest in a required field.
pub(super) fn digest_of(digest: Option<&reapi::Digest>, of: &str) -> Result<Digest, InputError> {
    let digest = digest.ok_or_else(|| InputError::Malformed(format!("no digest of {of}")))?;
    // The engines that assign work by this protocol know no other function.
    Ok(DigestFunction::Sha256.parse(digest)?)
}

/// Reads a message by its digest.
pub(super) async fn message<T: Message + Default>(cas: &Cas, digest: Digest, what: &str) -> Result<T, InputError> {
    let bytes = cas.read(digest, MESSAGE_BYTES).await?;
    T::decode(&bytes[..]).map_err(|error| InputError::Malformed(format!("{what} that cannot be decoded: {error}")))
}

/// An entry of an input root.
#[derive(Debug, Clone)]
pub(super) enum TreeEntry {
    File(Digest),
    Directory(Digest),
}

/// Looks up a path below the directory `root`. The path is relative, with `/` between names.
pub(super) async fn look_up(cas: &Cas, root: &reapi::Directory, path: &str) -> Result<TreeEntry, InputError> {
    let missing = || InputError::Malformed(format!("no `{path}` in its input root"));
    let mut dir = std::borrow::Cow::Borrowed(root);
    let mut names = path.split('/').peekable();
    while let Some(name) = names.next() {
        let node = dir.directories.iter().find(|node| node.name == name);
        if names.peek().is_none() {
            if let Some(file) = dir.files.iter().find(|node| node.name == name) {
                return Ok(TreeEntry::File(digest_of(file.digest.as_ref(), path)?));
            }
            let node = node.ok_or_else(missing)?;
            return Ok(TreeEntry::Directory(digest_of(node.digest.as_ref(), path)?));
        }
        let digest = digest_of(node.ok_or_else(missing)?.digest.as_ref(), path)?;
        dir = std::borrow::Cow::Owned(message(cas, digest, "a directory").await?);
    }
    Err(missing())
}
