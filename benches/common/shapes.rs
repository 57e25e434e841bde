//! Graphs of no-op steps, as IR, for the bench of the scheduler and its peer.

#![allow(dead_code, reason = "each bench uses a part of it")]

use std::fmt::Write as _;

/// Xorshift: the same numbers on every machine.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

type Edges = fn(usize) -> Vec<(usize, usize)>;

/// The shapes, by name.
pub(crate) const SHAPES: [(&str, Edges); 4] = [("chain", chain), ("fan", fan), ("layers", layers), ("random", random)];

fn chain(steps: usize) -> Vec<(usize, usize)> {
    (1..steps).map(|step| (step - 1, step)).collect()
}

fn fan(steps: usize) -> Vec<(usize, usize)> {
    (1..steps).map(|step| (0, step)).collect()
}

/// Layers of a hundred steps, each after three steps of the layer before.
fn layers(steps: usize) -> Vec<(usize, usize)> {
    let parents = |step: usize| (0..3).map(move |nth| (step / 100 - 1) * 100 + (step + nth * 31) % 100);
    (100..steps).flat_map(|step| parents(step).map(move |parent| (parent, step))).collect()
}

/// Up to three parents among all earlier steps.
fn random(steps: usize) -> Vec<(usize, usize)> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut below = |limit: usize| usize::try_from(random.next() >> 33).expect("31 bits") % limit;
    let mut edges = Vec::new();
    for step in 1..steps {
        let mut parents: Vec<_> = (0..=below(3)).map(|_| below(step)).collect();
        parents.sort_unstable();
        parents.dedup();
        edges.extend(parents.into_iter().map(|parent| (parent, step)));
    }
    edges
}

/// Returns the IR. A step builds in its first parent.
pub(crate) fn ir_json(steps: usize, edges: &[(usize, usize)]) -> String {
    let mut json = String::from(r#"{"version":"0","graph":{"nodes":["#);
    for step in 0..steps {
        let comma = if step == 0 { "" } else { "," };
        write!(json, r#"{comma}{{"step":{{"key":"s{step}","cmd":"true"}},"env":{{}}}}"#).expect("a string");
    }
    json.push_str(r#"],"node_holes":[],"edge_property":"directed","edges":["#);
    let mut last = None;
    for (at, (from, to)) in edges.iter().enumerate() {
        let comma = if at == 0 { "" } else { "," };
        let kind = if last.replace(to) == Some(to) { "depends_on" } else { "builds_in" };
        write!(json, r#"{comma}[{from},{to},"{kind}"]"#).expect("a string");
    }
    json.push_str("]}}");
    json
}

/// Returns the peak memory of the process since [`forget_peak`], in MiB.
pub(crate) fn peak_rss_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? / 1024)
}

/// Resets the peak memory. If the system does not support that, peaks are those since the start of the
/// process.
pub(crate) fn forget_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}
