//! The docker runner, on a daemon of the tests' own.

pub(crate) mod daemon;
