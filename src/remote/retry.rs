//! Retries of calls.

use std::time::Duration;

use super::RemoteError;
use crate::backoff::Backoff;

/// How often, and after what pauses, a call that failed for a temporary reason is retried. A permanent
/// failure is not retried: see [`RemoteError::is_transient`].
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// The maximum number of attempts, including the first.
    pub attempts: u32,
    /// The pause before the second attempt. It doubles with each further attempt.
    pub first: Duration,
    /// The longest pause.
    pub longest: Duration,
    /// How long a stream of a blob's bytes may stand still before the call counts as failed.
    pub idle: Duration,
    /// Returns a number from 0 to 1 that shortens each pause by up to half, so that many clients do not retry
    /// in step.
    pub jitter: fn() -> f64,
}

impl Default for Retry {
    /// Ten attempts over half a minute: enough for an engine that is restarted.
    fn default() -> Self {
        Self {
            attempts: 10,
            first: Duration::from_millis(100),
            longest: Duration::from_secs(10),
            idle: Duration::from_secs(120),
            jitter: || f64::from(uuid::Uuid::new_v4().as_fields().0) / 4_294_967_296.0,
        }
    }
}

impl Retry {
    /// Returns the pause after `failures` failures.
    #[must_use]
    pub fn pause(&self, failures: u32) -> Duration {
        let doubled = Backoff { first: self.first, longest: self.longest }.pause(failures);
        doubled.mul_f64(1.0 - (self.jitter)().clamp(0.0, 1.0) / 2.0)
    }

    pub(super) fn attempts(self) -> Attempts {
        Attempts { retry: self, failures: 0 }
    }
}

/// The attempts at one call.
#[derive(Debug)]
pub(super) struct Attempts {
    retry: Retry,
    failures: u32,
}

impl Attempts {
    /// Pauses before the next attempt, or returns the error if no attempt remains.
    pub(super) async fn again(&mut self, error: RemoteError) -> Result<(), RemoteError> {
        self.failures += 1;
        if !error.is_transient() || self.failures >= self.retry.attempts {
            return Err(error);
        }
        tracing::debug!(%error, failures = self.failures, "retrying a call");
        tokio::time::sleep(self.retry.pause(self.failures)).await;
        Ok(())
    }
}

/// Repeats a call until it succeeds, fails permanently, or the attempts are used up. (A macro, because the
/// compiler cannot prove that the futures of borrowing async closures are `Send`.)
macro_rules! retried {
    ($retry:expr, $call:block) => {{
        let mut attempts = $retry.attempts();
        loop {
            let tried: Result<_, crate::remote::RemoteError> = async $call.await;
            match tried {
                Ok(done) => break Ok(done),
                Err(error) => match attempts.again(error).await {
                    Ok(()) => {}
                    Err(error) => break Err(error),
                },
            }
        }
    }};
}

pub(super) use retried;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::RemoteErrorKind;

    fn failing(kind: RemoteErrorKind) -> RemoteError {
        RemoteError::new("grpc://nowhere", kind, "no")
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_are_shortened_by_half_at_most() {
        let retry = Retry { jitter: || 0.0, ..Retry::default() };
        let pauses: Vec<u128> = (1..=9).map(|failures| retry.pause(failures).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(retry.pause(u32::MAX), retry.longest);
        assert_eq!(Retry { jitter: || 1.0, ..retry }.pause(1), Duration::from_millis(50));
    }

    #[tokio::test(start_paused = true)]
    async fn what_passes_over_is_asked_again_within_a_bound_and_a_verdict_never() {
        for (kind, expected) in [(RemoteErrorKind::Unavailable, 10), (RemoteErrorKind::Denied, 1)] {
            let mut calls = 0;
            let ended: Result<(), _> = retried!(Retry::default(), {
                calls += 1;
                Err(failing(kind))
            });
            assert_eq!((ended.unwrap_err().kind(), calls), (kind, expected));
        }
    }
}
