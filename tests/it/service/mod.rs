//! The hosted service as a backend, against a stand-in of it.

mod command;
mod contract;
mod errors;
mod logs;
mod published;
mod retries;
mod submit;
mod verbs;
mod watch;

use std::{path::PathBuf, time::Duration};

use hm_exec::{
    BackendError, BackendHandle, BuildEvent, BuildOutcome, Plan, RunRequest,
    service::{CloudBackend, Pace, Service, ServiceError},
    store::StoreHandle,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::{
    ir::ir,
    stand_in::{StandIn, TOKEN},
};

/// The pauses of tests.
fn quick() -> Pace {
    let short = Duration::from_millis(5);
    Pace {
        tries: Pace::default().tries,
        retry: short,
        longest_retry: short,
        poll: short,
        slow_poll: short,
        log_retry: short,
        log_end: Duration::from_millis(500),
        cancel: Duration::from_secs(60),
        lost: Duration::from_secs(60),
    }
}

/// A source directory, a store, and a stand-in.
struct Here {
    top: tempfile::TempDir,
    stand_in: StandIn,
    pace: Pace,
}

impl Here {
    fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        std::fs::create_dir(top.path().join("source")).unwrap();
        std::fs::write(top.path().join("source/file.txt"), "content").unwrap();
        Self { top, stand_in: StandIn::start(), pace: quick() }
    }

    fn source(&self) -> PathBuf {
        self.top.path().join("source")
    }

    fn store(&self) -> StoreHandle {
        StoreHandle::new(self.top.path().join("store"))
    }

    fn service(&self) -> Service {
        Service::new(&self.stand_in.url(), TOKEN).unwrap().pace(self.pace)
    }

    fn backend(&self) -> CloudBackend {
        CloudBackend::new(self.service(), self.store(), "acme", "https://app.example")
    }

    /// Returns a request to run steps with these keys.
    fn request(&self, keys: &[&str]) -> RunRequest {
        let nodes: Vec<Value> =
            keys.iter().map(|key| json!({"step": {"key": key, "cmd": "true"}, "env": {}})).collect();
        let plan = Plan::parse(ir(&nodes.into(), &json!([])).to_string()).unwrap();
        let mut request = RunRequest::new(plan, self.source());
        request.pipeline_slug = "ci".into();
        request.source.branch = "main".into();
        request.source.commit = "0123456789012345678901234567890123456789".into();
        request.source.repo_name = Some("acme/app".into());
        request.options.watch = true;
        request
    }

    async fn submit(&self, keys: &[&str]) -> Result<BackendHandle, ServiceError> {
        self.backend().submit(self.request(keys), CancellationToken::new()).await
    }

    /// Runs a build to its end. Returns its events and its outcome.
    async fn run(&self, keys: &[&str]) -> (Vec<BuildEvent>, Result<BuildOutcome, BackendError>) {
        ended(self.submit(keys).await.unwrap()).await
    }
}

async fn ended(handle: BackendHandle) -> (Vec<BuildEvent>, Result<BuildOutcome, BackendError>) {
    let (mut events, control) = handle.into_parts();
    let mut all = Vec::new();
    while let Some(event) = events.next().await {
        all.push(event);
    }
    (all, control.wait().await)
}

/// Returns the lines of a step's output, in their order.
fn output(events: &[BuildEvent], step: &str) -> Vec<String> {
    let id = events.iter().find_map(|event| match event {
        BuildEvent::StepQueued { step_id, key, .. } if &**key == step => Some(*step_id),
        _ => None,
    });
    let of_step = |event: &BuildEvent| match event {
        BuildEvent::StepLog { step_id, line, .. } if Some(*step_id) == id => Some(line.clone()),
        _ => None,
    };
    events.iter().filter_map(of_step).collect()
}
