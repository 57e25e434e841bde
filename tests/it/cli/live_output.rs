//! Live output of steps on BuildGrid: each line once and in order, whatever the log service does.

use std::net::TcpListener;

use crate::support::{
    buildgrid::BuildGrid,
    images::Image,
    live_run::{Waiting, printed},
    log_service::{Liar, SAID},
    project::Project,
    remote_engine::step_program,
};

#[test]
fn output_on_buildgrid_is_live_and_shows_each_line_once_whatever_the_log_service_does() {
    if step_program().is_none() {
        return;
    }
    let Some(mut engine) = BuildGrid::start() else { return };
    let _worker = engine.worker("first");
    let project = Project::new();
    Image::shell().write_oci(&project.dir.with_file_name("image"), "it");
    let image = format!("host=oci:{}:it", project.dir.with_file_name("image").display());
    let (remote, logs) = (engine.url(), engine.logstream_url());
    let arguments =
        |logs: &str| ["--remote", &remote, "--remote-logs", logs, "--image", &image].map(ToOwned::to_owned).to_vec();
    let start = |logs: &str| {
        let arguments = arguments(logs);
        Waiting::start(&project, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };

    // The step cannot continue before its first lines were seen.
    let mut run = start(&logs);
    run.shows(&["300", "first"]);
    let middle = run.middle();
    assert_eq!(run.go_on(middle), (printed(), vec!["first".into(), "last".into()]));

    // A log service that sends wrong output is detected, and all of the step's own output follows.
    let liar = Liar::start();
    let mut run = start(&liar.url());
    let middle = run.middle();
    run.shows(&[SAID]);
    let (stdout, stderr) = run.go_on(middle);
    let (lies, truth) = stdout.split_at(stdout.len() - printed().len());
    assert!(lies.iter().all(|line| line == SAID) && truth == printed(), "{lies:?}");
    let told = "hm: the output shown so far was incomplete; the complete output follows:";
    assert!(stderr.iter().filter(|line| *line == told).count() == 2, "{stderr:?}");
    assert!(stderr.ends_with(&["first".into(), "last".into()]), "{stderr:?}");

    // A log service that never answers costs nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut run = start(&format!("grpc://{}", silent.local_addr().unwrap()));
    let middle = run.middle();
    assert_eq!(run.go_on(middle), (printed(), vec!["first".into(), "last".into()]));

    // A log service that dies in the middle of a step loses no line and repeats none.
    let mut run = start(&logs);
    run.shows(&["300", "first"]);
    let middle = run.middle();
    engine.kill_logstream();
    assert_eq!(run.go_on(middle), (printed(), vec!["first".into(), "last".into()]));
}
