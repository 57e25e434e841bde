//! What `hm-step` answers to those who run it by hand.

#![allow(clippy::unwrap_used, reason = "tests panic")]

use std::process::{Command, Output};

fn hm_step(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hm-step")).args(args).output().unwrap()
}

#[test]
fn the_version_names_the_format_of_its_files() {
    let output = hm_step(&["--version"]);
    assert!(output.status.success(), "{output:?}");
    let expected = format!("hm-step {}, format {}\n", env!("CARGO_PKG_VERSION"), hm_exec_step::VERSION);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
}

#[test]
fn no_input_is_a_mistake_of_the_caller() {
    for args in [&[][..], &["a.json", "b.json"]] {
        let output = hm_step(args);
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "usage: hm-step input.json\n");
    }
}
