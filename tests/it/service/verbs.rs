//! `hm cloud`, against a stand-in of the service.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    process::Stdio,
};

use super::command::Checkout;
use crate::support::{
    project::Ended,
    stand_in::{Fault, Job, Script, TOKEN},
};

fn cloud(here: &Checkout, args: &[&str]) -> Ended {
    Ended::of(here.hm(&["cloud"]).args(args))
}

#[test]
fn each_command_prints_its_answer_on_stdout() {
    let here = Checkout::new();
    here.stand_in.script(Script::new([Job::passes("a").out("one\n").err("two\n"), Job::fails("b", 3)]));
    Ended::of(&mut here.hm(&["run", "--backend", "cloud", "-m", "the message"])).expect(1);
    let p = "acme-app-ci";
    for (args, text) in [
        (&["whoami"][..], "Ann <ann@example.com> (id "),
        (&["org", "list"], "* acme    ACME"),
        (&["pipeline", "list"], "acme-app-ci  ci  acme/app"),
        (&["pipeline", "show", p], "\"default_branch\": \"main\""),
        (&["build", "list", "-p", p], "#1  failed  the message"),
        (&["build", "list", "-p", p, "--format", "json"], "\"number\": 1"),
        (&["build", "show", "-p", p, "1"], "\"state\": \"failed\""),
        (&["build", "cancel", "-p", p, "1"], "build #1 cancelled"),
        (&["job", "list", "-p", p, "-b", "1"], "failed  Step b"),
        (&["job", "show", "-p", p, "-b", "1", "b"], "\"exit_code\": 3"),
        (&["job", "log", "-p", p, "-b", "1", "a"], "one\ntwo\n"),
        (&["billing", "balance"], "$12.34"),
        (&["billing", "transactions"], "2026-01-01  $5.00  stripe_topup  card"),
        (&["billing", "usage", "--from", "2026-01-01", "--to", "2026-01-31"], "2026-01-01 to 2026-01-31: $0.03"),
        (&["billing", "topup", "12.50"], "pay $12.50 at https://pay.example/session"),
        (&["billing", "redeem", "CODE"], "redeemed $10.00; the balance is $22.34"),
    ] {
        let ended = cloud(&here, args).expect(0);
        assert!(ended.stdout.contains(text), "{args:?}: {text}\n{}", ended.stdout);
    }
    let unknown = cloud(&here, &["job", "log", "-p", p, "-b", "1", "zz"]).expect(2).stderr;
    assert!(unknown.contains("build #1 has no step `zz`") && unknown.contains("hm cloud job list"), "{unknown}");
    let watched = cloud(&here, &["build", "watch", "-p", p, "1"]).expect(1);
    assert!(watched.stdout.contains("a | one"), "{}", watched.stdout);
}

#[test]
fn failures_have_the_exit_codes_of_the_service() {
    let here = Checkout::new();
    for (args, code, text) in [
        (&["build", "show", "-p", "acme-app-ci", "9"][..], 5, "failed to look up build #9"),
        (&["build", "show", "9"], 2, "no pipeline is named"),
        (&["build", "show", "-p", "../x", "9"], 2, "is not the slug"),
        (&["job", "log", "-p", "acme-app-ci", "-b", "9", "a"], 5, "build #9"),
        (&["org", "switch", "acmee"], 2, "did you mean `acme`?"),
        (&["org", "switch", "zzzzzzzz"], 2, "you are in no organization `zzzzzzzz`"),
        (&["billing", "topup", "0.5"], 2, "from 1 to 10000"),
    ] {
        let ended = cloud(&here, args).expect(code);
        assert!(ended.stderr.contains(text), "{args:?}\n{}", ended.stderr);
    }
    let mut hm = here.hm(&["cloud", "whoami"]);
    Ended::of(hm.env("HM_API_URL", "http://127.0.0.1:1")).expect(4);
    let ended = Ended::of(here.hm(&["cloud", "whoami"]).env_remove("HM_API_TOKEN")).expect(3);
    assert!(ended.stderr.contains("hm cloud login"), "{}", ended.stderr);
    here.stand_in.fault("getCurrentUser", Fault::Body("{}"));
    cloud(&here, &["whoami"]).expect(5);
}

#[test]
fn the_doctor_asks_the_service_if_it_is_set_up() {
    let here = Checkout::new();
    let service = |hm: &mut std::process::Command| {
        let ended = Ended::of(hm);
        assert!(!ended.stdout.contains(TOKEN) && !ended.stderr.contains(TOKEN), "{ended:?}");
        let line = ended.stdout.lines().find(|line| line.contains("hosted service")).map(str::to_owned);
        (line.unwrap_or_default(), ended.code)
    };
    let (line, code) = service(&mut here.hm(&["doctor"]));
    assert!(line.starts_with("ok") && line.contains("logged in as Ann <ann@example.com>"), "{line}");
    // Nothing that is wrong there keeps a run from working here.
    for (variable, value, text) in [
        ("HM_API_TOKEN", "wrong-token", "does not accept the token"),
        ("HM_API_URL", "http://127.0.0.1:1", "failed to ask http://127.0.0.1:1"),
        ("HM_API_TOKEN", "", "not logged in"),
    ] {
        let (line, other_code) = service(here.hm(&["doctor"]).env(variable, value));
        assert!(line.starts_with("warn") && line.contains(text), "{line}");
        assert_eq!(other_code, code);
    }
    let (line, _) = service(here.hm(&["doctor"]).env_remove("HM_API_TOKEN").env_remove("HM_ORG"));
    assert_eq!(line, "");
}

#[test]
fn the_organization_and_the_pipeline_are_remembered() {
    let here = Checkout::new();
    here.project.file(".hm/config.toml", "[cloud]\npipeline = 'acme-app-ci'\n");
    let nowhere = Ended::of(here.hm(&["cloud", "org", "switch", "globex"]).env("HOME", "")).expect(2).stderr;
    assert!(nowhere.contains("no directory for configuration"), "{nowhere}");
    Ended::of(here.hm(&["cloud", "org", "switch", "globex"]).env_remove("HM_ORG")).expect(0);
    let ended = Ended::of(here.hm(&["cloud", "org", "list"]).env_remove("HM_ORG")).expect(0);
    assert!(ended.stdout.contains("* globex"), "{}", ended.stdout);
    Ended::of(here.hm(&["cloud", "build", "list"]).env_remove("HM_ORG")).expect(0);
    assert_eq!(here.stand_in.calls().last().unwrap(), "GET /api/v0/organizations/globex/pipelines/acme-app-ci/builds");
}

#[test]
fn a_code_or_a_browser_logs_in_and_logging_out_forgets_the_token() {
    let here = Checkout::new();
    let anonymous = |args: &[&str]| {
        let mut hm = here.hm(&["cloud"]);
        hm.args(args).env_remove("HM_API_TOKEN").env_remove("DISPLAY").env_remove("WAYLAND_DISPLAY");
        hm
    };
    let ended = Ended::of(anonymous(&["login", "--paste"]).env("HM_LOGIN_CODE", "")).expect(2);
    assert!(ended.stderr.contains("no terminal to ask for the code"), "{}", ended.stderr);
    let wrong = Ended::of(anonymous(&["login", "--paste"]).env("HM_LOGIN_CODE", "BAD")).expect(3);
    assert!(wrong.stderr.contains("cli_code_invalid"), "{}", wrong.stderr);
    let ended = Ended::of(anonymous(&["login", "--paste"]).env("HM_LOGIN_CODE", "GOOD-CODE")).expect(0);
    assert!(ended.stdout.contains("logged in as Ann <ann@example.com>"), "{}", ended.stdout);
    let file = here.project.dir.with_file_name("home").join(".config/hm/credentials.toml");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    Ended::of(&mut anonymous(&["whoami"])).expect(0);
    Ended::of(&mut anonymous(&["logout"])).expect(0);
    Ended::of(&mut anonymous(&["whoami"])).expect(3);

    // The page has the port of a listener, and a nonce under which the service gets the token.
    let mut child = anonymous(&["login"]).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    let value = |name: &str| {
        let rest = line.split_once(&format!("{name}=")).unwrap().1;
        rest.split(['&', '\n']).next().unwrap().to_owned()
    };
    let (port, nonce) = (value("port"), value("nonce"));
    assert_eq!(nonce.len(), 64);
    here.stand_in.state().parked.insert(nonce, TOKEN.into());
    let mut browser = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    browser.write_all(b"GET /callback HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    browser.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("close this page"), "{answer}");
    Ended::from(child.wait_with_output().unwrap()).expect(0);
    Ended::of(&mut anonymous(&["whoami"])).expect(0);
    Ended::of(&mut anonymous(&["logout", "--revoke"])).expect(0);
    let mut homeless = anonymous(&["login", "--paste"]);
    let nowhere = Ended::of(homeless.env("HM_LOGIN_CODE", "GOOD-CODE").env("HOME", "")).expect(2).stderr;
    assert!(nowhere.contains("no directory to store a token in"), "{nowhere}");
    assert_eq!(here.stand_in.count("POST /api/v0/auth/logout"), 1);
}

#[test]
fn a_rendered_plan_is_submitted_without_a_source() {
    let here = Checkout::new();
    here.project.file("plan.json", &crate::support::project::ir(&[("a", "true", None)]));
    here.stand_in.script(Script::new([Job::passes("a").out("hello\n")]));
    let mut hm = here.hm(&["cloud", "run", "acme-app-ci", "-m", "why", "--format", "human"]);
    let ended = Ended::of(hm.env("HM_RUN_ENV_NAME", "value")).expect(0);
    assert!(ended.stdout.contains("a | hello"), "{}", ended.stdout);
    let body = here.stand_in.state().requests[0].body.clone();
    assert_eq!((&body["source_b64"], &body["env"]["NAME"]), (&"".into(), &"value".into()));
    let ended = cloud(&here, &["run", "acme-app-ci", "--no-watch"]).expect(0);
    assert_eq!(ended.stdout, "submitted build #2\n");
    cloud(&here, &["run", "nothing", "--no-watch"]).expect(7);
}
