//! Transfer: layers on their way between a store and an engine, packed once, uploaded where they are missing, unpacked once.
//!
//! In: a layer of the store, or the name of one that an engine has. Out: the other. Knows neither steps nor caches: the cloud
//! runner and the remote cache both stand on it.

mod error;
mod fetch;
mod upload;

pub(crate) use error::TransferError;
pub(crate) use fetch::{Parcel, fetch_layer};
pub(crate) use upload::{Ground, Packable, Uploads, digest};
