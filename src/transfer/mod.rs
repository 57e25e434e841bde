//! Transfer: moves layers between a store and an engine. A layer is packed once, uploaded if it is missing,
//! and unpacked once.
//!
//! The functions turn a layer of the store into the name of a layer that an engine has, and the other way
//! round. This module knows nothing about steps or caches. The cloud runner and the remote cache are both
//! based on it.

mod chunks;
mod error;
mod fetch;
mod upload;

pub(crate) use chunks::ChunkTransfers;
pub(crate) use error::TransferError;
pub(crate) use fetch::{Parcel, fetch_layer};
pub(crate) use upload::{Packable, RemoteLayer, TransferContext, Uploads};
