//! `hm report`: JUnit and traces.

use std::{collections::BTreeMap, fs, process::Command};

use hm_exec::{
    StepStatus,
    event::{self, RunDir, StateEvent},
    plan::StepIndex,
    runner::{ArtifactRef, Secrets},
    store::{NewRun, Store},
};
use serde_json::{Value, json};

use crate::support::{
    events::{self as run_events, RUN},
    project::{Ended, Project, ir_of},
};

/// Reads a report as other programs do, and prints what they find as JSON.
const READ: &str = "
import json, sys, xml.etree.ElementTree as tree
root = tree.parse(sys.argv[1]).getroot()
suite, = root
cases = [dict(case.attrib, kind=[part.tag for part in case], message=[part.get('message') for part in case],
              text=[part.text or '' for part in case]) for case in suite]
print(json.dumps({'root': root.tag, 'totals': dict(root.attrib), 'suite': dict(suite.attrib), 'cases': cases}))
";

/// Checks a report against the schema that Jenkins publishes for JUnit's format, which the readers of other
/// services accept, too: the elements, where they may be, and their attributes. Then checks what no schema
/// can: that the counts are right. Prints the counts.
const CHECK: &str = r"
import re, sys, xml.etree.ElementTree as tree
outcome = (set(), {'type', 'message'}, set(), True)
text = (set(), set(), set(), True)
rules = {
    'testsuites': (set(), {'name', 'time', 'tests', 'failures', 'errors'}, {'testsuite'}, False),
    'testsuite': ({'name', 'tests', 'failures', 'errors'},
                  {'group', 'time', 'skipped', 'timestamp', 'hostname', 'id', 'package', 'file', 'log', 'url'},
                  {'testsuite', 'properties', 'testcase', 'system-out', 'system-err'}, False),
    'testcase': ({'name'}, {'time', 'classname', 'group'},
                 {'skipped', 'error', 'failure', 'system-out', 'system-err'}, False),
    'failure': outcome, 'error': outcome, 'skipped': outcome, 'system-out': text, 'system-err': text,
}
def check(element):
    required, optional, children, has_text = rules[element.tag]
    names = set(element.attrib)
    assert required <= names, (element.tag, required - names)
    assert names <= required | optional, (element.tag, names - required - optional)
    assert has_text or not (element.text or '').strip(), (element.tag, element.text)
    for name in names & {'tests', 'failures', 'errors', 'skipped'}:
        assert element.tag != 'testcase' and re.fullmatch('[0-9]+', element.attrib[name]), (element.tag, name)
    if 'time' in names:
        assert re.fullmatch(r'[0-9]+\.[0-9]{3}', element.attrib['time']), element.attrib
    if 'timestamp' in names:
        assert re.fullmatch(r'[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}', element.attrib['timestamp'])
    for child in element:
        assert child.tag in children, (element.tag, child.tag)
        assert not (child.tail or '').strip(), child.tail
        check(child)
root = tree.parse(sys.argv[1]).getroot()
assert root.tag == 'testsuites'
check(root)
suite, = root
cases = suite.findall('testcase')
of = lambda tag: sum(case.find(tag) is not None for case in cases)
assert all(sum(case.find(tag) is not None for tag in ['failure', 'error', 'skipped']) <= 1 for case in cases)
for element in [root, suite]:
    assert [int(element.get(name)) for name in ['tests', 'failures', 'errors']] == [len(cases), of('failure'), of('error')]
assert int(suite.get('skipped')) == of('skipped')
assert len({(case.get('classname'), case.get('name')) for case in cases}) == len(cases)
print(len(cases), of('failure'), of('error'), of('skipped'))
";

/// A step of a recorded run: when it started and ended, if it did, and its result.
type Step = (Option<u64>, Option<(u64, StepStatus)>);

/// Records a run of these steps. Its names and messages are hostile.
fn record(project: &Project, steps: &[Step]) {
    let store = Store::open(&project.store).unwrap();
    let source_dir = &*project.dir;
    let pipeline = "ci \"&<>'\u{1}\u{fffe}]]>";
    store.runs().begin(&NewRun { id: RUN, source_dir, pipeline, started_at: 1_800_000_000_000 }).unwrap();
    let mut meta = run_events::meta(u32::try_from(steps.len()).unwrap());
    for step in &mut meta.steps {
        step.display_name = "a \"label\" & </testcase>\u{1b}[31m".into();
    }
    let dir = RunDir::Kept(store.runs().dir(RUN));
    let (mut writer, _bus, _events) = event::create(dir, meta, &Secrets::new()).unwrap();
    for (index, (started, end)) in (0..).zip(steps) {
        let step = StepIndex(index);
        if let Some(at) = started {
            writer.emit(*at, StateEvent::StepStart { step, attempt: 1 });
        }
        let Some((at, status)) = *end else { continue };
        let key = ".hm/out/ci/a/]]><&\".xml".to_owned();
        let artifacts = vec![ArtifactRef { key, mime: "text/xml".into(), size_bytes: 7 }];
        let end = StateEvent::StepEnd {
            step,
            attempt: started.map_or(0, |_| 1),
            status,
            exit_code: 3,
            duration_ms: at - started.unwrap_or(at),
            snapshot: None,
            message: Some("because of ]]> & <this>\u{0}".into()),
            artifacts,
            details: Default::default(),
        };
        writer.emit(at, end);
    }
    run_events::end_build(writer);
    store.runs().end(RUN, 1).unwrap();
}

/// A step of each status, and one that has not ended.
const EACH: [Step; 11] = [
    (Some(0), Some((5, StepStatus::Passed))),
    (Some(0), Some((61_005, StepStatus::Flaky))),
    (Some(3), Some((9, StepStatus::Failed))),
    (Some(3), Some((9, StepStatus::FailedAllowed))),
    (None, Some((9, StepStatus::Skipped))),
    (Some(5), Some((9, StepStatus::Canceled))),
    (None, Some((4, StepStatus::CacheHit))),
    (Some(9), Some((9, StepStatus::TimedOut))),
    (Some(9), Some((20, StepStatus::OutOfMemory))),
    (Some(9), Some((21, StepStatus::Infrastructure))),
    (Some(20), None),
];

#[test]
fn junit_of_every_status_is_valid_by_the_common_schema() {
    let project = Project::with_steps(&[("a", "true", None)]);
    record(&project, &EACH);
    Ended::of(&mut project.hm(&["report", "--junit", "report.xml"])).expect(0);
    let check = Command::new("python3").args(["-c", CHECK]).arg(project.dir.join("report.xml")).output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    assert_eq!(String::from_utf8_lossy(&check.stdout), "11 3 2 2\n");
}

#[test]
fn a_trace_of_every_status_has_the_fields_of_the_format_and_no_others() {
    let project = Project::with_steps(&[("a", "true", None)]);
    record(&project, &EACH);
    let trace = Ended::of(&mut project.hm(&["report", "--trace", "-"])).expect(0).stdout;
    let trace: Value = serde_json::from_str(&trace).unwrap();
    let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let sorted = |names: &[&str]| {
        let mut names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&trace), sorted(&["traceEvents", "displayTimeUnit", "otherData"]));
    assert_eq!(trace["displayTimeUnit"], "ms");
    assert_eq!(trace["otherData"]["started_at_ms"], 1_800_000_000_000_u64);
    let (mut bars, mut lanes) = (BTreeMap::<u64, Vec<(u64, u64)>>::new(), Vec::new());
    for event in trace["traceEvents"].as_array().unwrap() {
        assert!(event["name"].is_string() && event["pid"] == 1 && event["args"].is_object(), "{event}");
        let lane = event["tid"].as_u64().unwrap();
        match event["ph"].as_str() {
            Some("M") => {
                assert_eq!(names(event), sorted(&["ph", "pid", "tid", "name", "args"]));
                assert!(names(&event["args"]) == ["name"] && event["args"]["name"].is_string(), "{event}");
                match event["name"].as_str() {
                    Some("process_name") => assert_eq!(lane, 0),
                    Some("thread_name") => lanes.push(lane),
                    _ => panic!("{event}"),
                }
            }
            Some("X") => {
                assert_eq!(names(event), sorted(&["ph", "cat", "pid", "tid", "name", "ts", "dur", "args"]));
                assert_eq!(event["cat"], "step");
                assert_eq!(names(&event["args"]), sorted(&["name", "runner", "result", "exit_code", "attempts"]));
                let (start, length) = (event["ts"].as_u64().unwrap(), event["dur"].as_u64().unwrap());
                bars.entry(lane).or_default().push((start, start + length));
            }
            _ => panic!("{event}"),
        }
    }
    // Each lane has a name, and bars that follow each other: a viewer draws bars that overlap as nested
    // calls.
    assert_eq!(bars.keys().copied().collect::<Vec<_>>(), lanes);
    assert_eq!(bars.values().map(Vec::len).sum::<usize>(), 9);
    for (lane, bars) in &bars {
        assert!(bars.windows(2).all(|pair| pair[0].1 <= pair[1].0), "lane {lane}: {bars:?}");
    }
    // Microseconds.
    assert!(bars.values().flatten().any(|bar| *bar == (0, 61_005_000)), "{bars:?}");
    // As many as there were steps at once: at 5 ms, the flaky one, two failures, and the cancelled one.
    assert_eq!(bars.len(), 4);
}

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
        let counts = ["tests", "failures", "errors"].map(|name| totals[name].as_str().unwrap());
        assert_eq!(counts, ["3", "1", "0"]);
    }
    assert_eq!(report["suite"]["skipped"], "1");
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
