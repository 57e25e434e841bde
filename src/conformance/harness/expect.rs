//! Comparisons of what a case found with what it expects.

use std::io;

/// Why a case did not pass.
#[derive(Debug)]
pub(in crate::conformance) enum Broken {
    /// The runner broke its promise.
    Promise(String),
    /// The image lacks a program that the check needs.
    Image(String),
}

impl Broken {
    pub(in crate::conformance) fn new(why: impl Into<String>) -> Self {
        Self::Promise(why.into())
    }
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::new(format!("the suite failed to read a file: {error}"))
    }
}

/// Fails with both values, truncated if they are long.
#[expect(clippy::needless_pass_by_value, reason = "cases read better without ampersands")]
pub(in crate::conformance) fn expect<T: std::fmt::Debug + PartialEq<U>, U: std::fmt::Debug>(
    what: &str,
    found: T,
    expected: U,
) -> Result<(), Broken> {
    if found == expected {
        return Ok(());
    }
    Err(Broken::new(format!("{what}: expected {}, found {}", clipped(&expected), clipped(&found))))
}

pub(super) fn clipped(value: &impl std::fmt::Debug) -> String {
    const MOST: usize = 600;
    let mut text = format!("{value:?}");
    if text.len() > MOST {
        let end = (0..=MOST).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
        text.truncate(end);
        text.push_str("...");
    }
    text
}
