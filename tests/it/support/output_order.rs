//! Steps whose output on two streams has an order.

use std::collections::BTreeMap;

/// A command that prints a message after some output, as failing commands do.
pub(crate) const FAILS_LATE: &str =
    "i=1; while [ $i -le 30 ]; do echo line $i; i=$((i+1)); done; echo BOOM >&2; echo and >&2; echo more >&2";

/// Returns how many of `runs` steps that ran [`FAILS_LATE`] have output that is out of order. `stdout` is the
/// output of `--format human`. Fails if a line is missing.
#[track_caller]
pub(crate) fn out_of_order(stdout: &str, runs: usize) -> usize {
    let mut printed: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (key, line) in stdout.lines().filter_map(|line| line.split_once(" | ")) {
        printed.entry(key).or_default().push(line);
    }
    assert_eq!(printed.len(), runs, "{stdout}");
    let mut expected: Vec<String> = (1..=30).map(|number| format!("line {number}")).collect();
    expected.extend(["BOOM", "and", "more"].map(String::from));
    let mut wrong = 0;
    for (key, lines) in printed {
        assert_eq!(lines.len(), expected.len(), "{key}: {lines:?}");
        wrong += usize::from(lines.iter().ne(expected.iter()));
    }
    wrong
}
