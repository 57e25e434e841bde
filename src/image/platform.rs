//! The platform of an image, and the choice of the best one for this machine.

use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

/// The platform that an image runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Platform {
    pub(crate) os: String,
    pub(crate) architecture: String,
    /// The processor's level: `v1` to `v4` of amd64, `v5` to `v8` of arm, `v8` and `v9` of arm64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) variant: Option<String>,
}

impl Platform {
    /// Returns the processor level that an image uses on this machine. Higher is better. Returns `None` if
    /// the image does not run here.
    pub(super) fn rank(&self) -> Option<u32> {
        let here = this_platform();
        let is_same = self.os == here.os && self.architecture == here.architecture;
        is_same.then(|| self.rank_at(level())).flatten()
    }

    fn rank_at(&self, level: u32) -> Option<u32> {
        let variant = self.variant.as_deref().filter(|variant| !variant.is_empty());
        let wanted = match (self.architecture.as_str(), variant) {
            ("amd64", None) => 1,
            // What Debian calls `armhf`, and what builders that do not specify a variant mean.
            ("arm", None) => 7,
            ("arm64", None) => 8,
            ("amd64" | "arm" | "arm64", Some(variant)) => variant.trim_start_matches('v').parse().ok()?,
            // The variants of these architectures have no known meaning.
            _ => return Some(0),
        };
        (wanted <= level).then_some(wanted)
    }

    /// Formats it as in `linux/arm/v7`.
    pub(super) fn to_text(&self) -> String {
        let variant = self.variant.as_deref().filter(|variant| !variant.is_empty());
        let variant = variant.map(|variant| format!("/{}", variant.escape_default())).unwrap_or_default();
        format!("{}/{}{variant}", self.os.escape_default(), self.architecture.escape_default())
    }
}

/// Returns this machine's platform in the terms of images, without its level.
pub(crate) fn this_platform() -> Platform {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    };
    Platform { os: "linux".into(), architecture: architecture.into(), variant: None }
}

/// Returns this machine's platform with its level, for users.
pub(super) fn this_machine() -> String {
    let variant = matches!(std::env::consts::ARCH, "x86_64" | "aarch64" | "arm").then(|| format!("v{}", level()));
    Platform { variant, ..this_platform() }.to_text()
}

/// Returns the level of this machine's processor, in the numbers of variants; 0 if its architecture has none.
fn level() -> u32 {
    static LEVEL: OnceLock<u32> = OnceLock::new();
    *LEVEL.get_or_init(find_level)
}

#[cfg(target_arch = "x86_64")]
fn find_level() -> u32 {
    macro_rules! has {
        ($($feature:tt)*) => { $(std::arch::is_x86_feature_detected!($feature))&&* };
    }
    let v2 = has!("cmpxchg16b" "popcnt" "sse3" "ssse3" "sse4.1" "sse4.2");
    let v3 = v2 && has!("avx" "avx2" "bmi1" "bmi2" "f16c" "fma" "lzcnt" "movbe");
    let v4 = v3 && has!("avx512f" "avx512bw" "avx512cd" "avx512dq" "avx512vl");
    1 + u32::from(v2) + u32::from(v3) + u32::from(v4)
}

#[cfg(target_arch = "aarch64")]
fn find_level() -> u32 {
    if std::arch::is_aarch64_feature_detected!("sve2") { 9 } else { 8 }
}

#[cfg(target_arch = "arm")]
fn find_level() -> u32 {
    // `armv6l`, `armv7l`, `armv8l`, or the name that a 64-bit kernel reports.
    let name = rustix::system::uname();
    let machine = name.machine().to_string_lossy();
    let digits = machine.strip_prefix("armv").and_then(|rest| rest.get(..1)).and_then(|digit| digit.parse().ok());
    digits.unwrap_or(if &*machine == "aarch64" { 8 } else { 7 })
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "arm")))]
fn find_level() -> u32 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(architecture: &str, variant: Option<&str>, level: u32) -> Option<u32> {
        let variant = variant.map(str::to_owned);
        Platform { os: "linux".into(), architecture: architecture.into(), variant }.rank_at(level)
    }

    #[test]
    fn a_processor_runs_what_asks_for_no_more_than_its_level() {
        for (architecture, variant, level, expected) in [
            ("amd64", None, 1, Some(1)),
            ("amd64", Some(""), 1, Some(1)),
            ("amd64", Some("v1"), 1, Some(1)),
            ("amd64", Some("v2"), 1, None),
            ("amd64", Some("v3"), 4, Some(3)),
            ("amd64", Some("v4"), 3, None),
            ("amd64", Some("x"), 4, None),
            ("arm", None, 7, Some(7)),
            ("arm", None, 6, None),
            ("arm", Some("v6"), 7, Some(6)),
            ("arm", Some("7"), 7, Some(7)),
            ("arm64", None, 8, Some(8)),
            ("arm64", Some("v8"), 9, Some(8)),
            ("arm64", Some("v9"), 8, None),
            ("riscv64", Some("rva23"), 0, Some(0)),
        ] {
            assert_eq!(rank(architecture, variant, level), expected, "{architecture} {variant:?} at {level}");
        }
    }

    #[test]
    fn this_machine_runs_what_is_made_for_it() {
        assert!(this_platform().rank().is_some(), "{}", this_machine());
        assert_eq!(Platform { os: "windows".into(), ..this_platform() }.rank(), None);
        assert!(this_machine().starts_with(&this_platform().to_text()));
    }
}
