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

/// The names of a field of a set: those that are known at compile time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// The names are known at run time, or the type has none because it is no runner. That error is reported
    /// elsewhere.
    None,
    /// The name of a runner.
    One(&'static str),
    /// The names of a set.
    Many(&'static [Self]),
}

/// Returns whether two fields of a set have a name in common.
#[must_use]
pub const fn collide(one: Names, other: Names) -> bool {
    match (one, other) {
        (Names::None, _) | (_, Names::None) => false,
        (Names::One(one), Names::One(other)) => is_equal(one.as_bytes(), other.as_bytes()),
        (Names::Many(names), other) | (other, Names::Many(names)) => {
            let mut at = 0;
            while at < names.len() {
                if collide(names[at], other) {
                    return true;
                }
                at += 1;
            }
            false
        }
    }
}

const fn is_equal(one: &[u8], other: &[u8]) -> bool {
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

/// Returns whether a field of a set has an invalid name. The names in a flattened set are checked where it is
/// derived.
#[must_use]
pub const fn is_bad(names: Names) -> bool {
    match names {
        Names::One(name) => !is_runner_name(name),
        Names::None | Names::Many(_) => false,
    }
}

/// Reads the name of a type that may not be a runner, without a compile error if it is not:
/// `NameOf::<T>::NAMES` is the inherent constant if its bound holds, and [`Nameless`]'s otherwise.
#[derive(Debug)]
pub struct NameOf<T>(PhantomData<T>);

impl<T: StepRunner> NameOf<T> {
    /// The runner's name.
    pub const NAMES: Names = Names::One(T::NAME);
}

/// The names of a derived set.
pub trait ConstNames {
    /// The names that do not depend on a parameter of the set.
    const NAMES: Names;
}

/// Reads the names of a type that may not be a derived set, as [`NameOf`] does for runners.
#[derive(Debug)]
pub struct NamesOf<T>(PhantomData<T>);

impl<T: ConstNames> NamesOf<T> {
    /// The names of the set's runners.
    pub const NAMES: Names = T::NAMES;
}

/// The fallback for a type that is neither.
pub trait Nameless {
    /// No name.
    const NAMES: Names = Names::None;
}

impl<T> Nameless for NameOf<T> {}
impl<T> Nameless for NamesOf<T> {}

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
    fn only_equal_names_collide_at_any_depth() {
        use Names::{Many, None, One};
        const INNER: Names = Many(&[One("a"), Many(&[One("vm"), None])]);
        assert!(collide(One("vm"), One("vm")));
        assert!(!collide(One("vm"), One("vn")));
        assert!(!collide(One("vm"), One("vm2")));
        assert!(!collide(None, None));
        assert!(collide(One("vm"), INNER) && collide(INNER, One("vm")) && collide(INNER, INNER));
        assert!(!collide(One("b"), INNER) && !collide(INNER, Many(&[One("b"), One("v")])));
        assert!(!collide(INNER, Many(&[])) && !collide(INNER, None));
    }

    #[test]
    fn a_type_that_is_no_runner_has_no_name() {
        assert_eq!(NameOf::<String>::NAMES, Names::None);
        assert_eq!(NamesOf::<String>::NAMES, Names::None);
        assert_eq!(NamesOf::<crate::runner::RunnerRegistry>::NAMES, Names::None);
    }
}
