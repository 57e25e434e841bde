//! Steps that run elsewhere: what travels to the machine that runs one, and what comes back.
//!
//! An Action on a remote engine is `hm-step input.json` in an input root that has all the step needs: see
//! [`StepInput`]. Knows neither the engine's protocol nor the runner that made the input.

mod format;
mod locate;

pub use format::{Exit, FormatError, LayerOutput, Limits, Lower, Network, StepInput, StepOutput, VERSION};
pub use locate::{NoStepProgram, STEP_VARIABLE, StepProgram, locate};
