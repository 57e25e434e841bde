//! The recursion over a derived set's runners, for everything off the hot path.
//!
//! The input is the list that the derive makes of a struct's fields: of references to visit a runner, of the
//! runners themselves to take them. This is the only file that names `HCons` of frunk. The hot path is not
//! here but in the `match` that the derive emits.

use std::sync::Arc;

use frunk_core::hlist::{HCons, HNil};

use super::{DynStepRunner, RunnerIndex, RunnerRegistry, RunnerSet, StepRunner, dynamic::Named};

/// One runner of a derived set. `R` is the runner, or a reference to it.
#[derive(Debug)]
pub struct Member<R> {
    name: &'static str,
    runner: R,
}

/// A set whose runners belong to the derived set. `S` is the set, or a reference to it.
#[derive(Debug)]
pub struct Flattened<S>(S);

/// The list of a set without runners, which [`cons`] and [`flatten`] extend.
pub const NIL: HNil = HNil;

/// Prepends a runner to `tail`. The derive emits one call per field.
pub fn cons<Head, Tail>(name: &'static str, runner: Head, tail: Tail) -> HCons<Member<Head>, Tail> {
    HCons { head: Member { name, runner }, tail }
}

/// Prepends the runners of a set to `tail`. The derive emits one call per flattened field.
pub fn flatten<Head, Tail>(set: Head, tail: Tail) -> HCons<Flattened<Head>, Tail> {
    HCons { head: Flattened(set), tail }
}

/// The recursion over references to runners.
pub trait VisitRunners<'a> {
    /// Returns the runner at `index`, counted from the head of the list, and its name in the set.
    fn visit(self, index: u16) -> Option<(&'a str, &'a dyn DynStepRunner)>;
}

impl<'a> VisitRunners<'a> for HNil {
    fn visit(self, _: u16) -> Option<(&'a str, &'a dyn DynStepRunner)> {
        None
    }
}

impl<'a, Head, Tail> VisitRunners<'a> for HCons<Member<&'a Head>, Tail>
where
    Head: StepRunner,
    Tail: VisitRunners<'a>,
{
    fn visit(self, index: u16) -> Option<(&'a str, &'a dyn DynStepRunner)> {
        match index.checked_sub(1) {
            None => Some((self.head.name, self.head.runner)),
            Some(index) => self.tail.visit(index),
        }
    }
}

impl<'a, Head, Tail> VisitRunners<'a> for HCons<Flattened<&'a Head>, Tail>
where
    Head: RunnerSet,
    Tail: VisitRunners<'a>,
{
    fn visit(self, index: u16) -> Option<(&'a str, &'a dyn DynStepRunner)> {
        let set = self.head.0;
        match behind_set(index, set.runner_count()) {
            None => set.at(RunnerIndex(index)),
            Some(index) => self.tail.visit(index),
        }
    }
}

/// The recursion over the runners themselves.
pub trait TakeRunners {
    /// Registers every runner under its name in the set. `default` is the index of the default, counted from
    /// the head of the list.
    fn register(self, registry: &mut RunnerRegistry, default: Option<u16>);
}

impl TakeRunners for HNil {
    fn register(self, _: &mut RunnerRegistry, _: Option<u16>) {}
}

impl<Head, Tail> TakeRunners for HCons<Member<Head>, Tail>
where
    Head: StepRunner,
    Tail: TakeRunners,
{
    fn register(self, registry: &mut RunnerRegistry, default: Option<u16>) {
        let Member { name, runner } = self.head;
        let runner: Arc<dyn DynStepRunner> =
            if name == Head::NAME { Arc::new(runner) } else { Arc::new(Named { name, runner }) };
        registry.register(runner, default == Some(0));
        self.tail.register(registry, default.and_then(|index| index.checked_sub(1)));
    }
}

impl<Head, Tail> TakeRunners for HCons<Flattened<Head>, Tail>
where
    Head: RunnerSet,
    Tail: TakeRunners,
{
    fn register(self, registry: &mut RunnerRegistry, default: Option<u16>) {
        let set = self.head.0;
        let count = set.runner_count();
        let (inside, behind) = match default {
            Some(index) if usize::from(index) < count => (Some(index), None),
            index => (None, index.and_then(|index| behind_set(index, count))),
        };
        registry.append(set.into_registry(), inside);
        self.tail.register(registry, behind);
    }
}

/// Returns an index counted from behind a set of `count` runners, or `None` if it is in the set.
fn behind_set(index: u16, count: usize) -> Option<u16> {
    u16::try_from(usize::from(index).checked_sub(count)?).ok()
}

/// Finds the flattened set that has the runner at `index`. The first of them begins at `first`, and
/// `counts` are their sizes. Returns the set's position among them, and the runner's index in it.
#[must_use]
pub fn nested<const N: usize>(index: RunnerIndex, first: u16, counts: [usize; N]) -> Option<(usize, RunnerIndex)> {
    let mut index = index.0.checked_sub(first)?;
    for (at, count) in counts.into_iter().enumerate() {
        match behind_set(index, count) {
            None => return Some((at, RunnerIndex(index))),
            Some(behind) => index = behind,
        }
    }
    None
}

/// Returns the index in a derived set of the runner at `index` of a flattened set. `before` is the number of
/// runners before that set.
#[must_use]
pub fn behind(before: usize, index: Option<RunnerIndex>) -> Option<RunnerIndex> {
    u16::try_from(before + usize::from(index?.0)).ok().map(RunnerIndex)
}

/// Returns the runner at `index` of a list, and its name in the set.
pub fn at<'a>(runners: impl VisitRunners<'a>, index: RunnerIndex) -> Option<(&'a str, &'a dyn DynStepRunner)> {
    runners.visit(index.0)
}

/// Moves the runners of a list into a registry, which resolves them at run time.
#[must_use]
pub fn into_registry(runners: impl TakeRunners, default: Option<RunnerIndex>) -> RunnerRegistry {
    let mut registry = RunnerRegistry::new();
    runners.register(&mut registry, default.map(|index| index.0));
    registry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_behind_the_runners_is_in_one_of_the_flattened_sets() {
        let found = |index| nested(RunnerIndex(index), 2, [2, 0, 1]).map(|(set, index)| (set, index.0));
        let all: Vec<_> = (0..7).map(found).collect();
        assert_eq!(all, [None, None, Some((0, 0)), Some((0, 1)), Some((2, 0)), None, None]);
        assert_eq!(nested(RunnerIndex(u16::MAX), 0, [usize::MAX]), Some((0, RunnerIndex(u16::MAX))));
        assert_eq!(behind(3, Some(RunnerIndex(1))), Some(RunnerIndex(4)));
        assert_eq!((behind(3, None), behind(1, Some(RunnerIndex(u16::MAX)))), (None, None));
    }
}
