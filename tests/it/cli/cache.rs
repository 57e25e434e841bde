//! `hm cache`.

use serde_json::Value;

use super::hm::{Ended, Project};

fn du(project: &Project) -> Value {
    let ended = Ended::of(&mut project.hm(&["cache", "du", "--format", "json"])).expect(0);
    serde_json::from_str(&ended.stdout).unwrap()
}

#[test]
fn du_tells_what_takes_the_space() {
    let project = Project::with_steps(&[("big", "dd if=/dev/zero bs=1024 count=500", None)]);
    project.file("large", &"x".repeat(300_000));
    project.run(&["ci"]).expect(0);
    let usage = du(&project);
    let bytes = |kind: &str| usage["kinds"][kind].as_u64().unwrap_or_default();
    assert!(bytes("sources") >= 300_000 && bytes("journals") >= 500 * 1024, "{usage}");
    let total: u64 = usage["kinds"].as_object().unwrap().values().map(|bytes| bytes.as_u64().unwrap()).sum();
    assert_eq!(usage["bytes"], total);
    let text = Ended::of(&mut project.hm(&["cache", "du"])).expect(0).stdout;
    assert!(text.contains("sources") && text.contains("free on this filesystem"), "{text}");
}
