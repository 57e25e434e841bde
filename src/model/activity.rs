//! What a run waits for before its steps' commands run.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How often an activity is reported while it lasts. What takes less time is not reported.
pub(crate) const REPORTED_EVERY: Duration = Duration::from_millis(250);

/// Work that takes a while, and that no step's output shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Activity {
    /// The files of the source are read, to find out which are new. Counted in files.
    ReadingSource,
    /// New files of the source are copied to the store. Counted in files.
    CopyingSource,
    /// A registry is asked what the name of an image stands for.
    ResolvingImage,
    /// Another step, or another process, fetches the image.
    WaitingForImage,
    /// An image is downloaded. Counted in bytes.
    PullingImage,
    /// An image is unpacked. Counted in bytes.
    UnpackingImage,
    /// A machine or a container starts.
    Booting,
    /// The services of a step start.
    StartingServices,
}

/// How much of some work is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ActivityCount {
    /// How much is done.
    pub done: u64,
    /// How much there is to do, as far as that is known.
    pub total: u64,
}

impl ActivityCount {
    /// Counts what is done of a total.
    #[must_use]
    pub const fn new(done: u64, total: u64) -> Self {
        Self { done, total }
    }
}
