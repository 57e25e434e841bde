//! The cost of a first step on an image that a registry has: pull, unpack and run, compared with `skopeo`,
//! which only downloads the image.
//!
//! `cargo bench --bench pull` (the image has 600 MiB in five layers)

#![allow(clippy::unwrap_used, reason = "a bench panics on errors")]

#[path = "../tests/it/support/backends.rs"]
#[allow(dead_code, reason = "the bench needs less of it than the tests")]
mod backends;
mod common;
#[path = "../tests/it/support/images.rs"]
#[allow(dead_code, reason = "the bench needs less of it than the tests")]
mod images;
#[path = "common/large_image.rs"]
#[allow(dead_code, reason = "another bench needs all of it")]
mod large_image;
#[path = "../tests/it/support/registry.rs"]
#[allow(dead_code, reason = "the bench needs less of it than the tests")]
mod registry;

use std::{
    ffi::OsStr,
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use common::{Effort, Figure, Table, median, spread};
use images::Image;
use registry::Registry;
use serde_json::json;

const LAYERS: usize = 5;
const NAME: &str = "large:1";

fn main() {
    let (effort, table) = (Effort::asked(), Table::new("pull"));
    let Some(registry) = Registry::start(false) else {
        return table.alone("first step", &Figure::ms(Duration::ZERO), "no registry or no skopeo", "not measured");
    };
    let (bytes, files) = effort.pick((150 << 20, 4_000), (1 << 20, 20));
    let mut image = Image::shell();
    image.layers.truncate(1);
    image.layers.extend((1..LAYERS).map(|seed| large_image::layer(bytes, files, seed as u64)));
    registry.push(&image, NAME, None);
    let top = tempfile::tempdir().unwrap();
    let source = top.path().join("source");
    fs::create_dir(&source).unwrap();
    let reference = format!("{}/{NAME}", registry.host);
    let step = json!({ "key": "a", "cmd": "true", "image": reference });
    let graph = json!({
        "nodes": [{ "step": step, "env": {} }], "node_holes": [], "edge_property": "directed", "edges": [],
    });
    let ir = top.path().join("ci.json");
    fs::write(&ir, json!({ "version": "0", "graph": graph }).to_string()).unwrap();
    // `HM_BEFORE` names an earlier `hm` to compare with.
    let before = std::env::var_os("HM_BEFORE");
    // Everything is removed at the end: ext4 creates files slowly for some seconds after many were removed.
    let new_dir = |what: &str, round: usize| top.path().join(format!("{what}-{round}"));
    let pulls = |program: &OsStr, store: &Path| {
        let mut hm = Command::new(program);
        hm.args(["run", "-f"]).arg(&ir).arg("-d").arg(&source).env("HM_CACHE_DIR", store).env("HM_CACHE_GC", "off");
        timed(&mut hm)
    };
    let (mut ours, mut old, mut theirs) = (vec![], vec![], vec![]);
    for round in 0..effort.pick(5, 1) {
        // What one side wrote does not slow down the next one.
        rustix::fs::sync();
        ours.push(pulls(env!("CARGO_BIN_EXE_hm").as_ref(), &new_dir("ours", round)));
        if let Some(before) = &before {
            rustix::fs::sync();
            old.push(pulls(before, &new_dir("before", round)));
        }
        rustix::fs::sync();
        let copy = new_dir("copy", round);
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["--insecure-policy", "copy", "-q", "--src-tls-verify=false"]);
        skopeo.arg(format!("docker://{reference}")).arg(format!("dir:{}", copy.display()));
        theirs.push(timed(skopeo.env("HOME", top.path())));
    }
    let what = format!("first step on {} MiB in {LAYERS} layers of a registry", (bytes * (LAYERS - 1)) >> 20);
    let mut besides = spread(&mut ours);
    if !old.is_empty() {
        besides.push_str(&format!("; before: {}", Figure::ms(median(&mut old))));
    }
    let theirs = Figure::ms(median(&mut theirs)).of("skopeo, which only downloads");
    table.against(what, &Figure::ms(median(&mut ours)), &theirs, besides);
}

fn timed(command: &mut Command) -> Duration {
    let started = Instant::now();
    let output = command.stdin(Stdio::null()).output().unwrap();
    let took = started.elapsed();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    took
}
