//! The content of a stack of layers, read without mounting it.

use std::{
    fs::Metadata,
    path::{Path, PathBuf},
};

/// Returns the metadata of `path` in the topmost layer that has it; `layers` are topmost first. No links on
/// the path are followed, because a layer may contain any links.
#[must_use]
pub fn topmost(layers: &[PathBuf], path: &Path) -> Option<Metadata> {
    let parent = path.parent()?;
    layers.iter().find_map(|dir| {
        let on_the_way =
            parent.ancestors().all(|above| dir.join(above).symlink_metadata().is_ok_and(|metadata| metadata.is_dir()));
        if on_the_way { dir.join(path).symlink_metadata().ok() } else { None }
    })
}
