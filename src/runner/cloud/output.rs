//! The output of a step: read while the step runs if there is a log service, and completed when it has ended.
//! No output is shown twice.
//!
//! The result of a step contains all of its output, so the log service need not be trusted. The output that
//! it streamed is compared with the result, and missing output is not waited for.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
    pin::pin,
    sync::Arc,
};

use futures_util::{
    StreamExt, future,
    stream::{self, BoxStream},
};
use uuid::Uuid;

use super::error;
use crate::{
    blocking,
    event::EventBus,
    model::StdStream,
    remote::{Cas, Digest, DigestFunction, Endpoint, Hasher, read_log, reapi},
    runner::RunnerError,
    store::Store,
};

const PIECE_BYTES: usize = 256 << 10;
/// The most bytes of one stream to read while a step runs: the same as `hm logstream` keeps.
const MAX_LIVE_BYTES: u64 = 4 << 30;

const STREAMS: [StdStream; 2] = [StdStream::Stdout, StdStream::Stderr];

/// The output of one attempt.
pub(super) struct Output<'a> {
    bus: &'a EventBus,
    step_id: Uuid,
    function: DigestFunction,
    logs: [Log; 2],
}

/// The state of one stream.
struct Log {
    function: DigestFunction,
    /// The name of the log stream from which the output is read while the step runs.
    name: String,
    live: Option<BoxStream<'static, Vec<u8>>>,
    /// The number of bytes that were shown, and their hash.
    shown: u64,
    hash: Hasher,
    /// If the step runs again: the number of shown bytes that have not been repeated yet, and the hash of
    /// those that have.
    again: Option<(u64, Hasher)>,
}

impl Log {
    /// Returns a stream of which nothing was shown.
    fn new(function: DigestFunction) -> Self {
        Self { function, name: String::new(), live: None, shown: 0, hash: function.hasher(), again: None }
    }

    /// Returns the next piece. Never completes if no log stream is read.
    async fn next(&mut self) -> Vec<u8> {
        while let Some(live) = &mut self.live {
            let piece = live.next().await.filter(|_| self.shown < MAX_LIVE_BYTES);
            match piece.and_then(|piece| self.news(piece)) {
                Some(news) if news.is_empty() => {}
                Some(news) => return news,
                // The output is completed from the result when the step has ended.
                None => self.live = None,
            }
        }
        future::pending().await
    }

    /// Returns the part of a piece that was not shown yet. Returns `None` if the step, run again, prints
    /// something different than before.
    fn news(&mut self, mut piece: Vec<u8>) -> Option<Vec<u8>> {
        let Some((left, hash)) = &mut self.again else { return Some(piece) };
        let known = piece.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
        hash.update(&piece[..known]);
        *left -= known as u64;
        if *left == 0 {
            let is_same = hash.finish() == self.hash.finish();
            self.again = None;
            if !is_same {
                return None;
            }
        }
        piece.drain(..known);
        Some(piece)
    }

    /// Returns whether the shown output is a prefix of `bytes`.
    fn begins(&self, bytes: &[u8]) -> bool {
        let begin = usize::try_from(self.shown).ok().and_then(|shown| bytes.get(..shown));
        begin.is_some_and(|begin| self.function.of(begin).hash == self.hash.finish())
    }
}

impl<'a> Output<'a> {
    /// Creates the output of an attempt on an engine with this digest function.
    pub(super) fn new(bus: &'a EventBus, step_id: Uuid, function: DigestFunction) -> Self {
        Self { bus, step_id, function, logs: [Log::new(function), Log::new(function)] }
    }

    /// Starts to read a stream that the engine named, unless it is already being read.
    pub(super) async fn follow(&mut self, logs: &Endpoint, stream: StdStream, name: &str) {
        let log = &mut self.logs[stream as usize];
        if name.is_empty() || log.name == name {
            return;
        }
        let runs_again = !log.name.is_empty() && stream == StdStream::Stdout;
        name.clone_into(&mut log.name);
        log.live = Some(read_log(logs, name.to_owned()).boxed());
        log.again = (log.shown > 0).then(|| (log.shown, log.function.hasher()));
        if runs_again {
            // A worker or the engine was lost.
            self.say("hm: the engine runs the step again\n").await;
        }
    }

    /// Returns the next piece while the step runs. Never completes if no log stream is read. If the future is
    /// dropped, no piece is lost.
    pub(super) async fn next(&mut self) -> (StdStream, Vec<u8>) {
        let [stdout, stderr] = &mut self.logs;
        let (stdout, stderr) = (pin!(stdout.next()), pin!(stderr.next()));
        match future::select(stdout, stderr).await {
            future::Either::Left((piece, _)) => (StdStream::Stdout, piece),
            future::Either::Right((piece, _)) => (StdStream::Stderr, piece),
        }
    }

    /// Shows the rest of the output of a step that has ended.
    pub(super) async fn finish(
        &mut self,
        result: &reapi::ActionResult,
        cas: &Cas,
        store: &Arc<Store>,
    ) -> Result<(), RunnerError> {
        for stream in STREAMS {
            self.finish_stream(stream, result, cas, store).await?;
        }
        Ok(())
    }

    /// Shows what a result with an error has of the output. The error matters more, so nothing here fails.
    pub(super) async fn finish_failed(&mut self, result: &reapi::ActionResult, cas: &Cas, store: &Arc<Store>) {
        for stream in STREAMS {
            if let Err(error) = self.finish_stream(stream, result, cas, store).await {
                tracing::debug!(error = error.to_line(), "the output of a failed step is not complete");
            }
        }
    }

    async fn finish_stream(
        &mut self,
        stream: StdStream,
        result: &reapi::ActionResult,
        cas: &Cas,
        store: &Arc<Store>,
    ) -> Result<(), RunnerError> {
        let (raw, digest) = match stream {
            StdStream::Stdout => (&result.stdout_raw, &result.stdout_digest),
            StdStream::Stderr => (&result.stderr_raw, &result.stderr_digest),
        };
        // Output that is still in transit is also in the result.
        self.logs[stream as usize].live = None;
        match digest {
            _ if !raw.is_empty() => {
                if !self.logs[stream as usize].begins(raw) {
                    self.begin_again(stream).await;
                }
                let shown = usize::try_from(self.logs[stream as usize].shown).unwrap_or(usize::MAX);
                self.show(stream, raw.get(shown..).unwrap_or_default()).await;
                Ok(())
            }
            Some(digest) if self.is_known(digest) => {
                let digest = self.function.parse(digest);
                let digest = digest.map_err(|error| RunnerError::infrastructure("read the step's output", error))?;
                self.finish_blob(stream, digest, cas, store).await
            }
            // An engine that reports nothing about a step's output has none, or has already streamed it.
            Some(_) | None => Ok(()),
        }
    }

    /// Returns whether a digest names output. An engine that has none may say so by any hash of size 0.
    fn is_known(&self, digest: &reapi::Digest) -> bool {
        digest.size_bytes != 0 || digest.hash == self.function.of(b"").hex()
    }

    async fn finish_blob(
        &mut self,
        stream: StdStream,
        digest: Digest,
        cas: &Cas,
        store: &Arc<Store>,
    ) -> Result<(), RunnerError> {
        let log = &self.logs[stream as usize];
        if digest.size_bytes == log.shown && digest.hash == log.hash.finish() {
            return Ok(());
        }
        let path = store.instance().new_tmp();
        cas.read_to_file(digest, &path).await.map_err(error::remote("read the step's output"))?;
        let shown = self.show_file(stream, &path).await;
        store.trash().discard(path);
        shown
    }

    /// Shows the rest of a stream from a file with all of its output.
    async fn show_file(&mut self, stream: StdStream, path: &Path) -> Result<(), RunnerError> {
        let failed = |error| RunnerError::infrastructure("read the step's output", error);
        let mut file = File::open(path).map_err(failed)?;
        let Log { shown, hash, .. } = &self.logs[stream as usize];
        let (shown, hash, function) = (*shown, hash.finish(), self.function);
        let (begins, mut file) = blocking::run("read the step's output", move || {
            let (mut begin, mut rest) = (function.hasher(), (&mut file).take(shown));
            let mut piece = vec![0; PIECE_BYTES];
            loop {
                match rest.read(&mut piece).map_err(failed)? {
                    0 => break,
                    read => begin.update(&piece[..read]),
                }
            }
            let begins = rest.limit() == 0 && begin.finish() == hash;
            Ok::<_, RunnerError>((begins, file))
        })
        .await?;
        if !begins {
            self.begin_again(stream).await;
            file.seek(SeekFrom::Start(0)).map_err(failed)?;
        }
        let pieces = stream::try_unfold(file, |mut file| async {
            blocking::run("read the step's output", move || {
                let mut piece = vec![0; PIECE_BYTES];
                let read = file.read(&mut piece).map_err(failed)?;
                piece.truncate(read);
                Ok::<_, RunnerError>((read > 0).then_some((piece, file)))
            })
            .await
        });
        let mut pieces = pin!(pieces);
        while let Some(piece) = pieces.next().await {
            self.show(stream, &piece?).await;
        }
        Ok(())
    }

    /// Starts the stream again, because the output shown is not the step's output.
    async fn begin_again(&mut self, stream: StdStream) {
        self.logs[stream as usize] = Log::new(self.function);
        self.say("hm: the output shown so far was incomplete; the complete output follows:\n").await;
    }

    pub(super) async fn show(&mut self, stream: StdStream, bytes: &[u8]) {
        let log = &mut self.logs[stream as usize];
        log.shown += bytes.len() as u64;
        log.hash.update(bytes);
        self.bus.output(self.step_id, stream, bytes).await;
    }

    /// Shows a message of ours in the step's output.
    pub(super) async fn say(&mut self, line: &str) {
        self.bus.output(self.step_id, StdStream::Stderr, line.as_bytes()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log_of(shown: &[u8]) -> Log {
        let mut log = Log::new(DigestFunction::Sha256);
        log.shown = shown.len() as u64;
        log.hash.update(shown);
        log
    }

    /// Returns what is shown of pieces that arrive after `shown`, when the step runs again.
    fn shown_again(shown: &[u8], pieces: &[&[u8]]) -> Option<Vec<u8>> {
        let mut log = log_of(shown);
        log.again = Some((log.shown, log.function.hasher()));
        let mut news = Vec::new();
        for piece in pieces {
            news.extend(log.news(piece.to_vec())?);
        }
        Some(news)
    }

    #[test]
    fn what_a_step_prints_again_is_not_shown_again() {
        assert_eq!(
            shown_again(b"one\ntwo\n", &[b"on", b"e\nt", b"wo\nthree\n", b"four\n"]),
            Some(b"three\nfour\n".to_vec())
        );
        assert_eq!(shown_again(b"one\n", &[b"on"]), Some(Vec::new()));
        assert_eq!(shown_again(b"one\n", &[b"one\n"]), Some(Vec::new()));
    }

    #[test]
    fn what_differs_from_what_was_shown_is_left_to_the_result() {
        assert_eq!(shown_again(b"one\n", &[b"on", b"ce\n"]), None);
        let log = log_of(b"one");
        assert!(log.begins(b"one and more") && log.begins(b"one"));
        assert!(!log.begins(b"on") && !log.begins(b"two and more"));
    }
}
