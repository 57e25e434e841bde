//! What the targets share: values of the property tests' strategies, made of the fuzzer's bytes.

use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

/// The value that follows from a seed. (Bytes in place of random ones run out, and zeros are numbers that ranges reject for
/// ever.)
pub fn value_of<S: Strategy>(strategy: &S, seed: [u8; 8]) -> S::Value {
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 4].concat());
    let tree = strategy.new_tree(&mut TestRunner::new_with_rng(Config::default(), random));
    tree.expect("the strategies reject nothing").current()
}
