//! Checks on runner names that the compiler can evaluate. The derive's `const` assertions call these.

use std::marker::PhantomData;

use super::StepRunner;

/// Returns whether `name` is a valid runner name: at least one character, and only lowercase letters, digits,
/// `-` and `_`. Snapshots of a runner are named `<name>:<opaque>`, so a name cannot contain a colon.
#[must_use]
pub const fn is_runner_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if !matches!(bytes[at], b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_') {
            return false;
        }
        at += 1;
    }
    !bytes.is_empty()
}

/// Returns whether two fields of a set have the same name. A type that is not a runner has no name; its error
/// is reported elsewhere.
#[must_use]
pub const fn collide(one: Option<&str>, other: Option<&str>) -> bool {
    let (Some(one), Some(other)) = (one, other) else { return false };
    let (one, other) = (one.as_bytes(), other.as_bytes());
    if one.len() != other.len() {
        return false;
    }
    let mut at = 0;
    while at < one.len() {
        if one[at] != other[at] {
            return false;
        }
        at += 1;
    }
    true
}

/// Returns whether a field of a set has an invalid name.
#[must_use]
pub const fn is_bad(name: Option<&str>) -> bool {
    match name {
        Some(name) => !is_runner_name(name),
        None => false,
    }
}

/// Reads the name of a type that may not be a runner, without a compile error if it is not:
/// `NameOf::<T>::NAME` is the inherent constant if its bound holds, and [`Nameless`]'s otherwise.
#[derive(Debug)]
pub struct NameOf<T>(PhantomData<T>);

impl<T: StepRunner> NameOf<T> {
    /// The runner's name.
    pub const NAME: Option<&'static str> = Some(T::NAME);
}

/// The fallback for a type that is not a runner.
pub trait Nameless {
    /// No name.
    const NAME: Option<&'static str> = None;
}

impl<T> Nameless for NameOf<T> {}

#[cfg(test)]
mod tests {
    use super::{Nameless as _, *};

    #[test]
    fn a_name_is_lowercase_letters_digits_and_dashes() {
        for good in ["vm", "docker-2", "my_runner", "0"] {
            assert!(is_runner_name(good), "{good}");
        }
        for bad in ["", "VM", "a b", "hm1:x", "ä", "a/b", "a\n"] {
            assert!(!is_runner_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn only_equal_names_collide() {
        assert!(collide(Some("vm"), Some("vm")));
        assert!(!collide(Some("vm"), Some("vn")));
        assert!(!collide(Some("vm"), Some("vm2")));
        assert!(!collide(None, None));
    }

    #[test]
    fn a_type_that_is_no_runner_has_no_name() {
        assert_eq!(NameOf::<String>::NAME, None);
    }
}
