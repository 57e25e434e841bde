//! The service's states in our terms. Pure.

use harmont_cloud_raw::types::{Build, BuildState, Job, JobState};

use crate::model::{BuildStatus, StepStatus};

/// The exit code of a step that never ran.
const NEVER_RAN: i32 = -1;

/// The end of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct JobEnd {
    pub(super) status: StepStatus,
    /// As in `step_end`.
    pub(super) exit_code: i32,
    /// The command's exit code, if it ended by itself.
    pub(super) command_exit_code: Option<i32>,
    pub(super) duration_ms: u64,
    pub(super) message: Option<String>,
    /// The failure that is allowed, if the status is [`StepStatus::FailedAllowed`].
    pub(super) allowed: Option<StepStatus>,
    /// Whether the build fails because of it.
    pub(super) fails_chain: bool,
}

/// Returns whether a job has begun to run.
pub(super) fn has_started(job: &Job) -> bool {
    match job.state {
        JobState::Pending | JobState::Scheduled | JobState::Assigned | JobState::Skipped => false,
        JobState::Canceled | JobState::Canceling => job.started_at.is_some(),
        JobState::Running | JobState::Passed | JobState::Failed | JobState::TimingOut | JobState::TimedOut => true,
    }
}

/// Returns whether a job has ended.
pub(super) fn has_ended(job: &Job) -> bool {
    matches!(
        job.state,
        JobState::Passed | JobState::Failed | JobState::Skipped | JobState::Canceled | JobState::TimedOut
    )
}

/// Returns whether a job has failed and the service may run it again, which it does not tell in advance.
pub(super) fn may_be_retried(job: &Job) -> bool {
    let has_failed = matches!(job.state, JobState::Failed | JobState::TimedOut);
    has_failed && !job.soft_failed && has_retries(job)
}

fn has_retries(job: &Job) -> bool {
    job.retry_policy.as_ref().is_some_and(|policy| !policy.is_empty())
}

/// Returns whether another attempt of a job has begun between two looks at it.
pub(super) fn runs_again(before: &Job, now: &Job) -> bool {
    let is_later = before.started_at.zip(now.started_at).is_some_and(|(before, now)| now > before);
    (has_ended(before) && !has_ended(now)) || (has_retries(now) && is_later)
}

/// Returns the reason why an attempt is repeated, and the command's exit code if the command failed.
pub(super) fn why_again(job: &Job) -> (String, Option<i32>) {
    if !has_ended(job) {
        return ("it failed".into(), None);
    }
    let end = job_end(job);
    let reason = end.message.unwrap_or_else(|| match (end.status, end.command_exit_code) {
        (StepStatus::TimedOut, _) => "it timed out".into(),
        (_, Some(code)) => format!("the command exited with {code}"),
        _ => "it failed".into(),
    });
    (reason, end.command_exit_code.filter(|code| *code != 0))
}

/// Returns the end of a job. One that has not ended counts as cancelled: its build has ended, or is given up.
pub(super) fn job_end(job: &Job) -> JobEnd {
    let code = job.exit_code.and_then(|code| i32::try_from(code).ok());
    let (status, exit_code, command_exit_code) = match job.state {
        JobState::Passed => (StepStatus::Passed, 0, Some(0)),
        JobState::Failed => (StepStatus::Failed, code.unwrap_or(1), code),
        JobState::TimedOut => (StepStatus::TimedOut, code.unwrap_or(124), code),
        JobState::Skipped => (StepStatus::Skipped, NEVER_RAN, None),
        _ if job.started_at.is_some() => (StepStatus::Canceled, 130, None),
        _ => (StepStatus::Canceled, NEVER_RAN, None),
    };
    let is_failure = matches!(status, StepStatus::Failed | StepStatus::TimedOut);
    let allowed = Some(status).filter(|_| is_failure && job.soft_failed);
    let took = job.started_at.zip(job.finished_at).map(|(from, to)| (to - from).num_milliseconds());
    JobEnd {
        status: if allowed.is_some() { StepStatus::FailedAllowed } else { status },
        exit_code,
        command_exit_code,
        duration_ms: took.and_then(|took| u64::try_from(took).ok()).unwrap_or_default(),
        message: reason(job.error_code.as_deref(), job.error_message.as_deref()),
        allowed,
        fails_chain: is_failure && allowed.is_none(),
    }
}

/// Returns how a build ended, or `None` if it runs.
pub(super) fn build_end(build: &Build) -> Option<(BuildStatus, Option<String>)> {
    let status = match build.state {
        BuildState::Passed => BuildStatus::Passed,
        BuildState::Failed => BuildStatus::Failed,
        BuildState::Canceled => BuildStatus::Canceled,
        BuildState::Scheduled | BuildState::Running | BuildState::Failing | BuildState::Canceling => return None,
    };
    Some((status, reason(build.error_code.as_deref(), build.error_message.as_deref())))
}

/// Returns `[code] message`, or the part that there is.
fn reason(code: Option<&str>, message: Option<&str>) -> Option<String> {
    match (code, message) {
        (Some(code), Some(message)) => Some(format!("[{code}] {message}")),
        (Some(code), None) => Some(format!("[{code}]")),
        (None, message) => message.map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn job(more: &Value) -> Job {
        let mut job = json!({"id": uuid::Uuid::nil(), "state": "pending", "soft_failed": false, "depends_on": [],
            "created_at": "2026-01-01T00:00:00Z"});
        job.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(job).unwrap()
    }

    #[test]
    fn every_state_of_a_job_has_a_meaning() {
        let (from, to) = ("2026-01-01T00:00:01Z", "2026-01-01T00:00:03.5Z");
        let ran = |state: &str| json!({"state": state, "started_at": from, "finished_at": to});
        for (more, started, ended, status, code) in [
            (json!({"state": "pending"}), false, false, StepStatus::Canceled, -1),
            (json!({"state": "scheduled"}), false, false, StepStatus::Canceled, -1),
            (json!({"state": "assigned"}), false, false, StepStatus::Canceled, -1),
            (json!({"state": "skipped"}), false, true, StepStatus::Skipped, -1),
            (json!({"state": "canceled"}), false, true, StepStatus::Canceled, -1),
            (ran("canceled"), true, true, StepStatus::Canceled, 130),
            (ran("canceling"), true, false, StepStatus::Canceled, 130),
            (ran("running"), true, false, StepStatus::Canceled, 130),
            (ran("passed"), true, true, StepStatus::Passed, 0),
            (ran("failed"), true, true, StepStatus::Failed, 1),
            (json!({"state": "failed", "exit_code": 7}), true, true, StepStatus::Failed, 7),
            (ran("timing_out"), true, false, StepStatus::Canceled, 130),
            (ran("timed_out"), true, true, StepStatus::TimedOut, 124),
        ] {
            let job = job(&more);
            let end = job_end(&job);
            let found = (has_started(&job), has_ended(&job), end.status, end.exit_code);
            assert_eq!(found, (started, ended, status, code), "{}", job.state);
        }
        assert_eq!(job_end(&job(&ran("passed"))).duration_ms, 2500);
    }

    #[test]
    fn only_a_failure_that_has_retries_waits_for_another_attempt() {
        let policy = json!({"limit": 2});
        for (more, waits) in [
            (json!({"state": "failed", "retry_policy": policy}), true),
            (json!({"state": "timed_out", "retry_policy": policy}), true),
            (json!({"state": "failed", "retry_policy": policy, "soft_failed": true}), false),
            (json!({"state": "failed", "retry_policy": null}), false),
            (json!({"state": "passed", "retry_policy": policy}), false),
            (json!({"state": "canceled", "retry_policy": policy}), false),
        ] {
            assert_eq!(may_be_retried(&job(&more)), waits, "{more}");
        }
        let at = |state: &str, second: u32| {
            let started_at = format!("2026-01-01T00:00:{second:02}Z");
            json!({"state": state, "started_at": started_at, "retry_policy": policy})
        };
        for (before, now, again) in [
            (at("failed", 1), at("scheduled", 1), true),
            (at("failed", 1), at("passed", 2), true),
            (at("running", 1), at("running", 2), true),
            (at("running", 1), at("failed", 1), false),
            (json!({"state": "scheduled"}), at("running", 2), false),
            (json!({"state": "running", "started_at": "2026-01-01T00:00:01Z"}), json!({"state": "passed"}), false),
        ] {
            assert_eq!(runs_again(&job(&before), &job(&now)), again, "{before} {now}");
        }
        let mut failed = at("failed", 1);
        failed["exit_code"] = 7.into();
        assert_eq!(why_again(&job(&failed)), ("the command exited with 7".into(), Some(7)));
        failed["error_message"] = "no memory".into();
        assert_eq!(why_again(&job(&failed)), ("no memory".into(), Some(7)));
        assert_eq!(why_again(&job(&at("running", 1))), ("it failed".into(), None));
    }

    #[test]
    fn a_failure_that_is_allowed_ends_no_chain_and_reasons_are_kept() {
        let failed = json!({"state": "failed", "exit_code": 2, "error_code": "oom", "error_message": "no memory"});
        let end = job_end(&job(&failed));
        assert!(end.fails_chain);
        assert_eq!(end.message.as_deref(), Some("[oom] no memory"));
        let mut soft = failed;
        soft["soft_failed"] = true.into();
        let end = job_end(&job(&soft));
        assert_eq!((end.status, end.allowed), (StepStatus::FailedAllowed, Some(StepStatus::Failed)));
        assert!(!end.fails_chain);
    }
}
