//! Which steps are left untraced: those whose tracing takes more than it saves. See
//! `docs/design/trace-cache.md`.

use std::time::Duration;

use crate::store::TracingCost;

/// In how many runs a step is traced before that is judged.
const RUNS: u32 = 3;
/// What may be spent in any case.
const ALLOWED: Duration = Duration::from_millis(100);
/// In how many runs a step is left untraced before it is tried again.
const LEFT_OUT: u32 = 20;

/// What a run did with a step that would be traced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CostChange {
    /// It was traced, which took this processor time, and ran for so long.
    Traced { spent: Duration, took: Duration },
    /// It was found, and did not run.
    Saved,
    /// It was left untraced.
    LeftOut,
}

impl CostChange {
    /// Returns what is known of the step after this.
    pub(crate) fn apply(self, cost: TracingCost) -> TracingCost {
        match self {
            Self::Traced { spent, took } => TracingCost {
                runs: cost.runs.saturating_add(1),
                spent_us: cost.spent_us.saturating_add(u64::try_from(spent.as_micros()).unwrap_or(u64::MAX)),
                last_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
                ..cost
            },
            Self::Saved => TracingCost { saved_ms: cost.saved_ms.saturating_add(cost.last_ms), ..cost },
            // Another run may have begun anew meanwhile.
            Self::LeftOut if why_left_out(&cost).is_none() => cost,
            Self::LeftOut if cost.left_out + 1 >= LEFT_OUT => TracingCost::default(),
            Self::LeftOut => TracingCost { left_out: cost.left_out + 1, ..cost },
        }
    }
}

/// Returns why a step is left untraced, if it is.
pub(crate) fn why_left_out(cost: &TracingCost) -> Option<String> {
    let (spent, saved) = (Duration::from_micros(cost.spent_us), Duration::from_millis(cost.saved_ms));
    if cost.runs < RUNS || spent <= ALLOWED || spent <= saved {
        return None;
    }
    let saved = match cost.saved_ms {
        0 => "no run was saved".to_owned(),
        _ => format!("saved {:.1} s", saved.as_secs_f64()),
    };
    Some(format!("not traced: tracing took {:.1} s in {} runs, and {saved}", spent.as_secs_f64(), cost.runs))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traced(millis: u64) -> CostChange {
        CostChange::Traced { spent: Duration::from_millis(millis), took: Duration::from_secs(1) }
    }

    fn after(changes: &[CostChange]) -> TracingCost {
        changes.iter().fold(TracingCost::default(), |cost, change| change.apply(cost))
    }

    #[test]
    fn a_step_is_left_out_if_tracing_took_more_than_it_saved_in_three_runs() {
        let is_left_out = |changes: &[CostChange]| why_left_out(&after(changes)).is_some();
        assert!(!is_left_out(&[]));
        assert!(!is_left_out(&[traced(1000), traced(1000)]), "it is too early");
        assert!(is_left_out(&[traced(1000), traced(1000), traced(1000)]));
        assert!(!is_left_out(&[traced(30), traced(30), traced(40)]), "it is too little");
        assert!(is_left_out(&[traced(30), traced(30), traced(41)]));
        // A hit saves what the last run took.
        let saved = [traced(400), traced(400), CostChange::Saved, traced(100)];
        assert!(!is_left_out(&saved));
        assert!(is_left_out(&[&saved[..], &[traced(200)]].concat()));
    }

    #[test]
    fn after_twenty_runs_it_is_tried_again() {
        let costly = [traced(400); 3];
        let mut cost = after(&costly);
        for left_out in 0..LEFT_OUT {
            assert_eq!((cost.left_out, why_left_out(&cost).is_some()), (left_out, true));
            cost = CostChange::LeftOut.apply(cost);
        }
        assert_eq!(cost, TracingCost::default());
        assert_eq!(CostChange::LeftOut.apply(cost), cost, "another run began anew");
    }

    #[test]
    fn the_reason_says_what_it_took_and_what_it_saved() {
        let cost = after(&[traced(400); 3]);
        let expected = "not traced: tracing took 1.2 s in 3 runs, and no run was saved";
        assert_eq!(why_left_out(&cost).as_deref(), Some(expected));
        let cost = after(&[traced(900), traced(900), CostChange::Saved, traced(1200)]);
        let expected = "not traced: tracing took 3.0 s in 3 runs, and saved 1.0 s";
        assert_eq!(why_left_out(&cost).as_deref(), Some(expected));
    }
}
