//! The remote cache of builds without the client, which cannot be constructed.

use std::sync::Arc;

use super::{LookedAhead, Question};
use crate::{
    cache::{CacheKey, Found},
    model::SnapshotRef,
    runner::Pool,
    store::Store,
};

/// A type without values.
#[derive(Debug)]
pub(crate) enum RemoteCache {}

impl RemoteCache {
    pub(crate) fn reads(&self, _: &Pool) -> bool {
        match *self {}
    }

    pub(crate) fn writes(&self, _: &Pool) -> bool {
        match *self {}
    }

    #[expect(clippy::unused_async, reason = "the real one waits")]
    pub(crate) async fn find(&self, _: &Arc<Store>, _: &str, _: Question<'_>, _: &LookedAhead) -> Option<Found> {
        match *self {}
    }

    #[expect(clippy::unused_async, reason = "the real one waits")]
    pub(crate) async fn complete(&self, _: &Arc<Store>, _: &str, _: &SnapshotRef) {
        match *self {}
    }

    #[expect(clippy::unused_async, reason = "the real one waits")]
    pub(crate) async fn share(&self, _: &Arc<Store>, _: &str, _: CacheKey, _: Found) {
        match *self {}
    }
}
