//! Files of other steps that a step gets: read in a visit to the other step's filesystem, and mounted
//! read-only. See `docs/design/inputs.md`.

use std::{
    fs::{DirBuilder, File},
    io::{self, Read},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::{FutureExt, future::BoxFuture};
use rustix::{io::Errno, pipe::PipeFlags};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    SandboxRunner,
    boot::{Boot, failed},
    jail::Bind,
    overlay_pool::c_path,
    visit::{Streams, Visit, VisitError, VisitOperation},
};
use crate::{
    blocking,
    runner::{ExecutorInput, InputFiles, RunnerError, StepContext},
    source::{FrozenSource, RunSource},
    store::{Store, StoreError, error::IoContext, tree},
};

/// Precedes the stream in the digest of an input.
const CONTEXT: &[u8] = b"hm-exec step input 1\0";

/// How many inputs are read at a time, for all steps. Each reader holds a thread for blocking work, and its
/// visit needs another one for a moment: if readers held all threads, none could end.
pub(super) const INPUT_READS: usize = 8;

/// The directory of a copy, below that of this process's temporary files. Dropping it removes it.
#[derive(Debug)]
struct InputCopy {
    store: Arc<Store>,
    home: PathBuf,
}

/// An input of a step: its copy, and the mount that shows it.
#[derive(Debug)]
pub(super) struct ShownInput {
    pub(super) bind: Bind,
    _copy: InputCopy,
}

impl InputCopy {
    fn new(store: &Arc<Store>) -> Result<Self, StoreError> {
        let copy = Self { store: Arc::clone(store), home: store.instance().new_tmp() };
        DirBuilder::new().mode(0o700).create(&copy.home).doing("make the directory", &copy.home)?;
        Ok(copy)
    }

    /// Returns the path of the file or directory.
    fn files(&self) -> PathBuf {
        self.home.join("files")
    }
}

impl Drop for InputCopy {
    fn drop(&mut self) {
        self.store.trash().discard(std::mem::take(&mut self.home));
    }
}

impl SandboxRunner {
    /// Copies the inputs of a step, and adds their mounts to what it boots from.
    ///
    /// # Cancel safety
    /// If the future is dropped, the visit ends, and the copies are removed when the last write has ended.
    pub(super) async fn bring_inputs(
        &self,
        store: &Arc<Store>,
        ctx: &StepContext,
        input: &ExecutorInput,
        boot: &mut Boot,
    ) -> Result<(), RunnerError> {
        if input.inputs().is_empty() {
            return Ok(());
        }
        if let Some(shown) = ctx.kept() {
            boot.inputs = Some(shown);
            return Ok(());
        }
        // Boxed, because most steps have none.
        let bringing = Box::pin(async {
            let source = ctx.frozen_source(store).await.map_err(failed("freeze the source"))?;
            let mut shown = Vec::with_capacity(input.inputs().len());
            for files in input.inputs() {
                let copy = InputCopy::new(store).map_err(failed("make a directory for files of another step"))?;
                let (source_path, target) = (c_path(&copy.files())?, c_path(Path::new(&*files.target))?);
                let taking = move |stream: &mut dyn Read| tree::copy_out(stream, &copy.files()).map(|()| copy);
                let copy = self.take_input(store, (&source, files), taking).await?;
                shown.push(ShownInput { bind: Bind { source: source_path, target, writable: false }, _copy: copy });
            }
            Ok::<_, RunnerError>(Arc::new(shown))
        });
        let shown = tokio::select! {
            biased;
            () = ctx.cancel.cancelled() => return Err(ctx.interrupted()),
            brought = bringing => brought?,
        };
        ctx.keep_for_next(&shown);
        boot.inputs = Some(shown);
        Ok(())
    }

    /// Reads an input as a plain stream, and returns what `taking` makes of it.
    ///
    /// # Cancel safety
    /// If the future is dropped, the visit ends, and `taking` sees the end of the stream.
    pub(crate) async fn take_input<T: Send + 'static>(
        &self,
        store: &Arc<Store>,
        from: (&FrozenSource, &InputFiles),
        taking: impl FnOnce(&mut dyn Read) -> io::Result<T> + Send + 'static,
    ) -> Result<T, RunnerError> {
        let permit = self.input_read().await?;
        Ok(self.read_input(store, from, permit, taking).await?.1)
    }

    pub(crate) fn boxed_input_digest<'a>(
        &'a self,
        source: &'a RunSource,
        input: &'a InputFiles,
    ) -> BoxFuture<'a, Result<[u8; 32], RunnerError>> {
        async move {
            let store = self.store().map_err(failed("open the store"))?;
            let InputFiles { snapshot, path, .. } = input;
            let id = source.name(&store).await.map_err(failed("freeze the source"))?;
            // The index may be locked by another process for seconds.
            let known = || {
                let (store, snapshot, id, path) = (Arc::clone(&store), snapshot.clone(), id.clone(), Arc::clone(path));
                let read = move || Ok(store.digests().of_input(&snapshot, &id, &path)?);
                RunnerError::blocking("read the store's index", read)
            };
            if let Some(digest) = known().await? {
                return Ok(digest);
            }
            let frozen = source.freeze(&store).await.map_err(failed("freeze the source"))?;
            let permit = self.input_read().await?;
            // Another step may have read the same path while this one waited.
            if let Some(digest) = known().await? {
                return Ok(digest);
            }
            let (digest, ()) = self.read_input(&store, (&frozen, input), permit, |_| Ok(())).await?;
            let (snapshot, path) = (snapshot.clone(), Arc::clone(path));
            let remember = move || Ok(store.digests().remember_input((&snapshot, &frozen.id), &path, &digest)?);
            if let Err(error) = RunnerError::blocking("write the store's index", remember).await {
                tracing::debug!(%error, "failed to remember the digest of an input");
            }
            Ok(digest)
        }
        .boxed()
    }

    /// Waits until another input may be read.
    async fn input_read(&self) -> Result<OwnedSemaphorePermit, RunnerError> {
        let permit = Arc::clone(&self.input_reads).acquire_owned().await;
        permit.map_err(|error| RunnerError::infrastructure("wait for readers of other steps' files", error))
    }

    /// Reads an input. Returns its digest, and what `taking` makes of the stream.
    async fn read_input<T: Send + 'static>(
        &self,
        store: &Arc<Store>,
        (source, input): (&FrozenSource, &InputFiles),
        permit: OwnedSemaphorePermit,
        taking: impl FnOnce(&mut dyn Read) -> io::Result<T> + Send + 'static,
    ) -> Result<([u8; 32], T), RunnerError> {
        let doing = "read files of another step";
        let failed = |error: io::Error| RunnerError::infrastructure(doing, error);
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|errno| failed(errno.into()))?;
        let null = File::options().read(true).write(true).open("/dev/null").map_err(failed)?;
        // The thread owns the permit, and what it writes to: it may still write after this future was
        // dropped.
        let receiving = blocking::run(doing, move || {
            let _permit = permit;
            Ok::<_, RunnerError>(receive(File::from(read), taking))
        });
        let visiting = async {
            let operation = VisitOperation::PackPlain { path: PathBuf::from(&*input.path) };
            let streams = Streams { stdin: None, stdout: write, stderr: null.into(), terminal: false };
            self.visit(Visit::new(&input.snapshot, source, operation), streams).await
        };
        let (visited, received) = tokio::join!(visiting, receiving);
        match (visited, received?) {
            (Ok(0), Ok(received)) => Ok(received),
            (Err(VisitError::Operation { source, .. }), _) if is_number(&source, &[Errno::FBIG]) => {
                Err(RunnerError::unsupported(format!(
                    "{} of step `{}`, which `inputs` names, is larger than 4 GiB: name a smaller part of it, or build in \
                     that step",
                    input.path, input.step
                )))
            }
            // If the copy cannot be written, the visitor loses its reader.
            (_, Err(error)) if error.kind() != io::ErrorKind::UnexpectedEof => Err(RunnerError::infrastructure(
                format_args!("copy {} of step `{}`", input.path, input.step),
                StoreError::io("write", store.dir(), error),
            )),
            (Err(VisitError::Operation { source, .. }), _) if is_about_the_path(&source) => {
                Err(RunnerError::unsupported(format!(
                    "step `{}` has no file or directory {} ({source}), which `inputs` names: correct the path, or let the \
                     step write it",
                    input.step, input.path
                )))
            }
            (Err(VisitError::Sandbox(error)), _) => Err(error),
            (Err(error), _) => {
                Err(RunnerError::infrastructure(format_args!("read {} of step `{}`", input.path, input.step), error))
            }
            (Ok(code), _) => Err(failed(io::Error::other(format!("reading ended with exit code {code}")))),
        }
    }
}

/// Receives a plain stream. Returns its digest, and what `taking` makes of it.
fn receive<T>(stream: impl Read, taking: impl FnOnce(&mut dyn Read) -> io::Result<T>) -> io::Result<([u8; 32], T)> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(CONTEXT);
    let mut stream = Hashing { stream, hasher };
    let taken = taking(&mut stream)?;
    // What is not taken is part of the digest, too.
    io::copy(&mut stream, &mut io::sink())?;
    Ok((*stream.hasher.finalize().as_bytes(), taken))
}

/// A stream whose bytes are hashed as they are read.
struct Hashing<R> {
    stream: R,
    hasher: blake3::Hasher,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.stream.read(buffer)?;
        self.hasher.update(&buffer[..length]);
        Ok(length)
    }
}

/// Returns whether an error is caused by the path rather than by the machine.
fn is_about_the_path(error: &io::Error) -> bool {
    // The visitor may read all that the step could. It may not enter the roots of other processes.
    is_number(error, &[Errno::NOENT, Errno::NOTDIR, Errno::NAMETOOLONG, Errno::LOOP, Errno::ACCESS])
}

fn is_number(error: &io::Error, numbers: &[Errno]) -> bool {
    error.raw_os_error().is_some_and(|number| numbers.contains(&Errno::from_raw_os_error(number)))
}
