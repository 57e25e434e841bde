//! Pipelines as JSON: the real ones, and any nodes and edges.

use std::{fs, path::Path};

use serde_json::{Value, json};

/// Returns the real pipelines, by file name.
pub(crate) fn fixtures() -> Vec<(String, String)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ir");
    let mut found: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read_to_string(path).unwrap()))
        .collect();
    found.sort();
    assert!(!found.is_empty());
    found
}

/// Returns an IR with `nodes` and `edges`.
pub(crate) fn ir(nodes: &Value, edges: &Value) -> Value {
    json!({ "version": "0", "graph": { "nodes": nodes, "node_holes": [], "edge_property": "directed", "edges": edges } })
}
