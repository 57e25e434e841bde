//! The IR against real pipelines and against the ecosystem's own reader.

use std::{fs, path::Path};

use hm_exec::{Plan, ir::Pipeline, plan::StepIndex};

fn fixtures() -> Vec<(String, String)> {
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

#[test]
fn every_fixture_decodes_and_comes_back_equal() {
    for (name, json) in fixtures() {
        let plan = Plan::parse(json).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(plan.dag().len(), plan.pipeline().nodes.len());
        let written = serde_json::to_vec(plan.pipeline()).unwrap();
        assert_eq!(Pipeline::decode(&written).unwrap(), *plan.pipeline(), "{name}");
    }
}

#[test]
fn a_chain_and_a_fan_of_100_000_steps_parse() {
    let nodes = |count: u32| {
        let node = |at| format!(r#"{{"step":{{"key":"s{at}","cmd":"true"}},"env":{{"A":"b"}}}}"#);
        (0..count).map(node).collect::<Vec<_>>().join(",")
    };
    let graph = |edges: Vec<String>| {
        format!(
            r#"{{"version":"0","graph":{{"nodes":[{}],"node_holes":[],"edge_property":"directed","edges":[{}]}}}}"#,
            nodes(100_000),
            edges.join(",")
        )
    };
    let chain =
        Plan::parse(graph((1..100_000).map(|to| format!(r#"[{},{to},"builds_in"]"#, to - 1)).collect())).unwrap();
    assert_eq!((chain.dag().chain_count(), chain.dag().len()), (1, 100_000));
    let backwards = graph((1..100_000).map(|to| format!(r#"[{to},{},"depends_on"]"#, to - 1)).collect());
    let backwards = Plan::parse(backwards).unwrap();
    assert_eq!((backwards.dag().order()[0], backwards.dag().chain_count()), (StepIndex(99_999), 100_000));
    let fan = Plan::parse(graph((1..100_000).map(|to| format!(r#"[0,{to},"depends_on"]"#)).collect())).unwrap();
    assert_eq!(fan.dag().children(StepIndex(0)).len(), 99_999);
}
