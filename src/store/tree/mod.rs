//! Operations on whole directory trees: remove, copy, pack, flatten overlay layers, unpack an image's layer.
//!
//! Plain `std` and `rustix`, relative to open directories, without recursion: trees may be deeper than `PATH_MAX` and than
//! the stack. Knows neither tokio nor the store's layout, so that a helper process in another user namespace can call the
//! same functions.

mod at;
mod copy;
mod extract;
mod flatten;
mod layer_tar;
mod measure;
mod pack;
mod remove;
mod seal;
mod unpack;

pub use copy::copy_tree;
pub use extract::extract;
pub use flatten::flatten;
pub use layer_tar::layer_tar;
pub use pack::pack;
pub use remove::remove_tree;
pub use seal::{Seal, seal};
pub use unpack::{UnpackError, UnpackLimits, Unpacked, unpack};

pub(crate) use at::{
    entries, is_opaque_at, is_whiteout_at, join, mtime, open_below, open_dir, open_dir_at, stat_at, whiteout,
};
pub(crate) use copy::reflink;
pub(crate) use measure::{Extent, FileId, measure};
pub(crate) use unpack::decompress;
