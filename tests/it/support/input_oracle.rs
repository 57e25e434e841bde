//! Invariants of arbitrary bytes as a runner's input, with the published crate as the reference. The property
//! test and the fuzz target share them.

use hm_exec::ExecutorInput;
use hm_plugin_protocol as theirs;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// Checks one input. Every input that our types read, the published crate reads with the same result, and
/// vice versa. The published crate skips the fields of a cache policy that it does not know, without checking
/// whether they are valid text (half a surrogate pair is not); our types keep them.
pub(crate) fn check(json: &[u8]) {
    let ours = serde_json::from_slice::<ExecutorInput>(json);
    let theirs = serde_json::from_slice::<theirs::ExecutorInput>(json);
    match (ours, theirs) {
        (Ok(ours), Ok(theirs)) => {
            let (ours, theirs) = (serde_json::to_value(&ours).unwrap(), serde_json::to_value(&theirs).unwrap());
            assert_eq!(rewritten::<theirs::ExecutorInput>(&ours), theirs, "what they read of what we wrote");
            assert_eq!(rewritten::<ExecutorInput>(&ours), ours, "what we read of what we wrote");
            assert_eq!(rewritten::<ExecutorInput>(&theirs), theirs, "what we read of what they wrote");
        }
        (Ok(_), Err(error)) => panic!("the published crate refuses what we read: {error}"),
        (Err(error), Ok(_)) => {
            assert!(
                serde_json::from_slice::<Value>(json).is_err(),
                "the published crate reads what we refuse: {error}"
            );
        }
        (Err(_), Err(_)) => {}
    }
}

/// Returns the JSON that a `T` read from `value` writes.
fn rewritten<T: Serialize + DeserializeOwned>(value: &Value) -> Value {
    serde_json::to_value(serde_json::from_value::<T>(value.clone()).unwrap()).unwrap()
}
