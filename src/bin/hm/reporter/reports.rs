//! What a step left for the user: the results of its tests, and where its outputs are.

use hm_exec::{
    outcome::{FailedTest, TestResults},
    runner::ArtifactRef,
};

use super::{style::Style, text};

/// The most failed tests of a step that are shown.
const SHOWN: usize = 10;

/// Returns the lines about what the step `title` left.
pub(super) fn lines(title: &str, artifacts: &[ArtifactRef], tests: Option<&TestResults>, style: Style) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(TestResults { tests, failed, skipped, failures, .. }) = tests {
        let failed_count = if *failed > 0 { style.bad(&format!("{failed} failed")) } else { "0 failed".to_owned() };
        lines.push(format!("{title}: {}, {failed_count}, {skipped} skipped", text::count(*tests as usize, "test")));
        for FailedTest { name, message } in failures.iter().take(SHOWN) {
            let colon = if message.is_empty() { "" } else { ": " };
            lines.push(format!("  {}{colon}{}", text::clean(name), text::clean(message)));
        }
        let more = (*failed as usize).saturating_sub(failures.len().min(SHOWN));
        if more > 0 {
            lines.push(format!("  ... {more} more"));
        }
    }
    if let Some(dir) = artifacts.iter().find_map(|artifact| out_dir(&artifact.key)) {
        lines.push(format!("{title}: {} in {}", text::count(artifacts.len(), "output"), text::clean(dir)));
    }
    lines
}

/// Returns the directory of a step's outputs: the first four names of the path of one.
fn out_dir(key: &str) -> Option<&str> {
    let rest = key.strip_prefix(".hm/out/")?;
    let (end, _) = rest.match_indices('/').nth(1)?;
    Some(&key[..key.len() - rest.len() + end])
}
