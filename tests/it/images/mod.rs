//! Images: from files and registries into the store, and steps that boot from them.

mod archives;
#[cfg(feature = "registry")]
mod broken;
mod export;
mod fixture;
#[cfg(feature = "registry")]
mod registry;
mod subordinate;
