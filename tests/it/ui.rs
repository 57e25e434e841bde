//! The compiler errors of a downstream crate with wrong sets of runners. `TRYBUILD=overwrite` regenerates the
//! expected errors.

#[test]
fn wrong_sets_get_clear_compiler_errors() {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/ui/fail/*.rs");
}
