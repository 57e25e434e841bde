//! Reads the events of a build from standard input, as `hm run --format json` prints them.
//!
//! `hm run --format json | cargo run --example events`

#![expect(clippy::print_stdout, reason = "an example prints")]

use std::{
    collections::BTreeMap,
    error::Error,
    io::{self, BufRead},
    sync::Arc,
};

use hm_exec::BuildEvent;

fn main() -> Result<(), Box<dyn Error>> {
    let mut keys: BTreeMap<_, Arc<str>> = BTreeMap::new();
    let (mut lines, mut has_ended) = (0, false);
    for line in io::stdin().lock().lines() {
        // An event that this version does not know is `BuildEvent::Unknown`, and no error.
        let event: BuildEvent = serde_json::from_str(&line?)?;
        has_ended |= event.is_build_end();
        match event {
            BuildEvent::StepQueued { step_id, key, .. } => drop(keys.insert(step_id, key)),
            BuildEvent::StepLog { .. } => lines += 1,
            BuildEvent::StepEnd { step_id, status, duration_ms, .. } => {
                let key = keys.get(&step_id).map_or("?", |key| &**key);
                println!("{key}: {status:?} after {duration_ms} ms");
            }
            BuildEvent::BuildEnd { status, .. } => println!("the build: {status:?}, {lines} lines of output"),
            _ => {}
        }
    }
    if has_ended { Ok(()) } else { Err("the build was interrupted".into()) }
}
