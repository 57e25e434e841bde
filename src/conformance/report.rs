//! The results of a suite.

use std::{fmt, sync::Arc};

use serde::Serialize;

/// The result of one case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[non_exhaustive]
pub enum CaseVerdict {
    /// The runner keeps the promise.
    Passed,
    /// The runner breaks the promise.
    Failed {
        /// The expected and the actual result.
        why: String,
    },
    /// The runner does not claim this capability.
    NotPromised {
        /// The field of [`RunnerCapabilities`](crate::runner::RunnerCapabilities) that is not set.
        capability: &'static str,
    },
    /// The promise could not be checked with this image.
    Unchecked {
        /// What the image lacks.
        why: String,
    },
}

/// The name and the result of one case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CaseReport {
    /// The case's name, as [`Suite::run_case`](super::Suite::run_case) takes it.
    pub case: &'static str,
    /// The result of the case.
    pub verdict: CaseVerdict,
}

/// The results of a suite, case by case. `Display` is a table, with the cases that failed at its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The runner's name.
    pub runner: Arc<str>,
    /// The image that the cases' root steps booted from.
    pub image: Arc<str>,
    /// Whether cases with many steps ran only a [sample](super::Suite::sample) of them.
    pub sampled: bool,
    /// Every case, in the suite's order.
    pub cases: Vec<CaseReport>,
}

impl Report {
    /// Returns the cases that failed.
    pub fn failed(&self) -> impl Iterator<Item = &CaseReport> {
        self.cases.iter().filter(|case| case.verdict.is_failure())
    }

    /// Returns the names of the cases that could not be checked with this image.
    pub fn unchecked(&self) -> impl Iterator<Item = &'static str> {
        self.cases.iter().filter(|case| matches!(case.verdict, CaseVerdict::Unchecked { .. })).map(|case| case.case)
    }

    /// Returns the names of the cases that the runner does not promise to pass.
    pub fn not_promised(&self) -> impl Iterator<Item = &'static str> {
        self.cases.iter().filter(|case| matches!(case.verdict, CaseVerdict::NotPromised { .. })).map(|case| case.case)
    }

    /// Panics with the whole table if a case failed. For tests.
    ///
    /// # Panics
    /// Panics if a case failed.
    #[track_caller]
    pub fn assert_passed(&self) {
        assert!(self.failed().next().is_none(), "the runner does not conform\n{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sampled = if self.sampled { ", with samples of long cases" } else { "" };
        writeln!(f, "conformance of runner `{}` on image `{}`{sampled}", self.runner, self.image)?;
        let width = self.cases.iter().map(|case| case.case.len()).max().unwrap_or_default();
        let others = self.cases.iter().filter(|case| !case.verdict.is_failure());
        for CaseReport { case, verdict } in others.chain(self.failed()) {
            writeln!(f, "  {case:width$}  {verdict}")?;
        }
        let count = |is: fn(&CaseVerdict) -> bool| self.cases.iter().filter(|case| is(&case.verdict)).count();
        let passed = count(|verdict| matches!(verdict, CaseVerdict::Passed));
        let (not_promised, unchecked) = (self.not_promised().count(), self.unchecked().count());
        let failed = self.failed().count();
        write!(f, "{passed} passed, {failed} failed, {not_promised} not promised, {unchecked} not checked")
    }
}

impl CaseVerdict {
    fn is_failure(&self) -> bool {
        matches!(self, Self::Failed { .. })
    }
}

impl fmt::Display for CaseVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("passed"),
            Self::Failed { why } => write!(f, "FAILED: {why}"),
            Self::NotPromised { capability } => write!(f, "not promised: `{capability}` is not among the capabilities"),
            Self::Unchecked { why } => write!(f, "not checked: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(verdicts: [CaseVerdict; 3]) -> Report {
        let cases = ["short", "quite-long", "last"].into_iter().zip(verdicts);
        let cases = cases.map(|(case, verdict)| CaseReport { case, verdict }).collect();
        Report { runner: "mine".into(), image: "host".into(), sampled: false, cases }
    }

    #[test]
    fn the_table_tells_what_passed_what_failed_and_what_nobody_promised() {
        let report = report([
            CaseVerdict::Passed,
            CaseVerdict::Failed { why: "exit codes: expected 3, found 0".into() },
            CaseVerdict::NotPromised { capability: "limits" },
        ]);
        let expected = "conformance of runner `mine` on image `host`\n  \
                        short       passed\n  \
                        last        not promised: `limits` is not among the capabilities\n  \
                        quite-long  FAILED: exit codes: expected 3, found 0\n\
                        1 passed, 1 failed, 1 not promised, 0 not checked";
        assert_eq!(report.to_string(), expected);
    }

    #[test]
    #[should_panic(expected = "quite-long  FAILED: lost")]
    fn a_failure_ends_the_test_with_the_table() {
        report([CaseVerdict::Passed, CaseVerdict::Failed { why: "lost".into() }, CaseVerdict::Passed]).assert_passed();
    }

    #[test]
    fn what_is_not_promised_or_not_checked_fails_nobody() {
        let unchecked = CaseVerdict::Unchecked { why: "no tool".into() };
        report([CaseVerdict::Passed, unchecked, CaseVerdict::NotPromised { capability: "x" }]).assert_passed();
    }
}
