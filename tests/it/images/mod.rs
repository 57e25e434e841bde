//! Images: from files and registries into the store, and steps that boot from them.

mod archives;
#[cfg(feature = "registry")]
mod broken;
#[cfg(feature = "registry")]
mod credentials;
mod export;
pub(crate) mod fixture;
mod layouts;
pub(crate) mod odd;
#[cfg(feature = "registry")]
mod registry;
#[cfg(feature = "registry")]
pub(crate) mod server;
pub(crate) mod subordinate;
