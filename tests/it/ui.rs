//! What a downstream crate's compiler says about sets of runners. `TRYBUILD=overwrite` writes the expected errors anew.

#[test]
fn wrong_sets_say_what_is_wrong() {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/ui/fail/*.rs");
}
