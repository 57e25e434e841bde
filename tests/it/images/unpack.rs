//! Unpacking of random archives, compared with the reference model.

use proptest::prelude::*;

use crate::support::unpack_oracle::{check, members_of};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn unpacking_an_archive_agrees_with_the_model(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
        check(&members_of(&bytes));
    }
}
