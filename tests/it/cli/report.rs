//! `hm report`: JUnit and traces.

use std::{fs, process::Command};

use serde_json::{Value, json};

use crate::support::project::{Ended, Project, ir_of};

/// Reads a report as other programs do, and prints what they find as JSON.
const READ: &str = "
import json, sys, xml.etree.ElementTree as tree
root = tree.parse(sys.argv[1]).getroot()
suite, = root
cases = [dict(case.attrib, kind=[part.tag for part in case], message=[part.get('message') for part in case],
              text=[part.text or '' for part in case]) for case in suite]
print(json.dumps({'root': root.tag, 'totals': dict(root.attrib), 'suite': dict(suite.attrib), 'cases': cases}))
";

fn project() -> Project {
    let project = Project::new();
    let failing = r"seq 1 300; printf '<b> & \033[31mred\033[0m ]]>\n' >&2; exit 3";
    let nodes = [
        json!({ "step": { "key": "build", "label": "Build & <pack>", "cmd": "true" }, "env": {} }),
        json!({ "step": { "key": "test", "cmd": failing }, "env": {} }),
        json!({ "step": { "key": "deploy", "cmd": "true" }, "env": {} }),
    ];
    let edges = [json!([0, 1, "depends_on"]), json!([1, 2, "depends_on"])];
    project.file(".hm/ci.json", &ir_of(&nodes, &edges));
    project.run(&[]).expect(1);
    project
}

#[test]
fn a_plan_is_a_graph_for_other_programs() {
    let project = project();
    let graph = |language: &str, steps: &[&str]| {
        let mut hm = project.hm(&["plan", "--runner", "process", "--graph", language]);
        Ended::of(hm.args(steps)).expect(0).stdout
    };
    let dot = graph("dot", &[]);
    assert!(dot.starts_with("digraph \"ci\" {\n") && dot.ends_with("}\n"), "{dot}");
    assert!(dot.contains("  s0 [label=\"Build & <pack> (build)\"];\n  s1 [label=\"test\"];\n"), "{dot}");
    assert!(dot.contains("  s0 -> s1 [style=dashed];\n  s1 -> s2 [style=dashed];\n"), "{dot}");
    let mermaid = "flowchart LR\n  s0[\"Build #38; #60;pack#62; (build)\"]\n  s1[\"test\"]\n  s0 -.-> s1\n";
    assert_eq!(graph("mermaid", &["ci", "test"]), mermaid);
}

#[test]
fn junit_is_valid_xml_with_what_failed() {
    let project = project();
    Ended::of(&mut project.hm(&["report", "--junit", "report.xml"])).expect(0);
    let read = Command::new("python3").args(["-c", READ]).arg(project.dir.join("report.xml")).output().unwrap();
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    let report: Value = serde_json::from_slice(&read.stdout).unwrap();
    assert_eq!(report["root"], "testsuites");
    for totals in [&report["totals"], &report["suite"]] {
        let counts = ["tests", "failures", "errors", "skipped"].map(|name| totals[name].as_str().unwrap());
        assert_eq!(counts, ["3", "1", "0", "1"]);
    }
    assert_eq!(report["suite"]["name"], "ci");
    let [build, test, deploy] = &report["cases"].as_array().unwrap()[..] else { panic!("{report}") };
    assert_eq!((&build["name"], &build["kind"]), (&json!("build"), &json!([])));
    assert_eq!(test["kind"], json!(["failure"]));
    assert_eq!(test["message"], json!(["failed with exit code 3"]));
    let output = test["text"][0].as_str().unwrap();
    // The last hundred lines.
    assert!(output.starts_with("202\n") && output.ends_with("<b> & \u{fffd}[31mred\u{fffd}[0m ]]>\n"), "{output}");
    assert_eq!(deploy["kind"], json!(["skipped"]));
}

#[test]
fn a_trace_has_a_bar_for_each_step_that_ran() {
    let project = project();
    let runs = Ended::of(&mut project.hm(&["runs", "--format", "json"])).expect(0).stdout;
    let runs: Value = serde_json::from_str(&runs).unwrap();
    let id = runs[0]["run"].as_str().unwrap();
    Ended::of(&mut project.hm(&["report", &id[..8], "--trace", "trace.json"])).expect(0);
    let trace: Value = serde_json::from_str(&fs::read_to_string(project.dir.join("trace.json")).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let bars: Vec<&Value> = events.iter().filter(|event| event["ph"] == "X").collect();
    let [build, test] = bars[..] else { panic!("{trace}") };
    for bar in [build, test] {
        assert!(bar["ts"].is_u64() && bar["dur"].is_u64() && bar["pid"] == 1 && bar["tid"] == 1, "{bar}");
    }
    let of = |bar: &Value, name: &str| bar[name].as_u64().unwrap();
    assert!(of(build, "ts") + of(build, "dur") <= of(test, "ts"), "{trace}");
    assert_eq!((&build["args"]["name"], &test["args"]["exit_code"]), (&json!("Build & <pack>"), &json!(3)));
    // Every lane and the process have a name.
    let names: Vec<&Value> =
        events.iter().filter(|event| event["ph"] == "M").map(|event| &event["args"]["name"]).collect();
    assert_eq!(names, [&json!("hm ci"), &json!("lane 1")]);
    assert_eq!(trace["otherData"]["run"], id);

    let wrong = Ended::of(&mut project.hm(&["report", "00000000", "--trace", "x"])).expect(2).stderr;
    assert!(wrong.contains("no run with id prefix `00000000`"), "{wrong}");
    Ended::of(&mut project.hm(&["report"])).expect(2);
    let unwritable = Ended::of(&mut project.hm(&["report", "--junit", "/nope/x.xml"])).expect(2).stderr;
    assert!(unwritable.contains("failed to write /nope/x.xml"), "{unwritable}");
}
