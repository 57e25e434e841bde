//! Runs as traces: what a collector gets, and what a bad one can do to a run, which is nothing.
//!
//! Over 500 lines because the trace of a run is checked field by field.

use std::{
    fs,
    net::TcpListener,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use hm_exec::{
    StepStatus,
    event::{self, RunDir, StateEvent},
    plan::StepIndex,
    runner::Secrets,
    store::{NewRun, Store},
};
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind, status::StatusCode};
use prost::Message;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio_rustls::rustls::{ServerConfig, pki_types::PrivateKeyDer};

use crate::support::{
    backends::usable,
    collector::{Answer, Collector, attributes},
    events::{self as run_events, RUN},
    project::{Ended, Project, eventually, ir, ir_of},
};

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// What `google.rpc.Status` is on the wire, for a code and a message.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

/// A project with a step of each kind: one passes, one passes on its second attempt, one fails, and one is
/// skipped.
fn project() -> Project {
    let project = Project::new();
    let marker = project.store.with_file_name("marker");
    // The variables of the trace are for hm alone.
    let build = "! env | grep -E 'OTEL|TRACE'";
    let flaky = format!("test -e {0} || {{ touch {0}; exit 9; }}", marker.display());
    let step = |key: &str, cmd: &str| json!({ "step": { "key": key, "cmd": cmd }, "env": {} });
    let mut nodes = [step("build", build), step("flaky", &flaky), step("test", "exit 3"), step("deploy", "true")];
    nodes[0]["step"]["label"] = json!("Build & <pack>");
    nodes[1]["step"]["runner_args"] = json!({ "retries": 1 });
    let edges = [
        json!([0, 1, "builds_in"]),
        json!([0, 2, "depends_on"]),
        json!([1, 2, "depends_on"]),
        json!([2, 3, "builds_in"]),
    ];
    project.file(".hm/ci.json", &ir_of(&nodes, &edges));
    project
}

/// Runs a pipeline with a collector.
fn run(project: &Project, endpoint: &str, args: &[&str]) -> Ended {
    Ended::of(project.hm(&["run", "--runner", "process"]).args(args).env(ENDPOINT, endpoint))
}

fn run_id(project: &Project) -> String {
    let runs = Ended::of(&mut project.hm(&["runs", "--format", "json"])).expect(0).stdout;
    serde_json::from_str::<Value>(&runs).unwrap()[0]["run"].as_str().unwrap().to_owned()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[track_caller]
fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let found: Vec<_> = spans.iter().filter(|span| span.name == name).collect();
    let [span] = found[..] else { panic!("{name} in {:?}", spans.iter().map(|span| &span.name).collect::<Vec<_>>()) };
    span
}

/// Returns what the attributes of a span are, without the id of a step's run, which is another each time.
fn known(span: &Span) -> Vec<(&str, String)> {
    let varies = ["cicd.pipeline.task.run.id", "hm.memory.peak_bytes", "hm.cpu.time_ms"];
    attributes(&span.attributes).into_iter().filter(|(key, _)| !varies.contains(key)).collect()
}

fn pairs<'a>(pairs: &[(&'a str, &str)]) -> Vec<(&'a str, String)> {
    pairs.iter().map(|(key, value)| (*key, (*value).to_owned())).collect()
}

#[test]
fn a_run_is_a_trace_field_by_field() {
    let collector = Collector::start(|_| Answer::accepted());
    let project = project();
    let ended = run(&project, &collector.endpoint(), &["-k"]).expect(1);
    assert!(!ended.stderr.contains("warning"), "{}", ended.stderr);
    let [received] = &collector.received()[..] else { panic!("one request is enough") };
    assert_eq!((&*received.path, received.header("content-type")), ("/v1/traces", Some("application/x-protobuf")));
    assert_eq!(received.header("content-encoding"), None);
    assert!(received.header("user-agent").unwrap().starts_with("hm-exec/"), "{received:?}");

    let id = run_id(&project);
    let request = received.request();
    let [resource] = &request.resource_spans[..] else { panic!("{request:?}") };
    let version = env!("CARGO_PKG_VERSION");
    let expected = [
        ("service.name", "hm"),
        ("service.version", version),
        ("cicd.pipeline.name", "ci"),
        ("cicd.pipeline.run.id", &id),
    ];
    assert_eq!(attributes(&resource.resource.as_ref().unwrap().attributes), pairs(&expected));
    assert!(resource.schema_url.starts_with("https://opentelemetry.io/schemas/1."), "{}", resource.schema_url);
    let [scope] = &resource.scope_spans[..] else { panic!("{request:?}") };
    let named_scope = scope.scope.as_ref().unwrap();
    assert_eq!((&*named_scope.name, &*named_scope.version), ("hm", version));

    // The run, four steps, and two attempts of the one that had two.
    let spans = &scope.spans;
    assert_eq!(spans.len(), 7, "{spans:#?}");
    let [root, build, flaky, test, deploy] =
        ["RUN ci", "Build & <pack>", "", "exit 3", "true"].map(|name| match name {
            "" => spans.iter().find(|span| span.name.starts_with("test -e")).unwrap(),
            name => named(spans, name),
        });
    assert!(spans.iter().all(|span| hex(&span.trace_id) == id.replace('-', "")));
    let mut ids: Vec<_> = spans.iter().map(|span| hex(&span.span_id)).collect();
    ids.sort();
    ids.dedup();
    assert!(ids.len() == 7 && ids.iter().all(|id| id.len() == 16 && *id != "0".repeat(16)), "{ids:?}");

    assert_eq!((root.kind, &*root.parent_span_id), (SpanKind::Server as i32, &[][..]));
    let expected = [
        ("cicd.pipeline.action.name", "RUN"),
        ("cicd.pipeline.name", "ci"),
        ("cicd.pipeline.run.id", &id),
        ("cicd.pipeline.result", "failure"),
        ("error.type", "command_failed"),
    ];
    assert_eq!(known(root), pairs(&expected));
    assert_eq!(root.status.as_ref().unwrap().code(), StatusCode::Error);

    let of = |key: &str, name: &str, result: &str, more: &[(&'static str, &str)]| {
        let all = [("cicd.pipeline.task.name", name), ("cicd.pipeline.task.run.result", result), ("hm.step.key", key)];
        [pairs(&all), pairs(&[("hm.runner", "process")]), pairs(more)].concat()
    };
    let ran = |attempts, code| [("hm.attempts", attempts), ("process.exit.code", code)];
    let with_image = [&[("container.image.name", "host")], &ran("1", "0")[..]].concat();
    assert_eq!(known(build), of("build", "Build & <pack>", "success", &with_image));
    let flaky_is = [&[("hm.flaky", "true")], &ran("2", "0")[..]].concat();
    assert_eq!(known(flaky), of("flaky", &flaky.name, "success", &flaky_is));
    let failed = [("error.type", "command_failed"), ("container.image.name", "host")];
    assert_eq!(known(test), of("test", "exit 3", "failure", &[&failed[..], &ran("1", "3")].concat()));
    assert_eq!(known(deploy), of("deploy", "true", "skip", &[]));
    for step in [build, flaky, test, deploy] {
        assert_eq!((step.kind, &step.parent_span_id), (SpanKind::Internal as i32, &root.span_id), "{step:?}");
        let task = attributes(&step.attributes).into_iter().find(|(key, _)| *key == "cicd.pipeline.task.run.id");
        assert!(task.is_some_and(|(_, task)| task[..24] == id[..24] && task != id), "{step:?}");
    }
    let status = test.status.as_ref().unwrap();
    assert_eq!((status.code(), &*status.message), (StatusCode::Error, "failed with exit code 3"));
    assert!([build, flaky, deploy].iter().all(|span| span.status.is_none()));

    // What a step waited for.
    let links = |span: &Span| -> Vec<(String, String)> {
        let links = span.links.iter().inspect(|link| assert_eq!(link.trace_id, root.trace_id));
        links.map(|link| (hex(&link.span_id), attributes(&link.attributes)[0].1.clone())).collect()
    };
    let to = |span: &Span, kind: &str| (hex(&span.span_id), kind.to_owned());
    assert_eq!((links(root), links(build)), (vec![], vec![]));
    assert_eq!(links(flaky), [to(build, "builds_in")]);
    assert_eq!(links(test), [to(build, "depends_on"), to(flaky, "depends_on")]);
    assert_eq!(links(deploy), [to(test, "builds_in")]);

    // Attempts are in their step, one after the other.
    let (first, second) = (named(spans, "attempt 1"), named(spans, "attempt 2"));
    assert!([first, second].iter().all(|attempt| attempt.parent_span_id == flaky.span_id));
    let attempt = |number, result| [("hm.attempt", number), ("cicd.pipeline.task.run.result", result)];
    let first_is = [&attempt("1", "failure")[..], &[("error.type", "command_failed"), ("process.exit.code", "9")]];
    assert_eq!(known(first), pairs(&first_is.concat()));
    assert_eq!(known(second), pairs(&[&attempt("2", "success")[..], &[("process.exit.code", "0")]].concat()));
    assert_eq!((first.status.as_ref().unwrap().code(), &second.status), (StatusCode::Error, &None));
    assert_eq!(
        (flaky.start_time_unix_nano, flaky.end_time_unix_nano),
        (first.start_time_unix_nano, second.end_time_unix_nano)
    );
    assert!(first.end_time_unix_nano <= second.start_time_unix_nano);

    // The times are those of the other report of when steps ran.
    let trace = Ended::of(&mut project.hm(&["report", "--trace", "-"])).expect(0).stdout;
    let trace: Value = serde_json::from_str(&trace).unwrap();
    let started = trace["otherData"]["started_at_ms"].as_u64().unwrap() * 1_000_000;
    assert_eq!(root.start_time_unix_nano, started);
    for (span, key) in [(build, "build"), (flaky, "flaky"), (test, "test")] {
        let bar = trace["traceEvents"].as_array().unwrap().iter().find(|event| event["name"] == key).unwrap();
        assert_eq!(span.start_time_unix_nano, started + bar["ts"].as_u64().unwrap() * 1000, "{key}");
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{key}");
        assert!(span.end_time_unix_nano <= root.end_time_unix_nano, "{key}");
    }
    assert!(
        build.end_time_unix_nano <= flaky.start_time_unix_nano && flaky.end_time_unix_nano <= test.start_time_unix_nano
    );
    assert_eq!(deploy.start_time_unix_nano, deploy.end_time_unix_nano);

    // To send it again is to send the same spans.
    let mut again = project.hm(&["report", "--otlp"]);
    let again = Ended::of(again.env(ENDPOINT, collector.endpoint())).expect(0);
    assert_eq!(collector.received()[1].body, received.body);
    let said = format!("sent 7 spans to {}/v1/traces as trace {}\n", collector.endpoint(), id.replace('-', ""));
    assert_eq!((again.stderr, again.stdout), (said, String::new()));

    // A cached step passed without an attempt: none of these steps is cached, and all ran again.
    run(&project, &collector.endpoint(), &["-k"]).expect(1);
    assert_eq!(collector.received().len(), 3);
    assert_ne!(collector.received()[2].spans()[0].trace_id, root.trace_id);
}

#[test]
fn the_users_variables_and_files_decide_where_a_trace_goes_and_a_project_does_not() {
    let collector = Collector::start(|_| Answer::accepted());
    let project = Project::with_steps(&[("a", "true", None)]);
    let endpoint = collector.endpoint();
    let count = || collector.received().len();

    // No file of the checkout can name a collector: neither by the key, nor through an environment.
    let table = format!("[otlp]\nendpoint = '{endpoint}'\n");
    for name in [".hm/hm.toml", ".hm/config.toml"] {
        project.file(name, &table);
        let refused = project.run(&[]).expect(2).stderr;
        assert!(refused.contains("`[otlp]` is not allowed in a project's hm.toml"), "{refused}");
        let unnamed = Ended::of(&mut project.hm(&["report", "--otlp"])).expect(2).stderr;
        assert!(!unnamed.contains("sent"), "{unnamed}");
        fs::remove_file(project.dir.join(name)).unwrap();
    }
    project.file(".env", &format!("{ENDPOINT}={endpoint}\n"));
    project.run(&["-e", &format!("{ENDPOINT}={endpoint}")]).expect(0);
    assert_eq!(count(), 0);
    let unnamed = Ended::of(&mut project.hm(&["report", "--otlp"])).expect(2).stderr;
    assert!(unnamed.contains("no collector is named") && unnamed.contains(ENDPOINT), "{unnamed}");

    // The user's file does, and the user's variables come first.
    let config = project.store.with_file_name("config");
    fs::create_dir_all(config.join("hm")).unwrap();
    fs::write(config.join("hm/hm.toml"), &table).unwrap();
    let mut hm = project.hm(&["run", "--runner", "process"]);
    Ended::of(hm.env("XDG_CONFIG_HOME", &config)).expect(0);
    assert_eq!(count(), 1);
    let traces = format!("{endpoint}/in");
    Ended::of(hm.env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", traces)).expect(0);
    assert_eq!((count(), &*collector.received()[1].path), (2, "/in"));
    Ended::of(hm.env("OTEL_SDK_DISABLED", "true")).expect(0);
    assert_eq!(count(), 2);

    // The run is a part of what started it.
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331";
    hm.env_remove("OTEL_SDK_DISABLED").env("TRACESTATE", "vendor=1").env("OTEL_RESOURCE_ATTRIBUTES", "team=a");
    Ended::of(hm.env("TRACEPARENT", format!("{parent}-00"))).expect(0);
    assert_eq!(count(), 2, "the trace is not sampled");
    Ended::of(hm.env("TRACEPARENT", format!("{parent}-01"))).expect(0);
    let received = &collector.received()[2];
    let root = &received.spans()[0];
    assert_eq!((hex(&root.trace_id), hex(&root.parent_span_id)), (parent[3..35].to_owned(), parent[36..].to_owned()));
    assert_eq!(root.trace_state, "vendor=1");
    let request = received.request();
    let resource = attributes(&request.resource_spans[0].resource.as_ref().unwrap().attributes);
    assert!(resource.contains(&("team", "a".to_owned())), "{resource:?}");
}

#[test]
fn secrets_are_in_no_trace_and_credentials_in_no_message() {
    // A collector that repeats what it got.
    let status = RpcStatus { code: 16, message: "no such key: Bearer s3cret-key\n\u{1b}[31m".repeat(9) };
    let refuse =
        move |_| Answer::Status("401 Unauthorized", "content-type: application/x-protobuf\r\n", status.encode_to_vec());
    let collector = Collector::start(refuse);
    let project = Project::new();
    let cmd = "cat /run/secrets/TOKEN; exit 3";
    let node = json!({ "step": { "key": "a", "cmd": cmd, "label": "deploy with s3cr3t-value" }, "env": {} });
    project.file(".hm/ci.json", &ir_of(&[node], &[]));
    let mut hm = project.hm(&["run", "--secret", "TOKEN"]);
    hm.env("TOKEN", "s3cr3t-value").env("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20s3cret-key,x-a=b");
    hm.env(ENDPOINT, format!("http://me:p4ssw0rd@127.0.0.1:{}/?key=s3cret-key", collector.port()));
    let ended = Ended::of(&mut hm);
    if !usable("the sandbox", ended.code != Some(3), &ended.stderr) {
        return;
    }
    let ended = ended.expect(1);
    let [received] = &collector.received()[..] else { panic!("an answer like this is not asked for again") };
    assert_eq!((received.header("authorization"), received.header("x-a")), (Some("Bearer s3cret-key"), Some("b")));
    let body = String::from_utf8_lossy(&received.body);
    assert!(body.contains("deploy with ***") && !body.contains("s3cr3t-value"), "{body}");
    let [warning, hint] = &warnings(&ended.stderr)[..] else { panic!("{}", ended.stderr) };
    let expected = format!(
        "warning: failed to send the trace of the run to http://127.0.0.1:{}/v1/traces: it answered 401 Unauthorized: no such key: ***",
        collector.port()
    );
    assert!(warning.starts_with(&expected) && warning.chars().count() < expected.chars().count() + 220, "{warning}");
    assert!(!ended.stderr.contains("s3cret-key") && !ended.stderr.contains("p4ssw0rd") && !warning.contains('\u{1b}'));
    assert_eq!(*hint, format!("hint: run `hm report {} --otlp` to send it later", &run_id(&project)[..8]));
    assert!(ended.stdout.contains("exit 3") && !ended.stdout.contains("s3cret-key"), "{}", ended.stdout);
    let listed = Ended::of(
        project.hm(&["config"]).env("OTEL_EXPORTER_OTLP_HEADERS", "a=s3cret-key").env(ENDPOINT, "http://me:p4ssw0rd@c"),
    );
    assert!(
        listed.stdout.contains(ENDPOINT) && !listed.stdout.contains("s3cret") && !listed.stdout.contains("p4ssw0rd")
    );

    // Off this machine they need encryption. Nothing is sent then.
    let mut hm = project.hm(&["run", "--runner", "process"]);
    let ended =
        Ended::of(hm.env(ENDPOINT, "http://collector.invalid:4318").env("OTEL_EXPORTER_OTLP_HEADERS", "a=s3cret"))
            .expect(1);
    let [warning, _] = &warnings(&ended.stderr)[..] else { panic!("{}", ended.stderr) };
    assert!(
        warning.starts_with(
            "warning: refusing to send OTEL_EXPORTER_OTLP_HEADERS to http://collector.invalid:4318/v1/traces"
        ),
        "{warning}"
    );
}

/// Returns the warnings of a run, and what follows each.
fn warnings(stderr: &str) -> Vec<&str> {
    stderr.lines().skip_while(|line| !line.starts_with("warning: ")).collect()
}

#[test]
fn a_bad_collector_costs_a_warning_and_a_bounded_time() {
    let project = Project::with_steps(&[("a", "true", None)]);
    let failing = Project::with_steps(&[("a", "exit 3", None)]);
    let protobuf = "content-type: application/x-protobuf\r\n";
    let bad = RpcStatus { code: 3, message: "bad span".into() };
    let cases: [(Answer, &str, usize); 11] = [
        (Answer::Hang, "there was no answer within 2 s", 1),
        (Answer::Drip, "there was no answer within 2 s", 1),
        (Answer::Close, "/v1/traces: ", 1),
        // Again after 200 ms, after 400 ms more, and after 800 ms more.
        (Answer::Status("503 Service Unavailable", "", vec![]), "it answered 503 Service Unavailable", 4),
        (
            Answer::Status("429 Too Many Requests", "retry-after: 3600\r\n", vec![]),
            "it answered 429 Too Many Requests",
            1,
        ),
        (
            Answer::Status("429 Too Many Requests", "retry-after: 18446744073709551615\r\n", vec![]),
            "it answered 429 Too Many Requests",
            1,
        ),
        (Answer::Status("400 Bad Request", protobuf, bad.encode_to_vec()), "it answered 400 Bad Request: bad span", 1),
        (Answer::Status("404 Not Found", "", vec![b'<'; 9 << 20]), "it answered 404 Not Found", 1),
        (
            Answer::Status("301 Moved", "location: http://127.0.0.1:1/\r\n", vec![]),
            "it answered 301 Moved Permanently",
            1,
        ),
        (Answer::partial(1, "too\nlarge"), "/v1/traces rejected 1 of 2 spans: too large", 1),
        (Answer::partial(0, "use gzip"), "/v1/traces rejected 0 of 2 spans: use gzip", 1),
    ];
    for (answer, expected, requests) in cases {
        let limit = if matches!(answer, Answer::Hang | Answer::Drip) { 2_000 } else { 30_000 };
        let (shown, given) = (format!("{answer:?}").chars().take(60).collect::<String>(), answer.clone());
        let collector = Collector::start(move |_| given.clone());
        for (project, code) in [(&project, 0), (&failing, 1)] {
            let before = collector.received().len();
            let mut hm = project.hm(&["run", "--runner", "process"]);
            hm.env(ENDPOINT, collector.endpoint()).env("OTEL_EXPORTER_OTLP_TIMEOUT", limit.to_string());
            let began = Instant::now();
            let ended = Ended::of(&mut hm).expect(code);
            // Less than the limit of all answers but two: what cannot succeed is not waited for.
            assert!(began.elapsed() < Duration::from_secs(25), "{shown}: {:?}", began.elapsed());
            let found = warnings(&ended.stderr);
            assert_eq!(
                found.iter().filter(|line| line.starts_with("warning:")).count(),
                1,
                "{shown}: {}",
                ended.stderr
            );
            assert!(found[0].contains(&collector.endpoint()) && found[0].contains(expected), "{shown}: {}", found[0]);
            eventually("a request", || collector.received().len() > before);
            assert_eq!(collector.received().len() - before, requests, "{shown}");
        }
    }
    // Nothing listens there.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let ended = run(&project, &format!("http://{closed}"), &[]).expect(0);
    assert!(
        warnings(&ended.stderr)[0].contains(&format!("http://{closed}/v1/traces: Connection refused")),
        "{}",
        ended.stderr
    );
    // A value that cannot be used is a warning as well.
    let mut hm = project.hm(&["run", "--runner", "process"]);
    let ended = Ended::of(hm.env(ENDPOINT, "http://x").env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")).expect(0);
    assert!(
        warnings(&ended.stderr)[0].starts_with("warning: OTEL_EXPORTER_OTLP_PROTOCOL is not http/protobuf"),
        "{}",
        ended.stderr
    );
    // Asked for by its name, it is an error.
    let mut report = project.hm(&["report", "--otlp"]);
    let failed = Ended::of(report.env(ENDPOINT, format!("http://{closed}"))).expect(3).stderr;
    assert!(failed.starts_with("error: failed to send the trace of the run to "), "{failed}");
}

#[test]
fn a_collector_that_hangs_delays_the_end_by_five_seconds_at_most_and_an_interrupt_ends_that() {
    let collector = Collector::start(|_| Answer::Hang);
    let project = Project::with_steps(&[("a", "true", None)]);
    let began = Instant::now();
    let ended = run(&project, &collector.endpoint(), &[]).expect(0);
    assert!(warnings(&ended.stderr)[0].ends_with("there was no answer within 5 s"), "{}", ended.stderr);
    assert!((5..40).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());

    let mut hm = project.hm(&["run", "--runner", "process"]);
    hm.env(ENDPOINT, collector.endpoint()).env("OTEL_EXPORTER_OTLP_TIMEOUT", "60000");
    let began = Instant::now();
    let child = hm.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("the trace is sent", || collector.received().len() == 2);
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let ended = Ended::from(child.wait_with_output().unwrap()).expect(0);
    assert!(warnings(&ended.stderr)[0].ends_with(": interrupted"), "{}", ended.stderr);
    assert!(began.elapsed() < Duration::from_secs(50), "{:?}", began.elapsed());

    // After a cancelled run, the time limit is shorter.
    let marker = project.store.with_file_name("started");
    project.file(".hm/ci.json", &ir(&[("a", &format!("touch {}; exec sleep 1000", marker.display()), None)]));
    let child = hm.spawn().unwrap();
    eventually("the step runs", || marker.exists());
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let ended = Ended::from(child.wait_with_output().unwrap()).expect(130);
    assert!(warnings(&ended.stderr)[0].ends_with("there was no answer within 1 s"), "{}", ended.stderr);
    eventually("the trace of the cancelled run", || collector.received().len() == 3);
    let spans = collector.received()[2].spans();
    assert!(known(named(&spans, "RUN ci")).contains(&("cicd.pipeline.result", "cancellation".into())), "{spans:?}");
}

#[test]
fn a_busy_collector_gets_the_same_request_again() {
    let busy = |before| match before {
        0 => Answer::Status("503 Service Unavailable", "retry-after: 0\r\n", vec![]),
        1 => Answer::Status("429 Too Many Requests", "", vec![]),
        _ => Answer::accepted(),
    };
    let collector = Collector::start(busy);
    let project = Project::with_steps(&[("a", "true", None)]);
    let ended = run(&project, &collector.endpoint(), &[]).expect(0);
    assert!(!ended.stderr.contains("warning"), "{}", ended.stderr);
    let bodies: Vec<_> = collector.received().into_iter().map(|received| received.body).collect();
    assert!(bodies.len() == 3 && bodies.iter().all(|body| *body == bodies[0]));
}

#[test]
fn traces_go_compressed_over_tls_to_a_server_that_the_user_trusts() {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![cert.der().clone()], key).unwrap();
    let collector = Collector::with(|_| Answer::accepted(), Some(Arc::new(config)));
    let project = Project::with_steps(&[("a", "true", None)]);
    let authority = project.store.with_file_name("ca.pem");
    fs::write(&authority, cert.pem()).unwrap();

    let mut hm = project.hm(&["run", "--runner", "process"]);
    hm.env(ENDPOINT, format!("https://localhost:{}", collector.port()));
    hm.env("OTEL_EXPORTER_OTLP_HEADERS", "api-key=s3cret").env("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip");
    let stranger = Ended::of(&mut hm).expect(0).stderr;
    assert!(warnings(&stranger)[0].contains("certificate") && collector.received().is_empty(), "{stranger}");
    let ended = Ended::of(hm.env("OTEL_EXPORTER_OTLP_CERTIFICATE", &authority)).expect(0);
    assert!(!ended.stderr.contains("warning"), "{}", ended.stderr);
    let [received] = &collector.received()[..] else { panic!("one request") };
    assert_eq!((received.header("content-encoding"), received.header("api-key")), (Some("gzip"), Some("s3cret")));
    let mut plain = received.clone();
    plain.body.clear();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&*received.body), &mut plain.body).unwrap();
    assert_eq!(plain.spans().len(), 2);
}

#[test]
fn a_run_that_was_killed_has_a_trace_and_one_that_goes_on_has_none_yet() {
    let collector = Collector::start(|_| Answer::accepted());
    let project = Project::new();
    let marker = project.store.with_file_name("started");
    let cmd = format!("touch {}; sleep 1000", marker.display());
    let node = |key: &str, cmd: &str| json!({ "step": { "key": key, "label": key, "cmd": cmd }, "env": {} });
    project.file(".hm/ci.json", &ir_of(&[node("a", &cmd), node("b", "true")], &[json!([0, 1, "depends_on"])]));
    let mut hm =
        project.hm(&["run", "--runner", "process"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("the step runs", || marker.exists());
    let mut report = project.hm(&["report", "--otlp"]);
    report.env(ENDPOINT, collector.endpoint());
    let early = Ended::of(&mut report).expect(2).stderr;
    assert!(early.contains(" has not ended") && collector.received().is_empty(), "{early}");
    hm.kill().unwrap();
    hm.wait().unwrap();
    Ended::of(&mut report).expect(0);
    let spans = collector.spans();
    // The second step has neither started nor ended.
    assert_eq!(spans.len(), 2, "{spans:#?}");
    for (span, result) in [("RUN ci", "cicd.pipeline.result"), ("a", "cicd.pipeline.task.run.result")] {
        let span = named(&spans, span);
        let known = known(span);
        assert!(known.contains(&(result, "error".into())) && known.contains(&("error.type", "interrupted".into())));
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{span:?}");
    }
}

#[test]
fn a_large_run_is_sent_in_parts() {
    let collector = Collector::start(|_| Answer::accepted());
    let project = Project::with_steps(&[("a", "true", None)]);
    let store = Store::open(&project.store).unwrap();
    let source_dir = &*project.dir;
    store.runs().begin(&NewRun { id: RUN, source_dir, pipeline: "ci", started_at: 1_800_000_000_000 }).unwrap();
    let mut meta = run_events::meta(5000);
    // More than a span has links.
    meta.details.depends_on = (0..200).map(|step| (StepIndex(step), StepIndex(4999))).collect();
    let (mut writer, _bus, _events) =
        event::create(RunDir::Kept(store.runs().dir(RUN)), meta, &Secrets::new()).unwrap();
    for index in 0..5000 {
        let end = StateEvent::StepEnd {
            step: StepIndex(index),
            attempt: 0,
            status: StepStatus::CacheHit,
            exit_code: 0,
            duration_ms: 0,
            snapshot: None,
            message: None,
            artifacts: vec![],
            details: Default::default(),
        };
        writer.emit(u64::from(index), end);
    }
    run_events::end_build(writer);
    store.runs().end(RUN, 0).unwrap();
    let mut report = project.hm(&["report", "--otlp"]);
    Ended::of(report.env(ENDPOINT, collector.endpoint())).expect(0);
    let received = collector.received();
    assert!(received.len() > 2 && received.iter().all(|request| request.body.len() < 2 << 20), "{}", received.len());
    let spans = collector.spans();
    assert_eq!(spans.len(), 5001);
    let last = named(&spans, "Step 4999");
    assert_eq!((last.links.len(), last.dropped_links_count), (128, 201 - 128));
    assert!(
        known(last).contains(&("hm.cached", "true".into())) && known(last).iter().all(|(key, _)| *key != "hm.attempts")
    );
}
