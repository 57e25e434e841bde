//! The client side of the Remote Execution API: an engine's content-addressed store, its action cache, and
//! the execution of Actions.
//!
//! Input: an [`EndpointOptions`], blobs and trees. Output: digests, files, results, and [`RemoteError`]s.
//! Every call that can be retried is, within a bound: see [`Retry`]. Knows nothing about steps, runners or
//! the store.

mod action_cache;
mod capabilities;
mod cas;
mod digest;
mod endpoint;
mod error;
mod execution;
mod log_stream;
mod options;
mod retry;
mod tree;

/// The protocol's own types.
pub use bazel_remote_apis::build::bazel::remote::execution::v2 as reapi;

pub use action_cache::ActionCache;
pub use capabilities::RemoteLimits;
pub use cas::{Blob, Cas, Content, Uploaded};
pub(crate) use digest::Hasher;
pub use digest::{Digest, DigestError, DigestFunction};
pub use endpoint::Endpoint;
pub use error::{RemoteError, RemoteErrorKind};
pub use execution::{Execution, Stage, Update};
pub use log_stream::read_log;
pub use options::{EndpointOptions, OptionsError};
pub use retry::Retry;
pub use tree::{DirectoryTree, FileAttributes, Tree, TreeError};
