//! What a stack of layers shows, seen from outside.

use std::{
    fs::Metadata,
    path::{Path, PathBuf},
};

/// What the topmost of some layers that knows a path has there; `layers` are topmost first. No link is followed on the way:
/// a layer may have any.
#[must_use]
pub fn topmost(layers: &[PathBuf], path: &Path) -> Option<Metadata> {
    let parent = path.parent()?;
    layers.iter().find_map(|dir| {
        let on_the_way =
            parent.ancestors().all(|above| dir.join(above).symlink_metadata().is_ok_and(|metadata| metadata.is_dir()));
        if on_the_way { dir.join(path).symlink_metadata().ok() } else { None }
    })
}
