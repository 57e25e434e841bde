//! Unpacking of random archives, compared with the reference model.

use proptest::prelude::*;

use crate::support::unpack_oracle::{check, members_of};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn an_archive_becomes_what_the_model_says_and_nothing_else(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
        check(&members_of(&bytes));
    }
}
