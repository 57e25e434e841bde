//! Operations on whole directory trees: remove, copy, pack, flatten overlay layers, unpack an image's layer.
//!
//! The module uses plain `std` and `rustix`, relative to open directories, without recursion: a tree's depth
//! may exceed `PATH_MAX` and the stack. It depends neither on tokio nor on the store's layout, so a helper
//! process in another user namespace can call the same functions.

pub mod attributes;

mod at;
mod base_layer;
mod blob;
mod copy;
mod copy_out;
mod descent;
mod filesystem;
mod flatten;
mod hard_links;
mod id_map;
mod layer_tar;
mod matching;
mod measure;
mod newest;
mod pack;
mod pack_matching;
mod remove;
mod retime;
mod seal;
mod stack;
mod unpack;
mod whiteouts;

pub use base_layer::{CONTAINER_MARK, make_base_layer};
pub use blob::BlobFile;
pub use copy::copy_tree;
pub use copy_out::{copy_out, copy_sparse};
pub use flatten::flatten;
pub use id_map::IdMap;
pub use layer_tar::layer_tar;
pub use matching::{MOST_PATTERNS, PathMatch, PathPatterns, PathState, PatternError, literal_path};
pub use newest::{Newest, newest};
pub use pack::{PLAIN_SECONDS, pack, pack_plain};
pub use pack_matching::{LEFT_OUT, PackLimits, pack_matching};
pub use remove::remove_tree;
pub use retime::{FileTime, NoCopy, Retimed, Retiming, file_clock, retime};
pub use seal::{Seal, seal, seal_on_threads};
pub use stack::topmost;
pub use unpack::{UnpackError, UnpackLimits, Unpacked, unpack};

pub use at::join;
pub(crate) use at::shared_xattrs_hash;
pub use descent::Descent;
pub use {
    at::{entries, mtime, open_below, open_dir, open_dir_at, stat_at},
    copy::copy_file,
    filesystem::reflink,
    measure::{Extent, FileId, measure},
    unpack::decompress,
    whiteouts::{is_opaque_at, is_whiteout_at, whiteout},
};
