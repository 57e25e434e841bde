//! The table of cases.

use std::{fmt, future::Future, pin::Pin};

use super::{
    cases::{
        cache_dirs, cancel, exit, input, inputs, isolation, limits, lineage, output, outputs, processes, services,
        snapshots, source,
    },
    harness::{Broken, Harness},
};
use crate::runner::RunnerCapabilities;

/// A promise of a runner, and its check.
pub(super) struct Case {
    pub(super) name: &'static str,
    /// The capabilities that a runner must claim for the case to apply.
    pub(super) needs: &'static [Capability],
    pub(super) check: Check,
}

type Check = for<'a, 'r> fn(&'a Harness<'r>) -> Pin<Box<dyn Future<Output = Result<(), Broken>> + Send + 'a>>;

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case").field("name", &self.name).field("needs", &self.needs).finish_non_exhaustive()
    }
}

/// A field of [`RunnerCapabilities`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Capability {
    Grace,
    Workspace,
    Snapshots,
    Layers,
    Ownership,
    Xattrs,
    Secrets,
    Isolation,
    Limits,
    Network,
    PrivateNetwork,
    CacheDirs,
    Outputs,
    Services,
    Inputs,
}

impl Capability {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Grace => "grace",
            Self::Workspace => "workspace",
            Self::Snapshots => "snapshots",
            Self::Layers => "layers",
            Self::Ownership => "ownership",
            Self::Xattrs => "xattrs",
            Self::Secrets => "secrets",
            Self::Isolation => "isolation",
            Self::Limits => "limits",
            Self::Network => "network",
            Self::PrivateNetwork => "private_network",
            Self::CacheDirs => "cache_dirs",
            Self::Outputs => "outputs",
            Self::Services => "services",
            Self::Inputs => "inputs",
        }
    }

    pub(super) fn is_in(self, claimed: &RunnerCapabilities) -> bool {
        match self {
            Self::Grace => claimed.grace,
            Self::Outputs => claimed.outputs,
            Self::Workspace => claimed.workspace,
            Self::Snapshots => claimed.snapshots,
            Self::Layers => claimed.layers,
            Self::Ownership => claimed.ownership,
            Self::Xattrs => claimed.xattrs,
            Self::Secrets => claimed.secrets,
            Self::Isolation => claimed.isolation,
            Self::Limits => claimed.limits,
            Self::Network => claimed.network,
            Self::PrivateNetwork => claimed.private_network,
            Self::CacheDirs => claimed.cache_dirs,
            Self::Services => claimed.services,
            Self::Inputs => claimed.inputs,
        }
    }
}

macro_rules! cases {
    ($($name:literal [$($need:ident)*] $module:ident::$check:ident;)*) => {
        &[$(Case { name: $name, needs: &[$(Capability::$need),*], check: |harness| Box::pin($module::$check(harness)) }),*]
    };
}

/// Every case, starting with the basic ones.
pub(super) const CASES: &[Case] = cases! {
    "exit-codes" [] exit::codes;
    "death-by-signal" [] exit::signals;
    "many-at-once" [] exit::many_at_once;
    "order-within-a-stream" [] output::order;
    "split-characters" [] output::split_characters;
    "no-trailing-newline" [] output::no_trailing_newline;
    "long-line" [] output::long_line;
    "many-lines" [] output::many_lines;
    "closed-output" [] output::closed;
    "environment" [] input::environment;
    "environment-of-the-engine" [] input::environment_of_the_engine;
    "large-input" [] input::large;
    "standard-input" [] input::standard_input;
    "background-children" [] processes::background_children;
    "dropped-attempt" [] processes::dropped_attempt;
    "cancel-before" [] cancel::before;
    "cancel-during" [Grace] cancel::during;
    "grace-of-children" [Grace] cancel::grace_of_children;
    "cancel-after" [] cancel::after;
    "timeout-with-term-ignored" [Grace] cancel::timeout_with_term_ignored;
    "source" [Workspace] source::is_there;
    "root-steps-are-apart" [Workspace] source::root_steps_are_apart;
    "lineage-files" [Workspace Snapshots] lineage::files;
    "lineage-directories" [Workspace Snapshots] lineage::directories;
    "lineage-times" [Workspace Snapshots] lineage::times;
    "lineage-ownership" [Workspace Snapshots Ownership] lineage::ownership;
    "lineage-xattrs" [Workspace Snapshots Xattrs] lineage::xattrs;
    "lineage-system" [Snapshots Isolation] lineage::system;
    "siblings" [Workspace Snapshots] snapshots::siblings;
    "edited-source" [Workspace Snapshots] source::edited;
    "edited-source-with-an-old-time" [Workspace Snapshots] source::edited_with_an_old_time;
    "commits-when-asked" [Snapshots] snapshots::commits_when_asked;
    "unknown-snapshot" [Snapshots] snapshots::unknown;
    "reaping" [Snapshots] snapshots::reaping;
    "exchange" [Workspace Snapshots Layers] snapshots::exchange;
    "workdir" [Workspace Isolation] input::workdir;
    "host-files" [Isolation] isolation::host_files;
    "host-processes" [Isolation] isolation::host_processes;
    "secrets" [Secrets] isolation::secrets;
    "secrets-stay-with-their-run" [Secrets Snapshots] isolation::secrets_stay;
    "memory" [Limits] limits::memory;
    "processes" [Limits] limits::processes;
    "arguments" [Limits] limits::arguments;
    "network-none" [Network] limits::network_none;
    "network-private" [PrivateNetwork] limits::network_private;
    "cache-directories" [CacheDirs] cache_dirs::persist;
    "outputs" [Workspace Outputs] outputs::are_copied;
    "services" [Services] services::beside;
    "files-of-other-steps" [Snapshots Inputs] inputs::shown;
};

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique() {
        let names: BTreeSet<_> = CASES.iter().map(|case| case.name).collect();
        assert_eq!(names.len(), CASES.len());
    }

    #[test]
    fn capabilities_are_named_as_their_fields() {
        let fields = serde_json::to_value(RunnerCapabilities::default()).unwrap();
        for needed in CASES.iter().flat_map(|case| case.needs) {
            assert!(fields.get(needed.name()).is_some(), "{needed:?}");
            assert!(!needed.is_in(&RunnerCapabilities::default()));
        }
    }
}
