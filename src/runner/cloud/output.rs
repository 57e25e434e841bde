//! A step's output: read while it runs, where the engine allows it, and the rest when it has ended. Never twice.

use std::{fs::File, io::Read, sync::Arc, time::Duration};

use futures_util::{
    StreamExt,
    stream::{self, BoxStream, SelectAll},
};
use uuid::Uuid;

use super::trouble::{self, on_thread};
use crate::{
    event::{EventBus, StdStream},
    remote::{Cas, Digest, Endpoint, read_log, reapi},
    runner::RunnerError,
    store::Store,
};

/// How long the end of a live log is waited for once the step has ended.
const LATE: Duration = Duration::from_secs(3);
const PIECE_BYTES: usize = 256 << 10;

/// The output of one attempt.
pub(super) struct Output<'a> {
    bus: &'a EventBus,
    step_id: Uuid,
    live: SelectAll<BoxStream<'static, (StdStream, Vec<u8>)>>,
    logs: [Log; 2],
}

/// One stream's.
#[derive(Debug, Default)]
struct Log {
    /// Where it is being read.
    name: String,
    /// How much of it was shown.
    shown: u64,
}

impl<'a> Output<'a> {
    pub(super) fn new(bus: &'a EventBus, step_id: Uuid) -> Self {
        Self { bus, step_id, live: SelectAll::new(), logs: Default::default() }
    }

    /// Begins to read a stream that the engine named, unless it is read already.
    pub(super) async fn follow(&mut self, endpoint: &Endpoint, stream: StdStream, name: &str) {
        let log = &mut self.logs[stream as usize];
        if name.is_empty() || log.name == name {
            return;
        }
        if log.shown > 0 {
            // Its worker was lost. What another one makes of the step is another output.
            self.say("hm: the engine runs the step again\n").await;
        }
        self.logs[stream as usize] = Log { name: name.to_owned(), shown: 0 };
        self.live.push(read_log(endpoint, name.to_owned()).map(move |piece| (stream, piece)).boxed());
    }

    /// Shows what comes next while the step runs; never ends where nothing is read.
    pub(super) async fn next(&mut self) {
        match self.live.next().await {
            Some((stream, piece)) => self.show(stream, &piece).await,
            None => std::future::pending().await,
        }
    }

    /// Shows what was not shown yet of a step that has ended.
    pub(super) async fn finish(
        &mut self,
        result: &reapi::ActionResult,
        cas: &Cas,
        store: &Arc<Store>,
    ) -> Result<(), RunnerError> {
        let late = async {
            while let Some((stream, piece)) = self.live.next().await {
                self.show(stream, &piece).await;
            }
        };
        // Where it does not end, the rest is in the result.
        let _ = tokio::time::timeout(LATE, late).await;
        let outputs = [
            (StdStream::Stdout, &result.stdout_raw, &result.stdout_digest),
            (StdStream::Stderr, &result.stderr_raw, &result.stderr_digest),
        ];
        for (stream, raw, digest) in outputs {
            let shown = self.logs[stream as usize].shown;
            match digest {
                _ if !raw.is_empty() => {
                    let rest = usize::try_from(shown).ok().and_then(|shown| raw.get(shown..)).unwrap_or_default();
                    self.show(stream, rest).await;
                }
                Some(digest) => {
                    let digest = Digest::try_from(digest)
                        .map_err(|error| RunnerError::infrastructure("read the step's output", error))?;
                    if digest.size_bytes > shown {
                        self.show_blob(stream, digest, shown, cas, store).await?;
                    }
                }
                None => {}
            }
        }
        Ok(())
    }

    async fn show_blob(
        &mut self,
        stream: StdStream,
        digest: Digest,
        shown: u64,
        cas: &Cas,
        store: &Arc<Store>,
    ) -> Result<(), RunnerError> {
        let path = store.new_tmp();
        cas.read_to_file(digest, &path).await.map_err(trouble::remote("read the step's output"))?;
        let failed = |error| RunnerError::infrastructure("read the step's output", error);
        let mut file = File::open(&path).map_err(failed)?;
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(shown)).map_err(failed)?;
        let pieces = stream::try_unfold(file, |mut file| async {
            on_thread("read the step's output", move || {
                let mut piece = vec![0; PIECE_BYTES];
                let read = file.read(&mut piece);
                let read = read.map_err(|error| RunnerError::infrastructure("read the step's output", error))?;
                piece.truncate(read);
                Ok((read > 0).then_some((piece, file)))
            })
            .await
        });
        let mut pieces = std::pin::pin!(pieces);
        while let Some(piece) = pieces.next().await {
            self.show(stream, &piece?).await;
        }
        store.discard(path);
        Ok(())
    }

    async fn show(&mut self, stream: StdStream, bytes: &[u8]) {
        self.logs[stream as usize].shown += bytes.len() as u64;
        self.bus.output(self.step_id, stream, bytes).await;
    }

    /// A word of ours among the step's.
    pub(super) async fn say(&mut self, line: &str) {
        self.bus.output(self.step_id, StdStream::Stderr, line.as_bytes()).await;
    }
}
