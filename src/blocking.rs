//! Work that blocks, such as on files, on a thread that the runtime has for it.

use std::io;

use tokio::task::JoinError;

/// An error that can report that the work did not end: it panicked, or the runtime was shut down.
pub(crate) trait BlockingError {
    /// Converts the error of a thread that was to do something. `doing` completes "failed to ...".
    fn not_done(doing: &'static str, error: JoinError) -> Self;
}

impl BlockingError for io::Error {
    fn not_done(_: &'static str, error: JoinError) -> Self {
        Self::other(error)
    }
}

impl BlockingError for anyhow::Error {
    fn not_done(_: &'static str, error: JoinError) -> Self {
        error.into()
    }
}

/// Does work on a thread for blocking work. `doing` completes "failed to ...".
///
/// # Errors
/// Returns the error of the work, or that of a thread that did not end it.
///
/// # Cancel safety
/// If the future is dropped, the work continues to its end, and its result is lost.
pub(crate) async fn run<T, E>(doing: &'static str, work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: BlockingError + Send + 'static,
{
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(E::not_done(doing, error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_that_panics_is_an_error() {
        assert_eq!(run("count", || Ok::<_, io::Error>(1)).await.unwrap(), 1);
        let failed = run("count", || -> io::Result<u8> { panic!("it panicked") }).await;
        assert!(failed.unwrap_err().to_string().contains("panicked"));
    }
}
