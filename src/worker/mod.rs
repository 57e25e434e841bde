//! A worker for engines that assign work by the Remote Workers API, such as BuildGrid.
//!
//! ```text
//!   engine ──lease = Action──▶ session ──▶ lease: inputs ─▶ sandbox ─▶ outputs ──▶ result ──▶ engine
//!                                           │  blobs, trees       └ live log ──▶ log stream
//!                                           ▼
//!                                 store: layers and sources by their digests
//! ```
//!
//! Each slot has one session. A lease carries an Action, and its result is an `ActionResult`. Runs Actions
//! whose command is `./hm-step input.json`, without fetching that executable: this program's own sandbox does
//! what it would do. Layers and sources that were unpacked once are kept for later leases. Knows nothing
//! about pipelines.

mod bots;
mod inputs;
mod lease;
mod lease_error;
mod live_log;
mod logstream;
mod pool;
mod session;
mod spool;
mod workspace;

pub use logstream::{LogStreamError, LogStreams};
pub use pool::{Worker, WorkerOptions, WorkerStop};
pub use session::{WorkerNote, WorkerNotes};

use googleapis_tonic_google_devtools_remoteworkers_v1test2::google::{devtools::remoteworkers::v1test2 as rwapi, rpc};
