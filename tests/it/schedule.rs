//! The pure policy against the reference model, in virtual time.

use proptest::prelude::*;

use crate::support::{
    graphs::cases,
    policy_oracle::{check, scenarios},
};

proptest! {
    #![proptest_config(cases(512))]

    #[test]
    fn the_policy_agrees_with_the_model(scenario in scenarios()) {
        check(&scenario);
    }
}
