//! Images: from files and registries into the store, and steps that boot from them.

mod archives;
mod credentials;
mod export;
mod registry;
mod registry_errors;
mod selection;
mod streaming;
mod subordinate_ids;
mod unpack;
