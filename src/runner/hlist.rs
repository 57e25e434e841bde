//! The recursion over a derived set's runners, for everything off the hot path.
//!
//! The input is the list that the derive makes of a struct's fields: of references to visit a runner, of the
//! runners themselves to take them. This is the only file that names `HCons` of frunk. The hot path is not
//! here but in the `match` that the derive emits.

use std::sync::Arc;

use frunk_core::hlist::{HCons, HNil};

use super::{DynStepRunner, RunnerIndex, RunnerRegistry, StepRunner, dynamic::Named};

/// One runner of a derived set. `R` is the runner, or a reference to it.
#[derive(Debug)]
pub struct Member<R> {
    name: &'static str,
    runner: R,
}

/// The list of a set without runners, which [`cons`] extends.
pub const NIL: HNil = HNil;

/// Prepends a runner to `tail`. The derive emits one call per field.
pub fn cons<Head, Tail>(name: &'static str, runner: Head, tail: Tail) -> HCons<Member<Head>, Tail> {
    HCons { head: Member { name, runner }, tail }
}

/// The recursion over references to runners.
pub trait VisitRunners<'a> {
    /// Returns the runner at `index`, counted from the head of the list, and its name in the set.
    fn visit(self, index: u16) -> Option<(&'static str, &'a dyn DynStepRunner)>;
}

impl<'a> VisitRunners<'a> for HNil {
    fn visit(self, _: u16) -> Option<(&'static str, &'a dyn DynStepRunner)> {
        None
    }
}

impl<'a, Head, Tail> VisitRunners<'a> for HCons<Member<&'a Head>, Tail>
where
    Head: StepRunner,
    Tail: VisitRunners<'a>,
{
    fn visit(self, index: u16) -> Option<(&'static str, &'a dyn DynStepRunner)> {
        match index.checked_sub(1) {
            None => Some((self.head.name, self.head.runner)),
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

/// Returns the runner at `index` of a list, and its name in the set.
pub fn at<'a>(runners: impl VisitRunners<'a>, index: RunnerIndex) -> Option<(&'static str, &'a dyn DynStepRunner)> {
    runners.visit(index.0)
}

/// Moves the runners of a list into a registry, which resolves them at run time.
#[must_use]
pub fn into_registry(runners: impl TakeRunners, default: Option<RunnerIndex>) -> RunnerRegistry {
    let mut registry = RunnerRegistry::new();
    runners.register(&mut registry, default.map(|index| index.0));
    registry
}
