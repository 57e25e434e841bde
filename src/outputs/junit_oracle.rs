//! What must hold for any document, however it is read: for the property test and the fuzz target.

use std::io::BufReader;

use super::read_junit;

/// The limits that `junit` promises: failed tests with a name, bytes of a name, and bytes of a line.
const MOST_FAILURES: usize = 100;
const NAME_BYTES: usize = 300;
const LINE_BYTES: usize = 200;

/// Reads a document, and checks the result.
pub(crate) fn check(document: &[u8]) {
    let whole = read_junit(document);
    // The size of reads does not matter.
    let in_parts = read_junit(BufReader::with_capacity(3, document));
    match (&whole, &in_parts) {
        (Ok(one), Ok(other)) => assert_eq!(one, other),
        (one, other) => assert_eq!(one.is_err(), other.is_err(), "{one:?} {other:?}"),
    }
    match whole {
        Ok(Some(results)) => {
            assert!(u64::from(results.failed) + u64::from(results.skipped) <= u64::from(results.tests));
            assert_eq!(results.failures.len(), MOST_FAILURES.min(results.failed as usize));
            for failure in &results.failures {
                assert!(failure.name.len() <= NAME_BYTES && failure.message.len() <= LINE_BYTES);
                assert!(!failure.message.contains('\n'));
            }
            let is_case = |window: &&[u8]| *window == b"<testcase" || *window == b":testcase";
            assert!(results.tests as usize <= document.windows(9).filter(is_case).count());
        }
        Ok(None) => {}
        Err(error) => assert!(error.position <= document.len() as u64 + 1, "{error}"),
    }
}
