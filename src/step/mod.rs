//! Steps that run on other machines: the files that are sent to the machine, and the files that it returns.
//!
//! An Action on a remote engine is `hm-step input.json` in an input root with everything that the step needs:
//! see [`StepInput`]. The module knows neither the engine's protocol nor the runner that made the input.

mod format;
mod locate;

pub use format::{Exit, FormatError, LayerOutput, Limits, Lower, Network, StepInput, StepOutput, VERSION};
pub use locate::{NoStepProgram, STEP_VARIABLE, StepProgram, locate};
