//! Every mistake that a pipeline can show by itself, with its exact message.

use hm_exec::ir::{InvalidPipeline, Pipeline, ProblemKind, ProblemPlace};
use serde_json::{Value, json};

use crate::support::ir::ir;

fn node(key: &str) -> Value {
    json!({ "step": { "key": key, "cmd": "true" }, "env": {} })
}

/// Returns a node whose step has an additional or changed field.
fn node_with(key: &str, field: &str, value: Value) -> Value {
    let mut node = node(key);
    node["step"][field] = value;
    node
}

/// Returns the IR of three steps `a`, `b`, `c` with these edges.
fn edges(edges: Value) -> Value {
    ir(&json!([node("a"), node("b"), node("c")]), &edges)
}

fn with(mut ir: Value, pointer: &str, value: Value) -> Value {
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    ir.pointer_mut(parent).unwrap()[field] = value;
    ir
}

fn refusal(text: &str) -> InvalidPipeline {
    match Pipeline::decode(text.as_bytes()) {
        Ok(_) => panic!("accepted: {text}"),
        Err(invalid) => invalid,
    }
}

#[track_caller]
fn assert_refused(ir: &Value, expected: &[&str]) {
    let invalid = refusal(&ir.to_string());
    let lines: Vec<_> = invalid.problems().iter().map(ToString::to_string).collect();
    assert_eq!(lines, expected, "for {ir}");
    assert_eq!(invalid.to_string(), format!("invalid pipeline:\n  {}", expected.join("\n  ")));
}

#[test]
fn each_mistake_is_reported_with_its_place() {
    for (ir, expected) in [
        // The pipeline.
        (
            with(edges(json!([])), "/version", json!("1")),
            "pipeline: unknown IR version `1`, expected `0`: upgrade this program or the DSL",
        ),
        (
            with(edges(json!([])), "/timeout_seconds", json!(0)),
            "pipeline: `timeout_seconds` must be a whole number from 1 to 4294967295, not 0",
        ),
        (
            with(edges(json!([])), "/default_image", json!("a\0")),
            "pipeline: `default_image` contains a NUL byte, which cannot be passed to a program",
        ),
        (
            with(edges(json!([])), "/graph/node_holes", json!([1])),
            "pipeline: `node_holes` must be empty: number the nodes without gaps",
        ),
        (
            with(edges(json!([])), "/graph/edge_property", json!("undirected")),
            "pipeline: `edge_property` must be `directed`, not `undirected`",
        ),
        // Steps.
        (ir(&json!([node("a"), node("")]), &json!([])), "node 1: the step's key is empty"),
        (
            ir(&json!([node("a"), node("b"), node("a")]), &json!([])),
            "step `a`: duplicate key: nodes 0 and 2 both have it",
        ),
        (
            ir(&json!([node_with("a", "timeout_seconds", json!(0))]), &json!([])),
            "step `a`: `timeout_seconds` must be a whole number from 1 to 4294967295, not 0",
        ),
        (
            ir(&json!([node_with("a", "timeout_seconds", json!(4_294_967_296_u64))]), &json!([])),
            "step `a`: `timeout_seconds` must be a whole number from 1 to 4294967295, not 4294967296",
        ),
        (
            ir(&json!([node_with("a", "timeout_seconds", json!(-1))]), &json!([])),
            "step `a`: `timeout_seconds` must be a whole number from 1 to 4294967295, not -1",
        ),
        (
            ir(&json!([node_with("a", "timeout_seconds", json!(1.5))]), &json!([])),
            "step `a`: `timeout_seconds` must be a whole number from 1 to 4294967295, not 1.5",
        ),
        (
            ir(&json!([node("a\0")]), &json!([])),
            "step `a\\u{0}`: `key` contains a NUL byte, which cannot be passed to a program",
        ),
        (
            ir(&json!([node_with("a", "cmd", json!("true\0"))]), &json!([])),
            "step `a`: `cmd` contains a NUL byte, which cannot be passed to a program",
        ),
        (
            ir(&json!([node_with("a", "image", json!("\0"))]), &json!([])),
            "step `a`: `image` contains a NUL byte, which cannot be passed to a program",
        ),
        (
            ir(&json!([{ "step": { "key": "a", "cmd": "" }, "env": { "": "x" } }]), &json!([])),
            "step `a`: invalid variable name ``: a name must not be empty or contain `=` or NUL bytes",
        ),
        (
            ir(&json!([{ "step": { "key": "a", "cmd": "" }, "env": { "A=B": "x" } }]), &json!([])),
            "step `a`: invalid variable name `A=B`: a name must not be empty or contain `=` or NUL bytes",
        ),
        (
            ir(&json!([{ "step": { "key": "a", "cmd": "" }, "env": { "A": "x\0" } }]), &json!([])),
            "step `a`: variable `A` contains a NUL byte, which cannot be passed to a program",
        ),
        (
            ir(&json!([node_with("a", "env", json!({ "=": "x" }))]), &json!([])),
            "step `a`: invalid variable name `=`: a name must not be empty or contain `=` or NUL bytes",
        ),
        // Edges.
        (
            edges(json!([[0, 1, "depends_on"], [1, 3, "builds_in"]])),
            "edge 1 (`b` -> node 3): no node 3: the graph has 3 nodes, counted from 0",
        ),
        (
            edges(json!([[u64::MAX, 1, "depends_on"]])),
            "edge 0 (node 18446744073709551615 -> `b`): no node 18446744073709551615: the graph has 3 nodes, \
             counted from 0",
        ),
        (edges(json!([[2, 2, "depends_on"]])), "edge 0 (`c` -> `c`): a step cannot depend on itself"),
        (edges(json!([null])), "pipeline: edge 0 is null: leave out removed edges"),
        (
            edges(json!([[0, 1, "follows"]])),
            "edge 0 (`a` -> `b`): unknown kind `follows`, expected `builds_in` or `depends_on`",
        ),
        (
            edges(json!([[0, 2, "builds_in"], [1, 2, "builds_in"]])),
            "step `c`: more than one `builds_in` parent: `a` and `b`; a step starts from one snapshot, so use `depends_on` for the others",
        ),
        (
            edges(json!([[0, 1, "depends_on"], [1, 2, "builds_in"], [2, 0, "depends_on"]])),
            "pipeline: dependency cycle: `a` -> `b` -> `c` -> `a`",
        ),
    ] {
        assert_refused(&ir, &[expected]);
    }
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let nodes =
        json!([node_with("a", "timeout_seconds", json!(0)), node("a"), node(""), node("b"), node("c"), node("d")]);
    let edges = json!([
        [0, 3, "builds_in"],
        [1, 3, "builds_in"],
        [3, 3, "x"],
        [7, 8, "depends_on"],
        [4, 5, "depends_on"],
        [5, 4, "depends_on"],
        [0, 1, "depends_on"],
        [1, 0, "depends_on"],
        [3, 4, "depends_on"],
    ]);
    let pipeline = with(with(ir(&nodes, &edges), "/version", json!("2")), "/timeout_seconds", json!(0));
    assert_refused(
        &pipeline,
        &[
            "pipeline: unknown IR version `2`, expected `0`: upgrade this program or the DSL",
            "pipeline: `timeout_seconds` must be a whole number from 1 to 4294967295, not 0",
            "step `a`: `timeout_seconds` must be a whole number from 1 to 4294967295, not 0",
            "step `a`: duplicate key: nodes 0 and 1 both have it",
            "node 2: the step's key is empty",
            "edge 2 (`b` -> `b`): unknown kind `x`, expected `builds_in` or `depends_on`",
            "edge 2 (`b` -> `b`): a step cannot depend on itself",
            "edge 3 (node 7 -> node 8): no node 7: the graph has 6 nodes, counted from 0",
            "edge 3 (node 7 -> node 8): no node 8: the graph has 6 nodes, counted from 0",
            "step `b`: more than one `builds_in` parent: `a` and `a`; a step starts from one snapshot, so use `depends_on` for the others",
            "pipeline: dependency cycle: `a` -> `a` -> `a`",
            "pipeline: dependency cycle: `c` -> `d` -> `c`",
        ],
    );
}

#[test]
fn entangled_cycles_are_reported_once_by_a_short_path() {
    // a -> b -> c -> d -> a, with the short cut c -> a.
    let nodes = json!([node("a"), node("b"), node("c"), node("d")]);
    let edges = json!([
        [0, 1, "depends_on"],
        [1, 2, "depends_on"],
        [2, 3, "depends_on"],
        [3, 0, "depends_on"],
        [2, 0, "depends_on"]
    ]);
    assert_refused(&ir(&nodes, &edges), &["pipeline: dependency cycle: `a` -> `b` -> `c` -> `a`"]);
}

#[test]
fn a_value_of_the_wrong_type_is_reported_with_path_line_and_column() {
    let text =
        "{\"graph\": {\n  \"nodes\": [{\"step\": {\"key\": \"a\", \"cmd\": 5}, \"env\": {}}],\n  \"edges\": []}}";
    let invalid = refusal(text);
    assert_eq!(
        invalid.to_string(),
        "invalid pipeline:\n  line 2, column 42, at `graph.nodes[0].step.cmd`: invalid type: integer `5`, expected a string"
    );
    let [problem] = invalid.problems() else { panic!("{invalid}") };
    assert!(matches!(problem.kind(), ProblemKind::Json(_)));
    assert_eq!(problem.place(), &ProblemPlace::Json { line: 2, column: 42, path: "graph.nodes[0].step.cmd".into() });
}

#[test]
fn text_that_is_not_json_or_not_ir_is_reported_with_its_place() {
    for (text, expected) in [
        ("", "line 1, column 0: invalid JSON: EOF while parsing a value"),
        ("nonsense", "line 1, column 2: invalid JSON: expected ident"),
        ("{\"graph\": {}} x", "line 1, column 12, at `graph`: missing field `nodes`"),
        ("{}", "line 1, column 2: missing field `graph`"),
        ("5", "line 1, column 1: invalid type: integer `5`, expected an object with `graph`"),
        (
            "{\"graph\": 1}",
            "line 1, column 11, at `graph`: invalid type: integer `1`, expected an object with `nodes`, `edge_property` and `edges`",
        ),
        ("{\"version\": 0}", "line 1, column 13, at `version`: invalid type: integer `0`, expected a string"),
        ("{\"version\": \"0\", \"version\": \"0\"}", "line 1, column 26: duplicate field `version`"),
        (
            r#"{"graph": {"nodes": [], "edge_property": "directed", "edges": [[0, 1]]}}"#,
            "line 1, column 69, at `graph.edges[0]`: invalid length 2, expected `[from, to, kind]`",
        ),
        (
            r#"{"graph": {"nodes": [{"step": {"key": "a", "cmd": "b", "cache": "ttl"}, "env": {}}]}}"#,
            "line 1, column 69, at `graph.nodes[0].step.cache`: invalid type: string \"ttl\", expected an object with \
             `policy`",
        ),
    ] {
        assert_eq!(refusal(text).problems()[0].to_string(), expected, "for {text}");
    }
    let valid = edges(json!([])).to_string();
    let trailing = refusal(&format!("{valid}\n]"));
    assert_eq!(trailing.problems()[0].to_string(), "line 2, column 1: invalid JSON: trailing characters");
    let not_utf8 = Pipeline::decode(b"{\"version\": \"\xff\"}").unwrap_err();
    assert_eq!(not_utf8.problems()[0].to_string(), "line 1, column 14: invalid JSON: invalid unicode code point");
}

#[test]
fn a_pipeline_with_too_many_steps_is_refused() {
    let node = r#"{"step":{"key":"a","cmd":""},"env":{}}"#;
    let nodes = vec![node; Pipeline::MAX_STEPS + 1].join(",");
    let invalid = refusal(&format!(r#"{{"graph":{{"nodes":[{nodes}],"edge_property":"directed","edges":[]}}}}"#));
    assert_eq!(invalid.to_string(), "invalid pipeline:\n  pipeline: too many steps: 1000001, the maximum is 1000000");
}

#[test]
fn a_flood_of_mistakes_is_counted_beyond_the_first_thousand() {
    let invalid = refusal(&edges(json!(vec![Value::Null; 5_000])).to_string());
    assert_eq!((invalid.problems().len(), invalid.omitted()), (InvalidPipeline::MAX_PROBLEMS, 4_000));
    assert_eq!(invalid.to_string().lines().last(), Some("  and 4000 more mistakes"));
}

#[test]
fn names_can_neither_flood_nor_control_a_terminal() {
    let key = format!("\x1b[2J\u{202e}\n{}", "x".repeat(1_000_000));
    let line = refusal(&ir(&json!([node(&key), node(&key)]), &json!([])).to_string()).problems()[0].to_string();
    let expected = format!("step `\\u{{1b}}[2J\\u{{202e}}\\n{}…`: duplicate key", "x".repeat(74));
    assert!(line.starts_with(&expected), "{line}");
    let cmd = json!([format!("\x1b[2J{}", "x".repeat(1_000_000))]);
    let line = refusal(&ir(&cmd, &json!([])).to_string()).problems()[0].to_string();
    assert!(line.len() < 400 && !line.contains('\x1b'), "{line}");
}

#[test]
fn commands_and_variables_that_exceed_the_argument_limit_are_refused() {
    const MOST: usize = 128 * 1024 - 1;
    let with = |cmd: usize, value: usize| {
        let node = json!({ "step": { "key": "a", "cmd": "x".repeat(cmd) }, "env": { "A": "x".repeat(value) } });
        ir(&json!([node]), &json!([]))
    };
    Pipeline::decode(with(MOST, MOST - 2).to_string().as_bytes()).unwrap();
    let command = "step `a`: `cmd` has 131072 bytes, more than the limit of 131071: move it to a file of the project";
    let variable =
        "step `a`: variable `A` has 131072 bytes, more than the limit of 131071: move it to a file of the project";
    assert_refused(&with(MOST + 1, MOST - 1), &[command, variable]);
}
