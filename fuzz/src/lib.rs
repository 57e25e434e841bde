//! Shared by the targets: values of the property tests' strategies, derived from the fuzzer's bytes.

use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

/// Returns the value that a strategy generates from a seed. (Using the fuzzer's bytes in place of random ones
/// does not work: they run out, and ranges reject zeros forever.)
pub fn value_of<S: Strategy>(strategy: &S, seed: [u8; 8]) -> S::Value {
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 4].concat());
    let tree = strategy.new_tree(&mut TestRunner::new_with_rng(Config::default(), random));
    tree.expect("the strategies reject nothing").current()
}
