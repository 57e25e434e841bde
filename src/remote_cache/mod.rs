//! The remote cache: results of cached steps, shared through an engine's action cache.
//!
//! Input: a key that this machine's cache does not have. Output: the snapshot of a step with the same key
//! that ran on another machine, with its layers fetched if a step is about to boot from it. In the other
//! direction, results of this machine are shared there. Any failure is a miss: the build continues, with a
//! warning. Does not know how keys are derived or when steps start.

mod entry;
mod error;
mod fetch;
mod lookup;
mod options;
mod scope;
mod share;
mod signature;

use std::sync::Arc;

use futures_util::{FutureExt, future::BoxFuture};

pub use options::RemoteCache;
pub use scope::{CacheScope, ScopeError};
pub use signature::{KeyError, PublicKey, SigningKey};

use crate::{
    cache::{CacheKey, Found, LookedAhead, Question, SharedResults},
    model::{Pool, SnapshotRef},
    store::Store,
};

impl SharedResults for RemoteCache {
    fn scope(&self) -> &str {
        self.rules.scope.as_str()
    }

    fn reads(&self, pool: &Pool) -> bool {
        self.reads && self.serves(pool)
    }

    fn writes(&self, pool: &Pool) -> bool {
        self.writes && self.serves(pool)
    }

    fn find<'a>(
        &'a self,
        store: &'a Arc<Store>,
        pipeline: &'a str,
        question: Question<'a>,
        ahead: &'a LookedAhead,
    ) -> BoxFuture<'a, Option<Found>> {
        self.look_up(store, pipeline, question, ahead).boxed()
    }

    fn complete<'a>(
        &'a self,
        store: &'a Arc<Store>,
        pipeline: &'a str,
        snapshot: &'a SnapshotRef,
    ) -> BoxFuture<'a, ()> {
        self.fetch_absent(store, pipeline, snapshot).boxed()
    }

    fn share<'a>(&'a self, store: &'a Arc<Store>, pipeline: &'a str, key: CacheKey, found: Found) -> BoxFuture<'a, ()> {
        self.publish(store, pipeline, key, found).boxed()
    }
}
