//! Backends behind a pointer, for callers that choose them at run time.

use std::{future::Future, pin::Pin};

use super::{BackendHandle, Capabilities, ExecutionBackend, Result, RunRequest};
use crate::outcome::BuildOutcome;

/// The dyn-compatible side of [`ExecutionBackend`], which every `ExecutionBackend` has.
///
/// Backends implement `ExecutionBackend`. Callers that take any backend take `&dyn DynExecutionBackend`, or a
/// box or an `Arc` of it. Each method has the contract of the same method of `ExecutionBackend`.
///
/// If both traits are in scope, a call such as `engine.name()` is ambiguous for a backend that is not behind
/// a pointer; import one of them.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a backend",
    note = "implement `hm_exec::ExecutionBackend`: `name`, `capabilities` and `start`"
)]
pub trait DynExecutionBackend: Send + Sync {
    /// Returns a stable name for diagnostics.
    fn name(&self) -> &str;

    /// Returns what the backend supports; see [`ExecutionBackend::capabilities`].
    fn capabilities(&self) -> Capabilities;

    /// Starts a build; see [`ExecutionBackend::start`].
    ///
    /// The lifetimes are those that the crate `async-trait` writes, so that its attribute can stay on an
    /// implementation.
    ///
    /// # Errors
    /// As [`ExecutionBackend::start`].
    fn start<'life0, 'async_trait>(
        &'life0 self,
        request: RunRequest,
    ) -> Pin<Box<dyn Future<Output = Result<BackendHandle>> + Send + 'async_trait>>
    where
        'life0: 'async_trait,
        Self: 'async_trait;
}

#[diagnostic::do_not_recommend]
impl<B: ExecutionBackend> DynExecutionBackend for B {
    fn name(&self) -> &str {
        ExecutionBackend::name(self)
    }

    fn capabilities(&self) -> Capabilities {
        ExecutionBackend::capabilities(self)
    }

    fn start<'life0, 'async_trait>(
        &'life0 self,
        request: RunRequest,
    ) -> Pin<Box<dyn Future<Output = Result<BackendHandle>> + Send + 'async_trait>>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(ExecutionBackend::start(self, request))
    }
}

impl dyn DynExecutionBackend + '_ {
    /// Runs a build to its end, and ignores its events; see [`ExecutionBackend::run`].
    ///
    /// # Errors
    /// As [`ExecutionBackend::run`].
    ///
    /// # Cancel safety
    /// If the future is dropped, the build is cancelled.
    pub async fn run(&self, request: RunRequest) -> Result<BuildOutcome> {
        self.start(request).await?.finish().await
    }
}
