//! The store: frozen sources, layers, snapshots, images. Knows nothing of pipelines.

mod archives;

pub use archives::Archives;
