//! `hm report --html`: the page as text, and in a browser.

use std::{fs, path::PathBuf};

use hm_exec::{
    StepStatus,
    event::{self, RunDir, RunMeta, StateEvent, StdStream, StepCommand},
    plan::StepIndex,
    runner::Secrets,
    store::{NewRun, Store},
};
use serde_json::{Value, json};

use crate::support::{
    browser::Browser,
    events::{self as run_events, RUN},
    project::{Ended, Project, ir_of},
};

const HOSTILE: &str = "</script><img src=x onerror=\"window.hacked=1\"><!--<script>";

/// Runs a pipeline whose labels and output are hostile, and of which one step fails.
fn hostile() -> Project {
    let project = Project::new();
    let cmd = format!("printf '%s\\n' '{HOSTILE}'");
    let failing = "seq 1 20000; printf '\\033[31mred\\033[0m \\033]0;title\\007 needle\\n' >&2; exit 3";
    let nodes = [
        json!({ "step": { "key": "build", "label": HOSTILE, "cmd": cmd }, "env": {} }),
        json!({ "step": { "key": "test", "cmd": failing }, "env": {} }),
        json!({ "step": { "key": "deploy", "cmd": "true" }, "env": {} }),
    ];
    let edges = [json!([0, 1, "depends_on"]), json!([1, 2, "depends_on"])];
    project.file(".hm/ci.json", &ir_of(&nodes, &edges));
    project.run(&[]).expect(1);
    project
}

fn page(project: &Project) -> PathBuf {
    Ended::of(&mut project.hm(&["report", "--html", "report.html"])).expect(0);
    project.dir.join("report.html")
}

/// Returns the data of a page, as a parser of HTML finds it.
fn data(html: &str, id: &str) -> Value {
    let start = format!("<script type=\"application/json\" id=\"{id}\">");
    let (_, rest) = html.split_once(&start).unwrap();
    serde_json::from_str(rest.split_once("</script>").unwrap().0).unwrap()
}

#[test]
fn a_page_has_the_run_as_data_and_hostile_text_stays_text() {
    let project = hostile();
    let html = fs::read_to_string(page(&project)).unwrap();
    // The run, the script, and the logs of two steps.
    assert_eq!((html.matches("<script").count(), html.matches("</script>").count()), (4, 4));
    assert!(!html.contains("<img") && !html.contains("onerror=\"") && !html.contains("<!--"));
    assert!(html.contains("default-src 'none'; script-src 'sha256-"));
    let run = data(&html, "run");
    let [build, test, deploy] = &run["steps"].as_array().unwrap()[..] else { panic!("{run}") };
    assert_eq!((&run["pipeline"], &run["result"], &build["label"]), (&json!("ci"), &json!("failed"), &json!(HOSTILE)));
    assert_eq!((&test["needs"], &test["exit"], &test["status"]), (&json!([0]), &json!(3), &json!("failed")));
    assert_eq!((&deploy["needs"], &deploy["status"]), (&json!([1]), &json!("skipped")));
    assert_eq!(data(&html, "log-0-1")["lines"][0], HOSTILE);
    assert_eq!(
        (&build["cmd"], &deploy["cmd"]),
        (&json!([format!("printf '%s\\n' '{HOSTILE}'"), 0]), &json!(["true", 0]))
    );

    // The end of a long log, without sequences that could control anything, and the stream of each line.
    let log = data(&html, "log-1-1");
    let lines = log["lines"].as_array().unwrap();
    assert_eq!(lines.last().unwrap(), "\u{1b}[31mred\u{1b}[0m  needle\u{1b}[0m");
    assert_eq!(log["err"], json!([lines.len() - 1, 1]));
    assert_eq!((log["cut"].as_u64(), lines[0].as_str()), (Some(0), Some("1")));
    assert_eq!(test["excerpt"]["lines"].as_array().unwrap().len(), 12);

    // The same run gives the same bytes, also on stdout, and no other file is left.
    let stdout = Ended::of(&mut project.hm(&["report", "--html", "-"])).expect(0).stdout;
    assert!(stdout == html, "two reports of a run differ");
    let names: Vec<_> = fs::read_dir(&project.dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    let wrong = Ended::of(&mut project.hm(&["report", "--html", "/nope/x.html"])).expect(2).stderr;
    assert!(wrong.contains("failed to write /nope/x.html"), "{wrong}");
    let both = Ended::of(&mut project.hm(&["report", "--html", "-", "--junit", "-"])).expect(2).stderr;
    assert!(both.contains("only one report can be written to stdout"), "{both}");
}

#[tokio::test]
async fn a_page_has_no_secret_of_labels_output_and_messages() {
    let project = Project::with_steps(&[("a", "true", None)]);
    let mut secrets = Secrets::new();
    secrets.insert("TOKEN", "s3cr3t-value");
    let mut meta = run_events::meta(1);
    meta.steps[0].display_name = "deploy with s3cr3t-value".into();
    meta.details.commands = vec![StepCommand::new("curl -u me:s3cr3t-value")];
    record(&project, meta, &secrets, "token s3cr3t-value").await;
    let html = fs::read_to_string(page(&project)).unwrap();
    assert!(html.contains("deploy with") && data(&html, "log-0-1")["lines"][0].as_str().unwrap().contains("token "));
    assert!(html.contains("curl -u me:***") && !html.contains("s3cr3t"), "{html}");
}

#[test]
fn a_run_whose_logs_were_removed_has_reports_all_the_same() {
    let project = hostile();
    for run in fs::read_dir(project.store.join("runs")).unwrap() {
        fs::remove_dir_all(run.unwrap().path().join("logs")).unwrap();
    }
    for format in ["--html", "--junit", "--trace"] {
        let report = Ended::of(&mut project.hm(&["report", format, "-"])).expect(0).stdout;
        assert!(report.contains("build"), "{report}");
    }
}

#[test]
fn a_browser_shows_a_page_and_the_keyboard_reaches_everything() {
    let Some(mut browser) = Browser::start() else { return };
    let project = hostile();
    browser.open(&page(&project), "");
    assert_eq!(browser.value("document.title"), "ci failed · hm report");
    assert_eq!(browser.value("document.querySelectorAll('img, iframe, object').length"), 0);
    let failure = browser.value("document.querySelector('.failure').textContent");
    let failure = failure.as_str().unwrap();
    assert!(failure.contains("exit 3") && failure.contains("stderr red") && failure.contains("hm logs "), "{failure}");

    // From key to key: the steps, a filter, a step, its log, and back.
    browser.press("2");
    assert_eq!(browser.value("document.body.dataset.view"), "steps");
    browser.press("/");
    browser.insert("onerror");
    browser.wait_for("document.querySelectorAll('.steps .rows .row').length === 1");
    assert_eq!(browser.value("document.querySelector('#live').textContent"), "1 of 3 steps");
    browser.press("Enter");
    browser.press("Enter");
    assert_eq!(browser.value("document.activeElement.id"), "step-title");
    assert_eq!(browser.value("document.querySelector('#panel h2').textContent"), HOSTILE);
    browser.wait_for("document.querySelector('.log .text')?.textContent.startsWith('</script><img')");
    let command = browser.value("document.querySelector('#panel .cmd').textContent");
    assert_eq!(command, format!("printf '%s\\n' '{HOSTILE}'"));
    browser.press("Escape");
    assert_eq!(browser.value("document.querySelector('#panel').hidden"), true);
    browser.press("n");
    browser.press("/");
    browser.insert("needle");
    browser.wait_for("document.querySelector('.log .hit mark')?.textContent === 'needle'");
    browser.press("Escape");
    browser.value("document.activeElement.blur()");

    // The charts, and the search in all logs.
    for (key, view) in [("3", "timeline"), ("4", "graph")] {
        browser.press(key);
        assert_eq!(browser.value("document.activeElement.tagName"), "CANVAS", "{view}");
        browser.press("ArrowRight");
        let status = browser.value(&format!("document.querySelector('#view-{view} .chart-status').textContent"));
        assert!(status.as_str().unwrap().contains("passed"), "{status}");
        browser.press("Enter");
        assert_eq!(browser.value("document.querySelector('#panel').hidden"), false, "{view}");
        browser.press("Escape");
    }
    browser.press("5");
    browser.press("/");
    browser.insert("19999");
    browser.wait_for("document.querySelectorAll('.hits .rows .row').length === 1");
    assert_eq!(browser.value("location.hash"), "#view=logs");
    assert_eq!(browser.value("typeof window.hacked"), "undefined");
    browser.assert_no_errors();
}

/// Returns the texts of the page whose contrast is too low, as the browser has computed their colours.
const LOW_CONTRAST: &str = "(() => {
  const rgb = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((part) => part / 255)
    .map((part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = rgb(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const node of document.body.querySelectorAll('*')) {
    const isText = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!isText || !node.checkVisibility() || ['SCRIPT', 'OPTION', 'NOSCRIPT'].includes(node.tagName)) continue;
    const [a, b] = [light(rgb(getComputedStyle(node).color)), light(ground(node))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) low.push(`${node.className}: ${node.textContent.slice(0, 20)}: ${contrast.toFixed(2)}`);
  }
  return low;
})()";

#[test]
fn a_page_fits_every_width_and_has_contrast_in_light_and_dark() {
    let Some(mut browser) = Browser::start() else { return };
    let project = hostile();
    let page = page(&project);
    for is_dark in [false, true] {
        for width in [360, 768, 1440] {
            browser.look(width, is_dark);
            for fragment in ["#view=overview", "#view=steps&step=test", "#view=timeline", "#view=graph", "#view=logs"] {
                browser.open(&page, fragment);
                browser.look(width, is_dark);
                let too_wide =
                    browser.value("document.documentElement.scrollWidth - document.documentElement.clientWidth");
                assert_eq!(too_wide, 0, "{fragment} at {width}");
                assert_eq!(browser.value(LOW_CONTRAST), json!([]), "{fragment} at {width}, dark: {is_dark}");
            }
        }
    }
    // What a screen reader needs to find its way.
    let landmarks = "['header', 'nav', 'main', 'aside'].every((name) => document.querySelector(name))";
    assert_eq!(browser.value(landmarks), true);
    let unnamed = "[...document.querySelectorAll('button, input, select, canvas, [role=grid]')].filter((node) => \
                   !node.textContent.trim() && !node.getAttribute('aria-label') && !node.closest('label')).length";
    assert_eq!(browser.value(unnamed), 0);
    browser.assert_no_errors();
}

/// Records a run whose steps print a text, and need no time here.
async fn record(project: &Project, meta: RunMeta, secrets: &Secrets, output: &str) {
    let store = Store::open(&project.store).unwrap();
    let source_dir = &*project.dir;
    store.runs().begin(&NewRun { id: RUN, source_dir, pipeline: "ci", started_at: 1_800_000_000_000 }).unwrap();
    let steps = u32::try_from(meta.steps.len()).unwrap();
    let (mut writer, bus, _events) = event::create(RunDir::Kept(store.runs().dir(RUN)), meta, secrets).unwrap();
    for index in 0..steps {
        let (step, start_ms) = (StepIndex(index), u64::from(index) * 10);
        writer.emit(start_ms, StateEvent::StepStart { step, attempt: 1 });
        bus.output(run_events::id(index), StdStream::Stdout, format!("{output} {index}\n").as_bytes()).await;
        let end = StateEvent::StepEnd {
            step,
            attempt: 1,
            status: StepStatus::Passed,
            exit_code: 0,
            duration_ms: 300,
            snapshot: None,
            message: Some(output.into()),
            artifacts: vec![],
            details: Default::default(),
        };
        writer.emit(start_ms + 300, end);
    }
    run_events::end_build(writer);
    store.runs().end(RUN, 0).unwrap();
}

#[tokio::test]
async fn of_five_thousand_steps_only_what_is_visible_is_drawn() {
    let Some(mut browser) = Browser::start() else { return };
    let project = Project::with_steps(&[("a", "true", None)]);
    let mut meta = run_events::meta(5000);
    for step in &mut meta.steps {
        step.parent = None;
    }
    meta.details.depends_on = (1..5000).map(|step| (StepIndex(step - 1 - step % 60 % step), StepIndex(step))).collect();
    record(&project, meta, &Secrets::new(), "output of step").await;
    let page = page(&project);
    let size = fs::metadata(&page).unwrap().len();
    assert!(size < 4 << 20, "{size} bytes");
    browser.open(&page, "#view=steps");
    let count = "document.querySelectorAll('*').length";
    assert_eq!(browser.value("document.querySelector('[role=grid]').getAttribute('aria-rowcount')"), "5001");
    // One element a log, and what is visible.
    assert!(browser.value(count).as_u64().unwrap() < 5000 + 1500);
    browser.value("document.querySelector('.table').scrollTop += 9000");
    browser.wait_for("document.querySelector('.table .rows .row')?.getAttribute('aria-rowindex') > 100");
    assert!(browser.value(count).as_u64().unwrap() < 5000 + 1500);

    // What a frame of a chart draws once it shows a part of the run.
    browser.value(
        "{ const all = CanvasRenderingContext2D.prototype; \
         for (const name of ['fillRect', 'fillText', 'lineTo', 'bezierCurveTo']) { const draw = all[name]; \
         all[name] = function (...at) { window.drawn += 1; return draw.apply(this, at); }; } }",
    );
    for view in ["timeline", "graph"] {
        browser.value(&format!("document.querySelector('#tab-{view}').click()"));
        let drawn = browser.value(&format!(
            "(async () => {{ const canvas = document.querySelector('#view-{view} canvas'); \
             const drawn = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done))); \
             for (let i = 0; i < 20; i += 1) {{ canvas.dispatchEvent(new WheelEvent('wheel', \
             {{ deltaY: -60, ctrlKey: true, cancelable: true }})); await drawn(); }} \
             window.drawn = 0; canvas.dispatchEvent(new KeyboardEvent('keydown', {{ key: 'Home', cancelable: true }})); \
             await drawn(); return window.drawn; }})()"
        ));
        assert!((1..1000).contains(&drawn.as_u64().unwrap()), "{view}: {drawn}");
    }
    browser.value("document.querySelector('#tab-logs').click()");
    browser.press("/");
    browser.insert("step 4999");
    browser.wait_for("document.querySelectorAll('.hits .rows .row').length === 1");
    browser.assert_no_errors();
}
