//! What runs one step on any machine: the jail, trees of files, and the files that travel.
//!
//! ```text
//!   hm ──input.json, source, layers──▶ hm-step ──jail──▶ the command
//!    ▲                                    │
//!    └────────result.json, layer──────────┘
//! ```
//!
//! The library is a leaf of hm-exec: `tree` imports nothing, `jail` imports `tree`, and `guest` imports
//! `jail`. There is no runtime, no store and no network: the static program `hm-step`, which is sent to other
//! machines, consists of nothing else. An Action on a remote engine is `hm-step input.json` in an input root
//! with everything that the step needs: see [`StepInput`]. The crate is an internal part of hm-exec and
//! promises nothing to others.

mod awake;
mod built_in;
mod elf;
mod format;
pub mod guest;
pub mod jail;
mod locate;
pub mod streams;
pub mod tree;

pub use awake::Awake;
pub use format::{
    ATTRIBUTES_SUFFIX, Exit, FormatError, LAYER_CACHE_VARIABLE, LayerOutput, Limits, Lower, Network, StepInput,
    StepOutput, VERSION,
};
pub use locate::{NoStepProgram, STEP_VARIABLE, StepProgram, locate};
