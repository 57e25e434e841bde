//! Pipelines for tests: random graphs and their IR.

use std::{fmt::Write as _, ops::RangeInclusive};

use proptest::prelude::*;

/// A graph by step numbers. An edge's flag is `true` for `builds_in` and `false` for `depends_on`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Graph {
    pub(crate) len: usize,
    pub(crate) edges: Vec<(usize, usize, bool)>,
}

impl Graph {
    /// Returns a graph in which each step builds in the one before it.
    pub(crate) fn chain(len: usize) -> Self {
        Self { len, edges: (1..len).map(|step| (step - 1, step, true)).collect() }
    }

    /// Returns a graph in which all steps except the first build in the first.
    pub(crate) fn fan(len: usize) -> Self {
        Self { len, edges: (1..len).map(|step| (0, step, true)).collect() }
    }

    pub(crate) fn parents(&self, step: usize) -> Vec<usize> {
        self.edges.iter().filter(|edge| edge.1 == step).map(|edge| edge.0).collect()
    }

    /// Returns the parent in which `step` builds.
    pub(crate) fn lineage(&self, step: usize) -> Option<usize> {
        self.edges.iter().find(|edge| edge.1 == step && edge.2).map(|edge| edge.0)
    }

    /// Returns the IR of no-op steps `s0`, `s1`, ...
    pub(crate) fn to_ir_json(&self) -> String {
        self.to_ir_json_with(|_| String::new())
    }

    /// Returns the same IR with additional fields for each step, such as `,"timeout_seconds":1`.
    pub(crate) fn to_ir_json_with(&self, fields: impl Fn(usize) -> String) -> String {
        let mut json = String::from(r#"{"version":"0","default_image":"host","graph":{"nodes":["#);
        for step in 0..self.len {
            let comma = if step == 0 { "" } else { "," };
            let fields = fields(step);
            write!(json, r#"{comma}{{"step":{{"key":"s{step}","cmd":"true"{fields}}},"env":{{}}}}"#).unwrap();
        }
        json.push_str(r#"],"node_holes":[],"edge_property":"directed","edges":["#);
        for (at, (from, to, builds_in)) in self.edges.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            let kind = if *builds_in { "builds_in" } else { "depends_on" };
            write!(json, r#"{comma}[{from},{to},"{kind}"]"#).unwrap();
        }
        json.push_str("]}}");
        json
    }
}

/// Generates acyclic graphs whose numbering is independent of their order: up to three parents a step, at
/// most one of them by `builds_in`.
pub(crate) fn graphs(len: RangeInclusive<usize>) -> impl Strategy<Value = Graph> {
    len.prop_flat_map(|len| {
        let numbers = Just((0..len).collect::<Vec<_>>()).prop_shuffle();
        let parents =
            proptest::collection::vec(proptest::collection::vec(any::<(prop::sample::Index, bool)>(), 0..=3), len);
        (numbers, parents).prop_map(move |(numbers, parents)| {
            let mut edges = Vec::new();
            for (place, parents) in parents.iter().enumerate().skip(1) {
                let mut seen = Vec::new();
                let mut has_lineage = false;
                for (parent, builds_in) in parents {
                    let parent = parent.index(place);
                    if !seen.contains(&parent) {
                        seen.push(parent);
                        edges.push((numbers[parent], numbers[place], *builds_in && !has_lineage));
                        has_lineage |= builds_in;
                    }
                }
            }
            Graph { len, edges }
        })
    })
}

/// Returns a configuration with `cases` random cases, or as many as `PROPTEST_CASES` requests.
pub(crate) fn cases(cases: u32) -> ProptestConfig {
    let default = ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_some() { default } else { ProptestConfig { cases, ..default } }
}
