//! What the parts of a store share.

use std::sync::Arc;

use super::{index::Index, instance::Instance, paths::Paths, trash::Trash};

/// The store's directory: the names in it, its index, this process's place in it, and removal from it.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) trash: Trash,
    pub(super) index: Index,
    pub(super) instance: Arc<Instance>,
    pub(super) paths: Paths,
}
