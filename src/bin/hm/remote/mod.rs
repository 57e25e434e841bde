//! Which engine is talked to, and how it knows us.
//!
//! [`EngineArgs`] is what every command takes that talks to one. [`RemoteArgs`] adds what a run asks for, and looks into the
//! files `hm.toml`, too: arguments win over variables, those over `.hm/hm.toml`, and that over the user's own file.

mod engine_args;
mod settings;

pub(crate) use engine_args::{EngineArgs, Named};
pub(crate) use settings::{Remote, RemoteArgs, Sharing, VmTable};
