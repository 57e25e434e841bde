//! Outputs of containers: the daemon sends archives of the directories in which something may match, and what
//! matches is taken here.

use std::{
    io::{self, Read},
    pin::pin,
    sync::Arc,
};

use bollard::{Docker as Client, errors::Error, query_parameters::DownloadFromContainerOptionsBuilder};
use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::{connection::patient, error};
use crate::{
    outputs::{self, Chosen, Complete, Received, StepOutputs, StreamNames},
    runner::RunnerError,
    tree::literal_path,
};

const DOING: &str = "read the container's files";

/// The number of pieces of an archive that may wait for the disk.
const QUEUE: usize = 16;

/// The most bytes of a container's archives. They have the files that do not match, too, and the holes of
/// sparse files.
const MOST_BYTES: u64 = 64 << 30;

/// What the daemon sends.
enum Part {
    /// An archive of this path begins.
    Archive(String),
    Piece(Bytes),
    /// There are no more archives.
    Done,
}

/// Copies the outputs of a container that has ended.
pub(super) async fn copy(
    client: &Client,
    container: &str,
    outputs: &Arc<StepOutputs>,
    workdir: &str,
) -> Result<(), RunnerError> {
    let texts = outputs.below_root(workdir);
    let patterns = outputs::parse(&texts)?;
    let paths = places(texts.iter().map(|pattern| literal_path(pattern)));
    let (sender, parts) = mpsc::channel::<Part>(QUEUE);
    let receiving = {
        let (outputs, workdir) = (Arc::clone(outputs), workdir.to_owned());
        let receive = move || {
            let mut parts = Parts { parts, piece: Bytes::new(), next: None };
            Ok(outputs.receive_by(|receiving| {
                while let Some(path) = parts.next_archive() {
                    let names =
                        StreamNames { workdir: &workdir, only: Some(Chosen { path: &path, patterns: &patterns }) };
                    receiving.add(&mut parts, names)?;
                }
                Ok(if matches!(parts.next, Some(Part::Done)) { Complete::Yes } else { Complete::No })
            }))
        };
        RunnerError::blocking("copy the outputs", receive)
    };
    // The reader sees the end when this is over, because it has the sender.
    let sending = async move {
        let mut sent = 0_u64;
        for path in paths {
            let options = DownloadFromContainerOptionsBuilder::default().path(&format!("/{path}")).build();
            let mut archive = pin!(patient(client).download_from_container(container, Some(options)));
            let mut is_first = true;
            while let Some(piece) = archive.next().await {
                let piece = match piece {
                    // Nothing has this name.
                    Err(Error::DockerResponseServerError { status_code: 404, .. }) if is_first => break,
                    piece => piece.map_err(error::daemon(DOING))?,
                };
                sent = sent.saturating_add(piece.len() as u64);
                if sent > MOST_BYTES {
                    let error = "the directories of its outputs have more than 64 GiB: use longer paths in `outputs`";
                    return Err(RunnerError::infrastructure(DOING, io::Error::other(error)));
                }
                if is_first && sender.send(Part::Archive(path.clone())).await.is_err() {
                    return Ok(());
                }
                is_first = false;
                if sender.send(Part::Piece(piece)).await.is_err() {
                    // They are no longer written, and the reason has been reported.
                    return Ok(());
                }
            }
        }
        // As above.
        let _ = sender.send(Part::Done).await;
        Ok::<_, RunnerError>(())
    };
    let (received, sent) = tokio::join!(receiving, sending);
    if received? == Received::Failed { Ok(()) } else { sent }
}

/// Returns paths without those that are below others.
fn places(paths: impl Iterator<Item = String>) -> Vec<String> {
    let mut paths: Vec<String> = paths.collect();
    paths.sort_unstable();
    let mut places: Vec<String> = Vec::new();
    for path in paths {
        let is_below = |above: &String| above.is_empty() || path == *above || path.starts_with(&format!("{above}/"));
        if !places.iter().any(is_below) {
            places.push(path);
        }
    }
    places
}

/// The archives, one after the other.
struct Parts {
    parts: mpsc::Receiver<Part>,
    piece: Bytes,
    /// What follows the current archive.
    next: Option<Part>,
}

impl Parts {
    /// Skips the rest of the current archive. Returns the path of the next one, if there is one.
    fn next_archive(&mut self) -> Option<String> {
        self.piece.clear();
        while self.fill() {
            self.piece.clear();
        }
        match self.next.take() {
            Some(Part::Archive(path)) => Some(path),
            next => {
                self.next = next;
                None
            }
        }
    }

    /// Gets the next piece of the current archive, unless it has ended.
    fn fill(&mut self) -> bool {
        while self.piece.is_empty() && self.next.is_none() {
            match self.parts.blocking_recv() {
                Some(Part::Piece(piece)) => self.piece = piece,
                Some(next) => self.next = Some(next),
                None => return false,
            }
        }
        !self.piece.is_empty()
    }
}

impl Read for Parts {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.fill() {
            return Ok(0);
        }
        let length = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_asked_for_once() {
        let places = |paths: &[&str]| places(paths.iter().map(|path| (*path).to_owned()));
        assert_eq!(places(&["w/b", "w", "w/a/c", "x", "x"]), ["w", "x"]);
        assert_eq!(places(&["w/b/c", "w/b", "w/bc"]), ["w/b", "w/bc"]);
        assert_eq!(places(&["a", ""]), [""]);
    }

    #[test]
    fn archives_are_read_one_after_the_other_and_a_missing_end_is_noticed() {
        for is_complete in [true, false] {
            let (sender, parts) = mpsc::channel(10);
            let piece = |text: &'static str| Part::Piece(Bytes::from_static(text.as_bytes()));
            for part in [Part::Archive("a".into()), piece("one"), piece(""), piece("two"), Part::Archive("b".into())] {
                sender.try_send(part).ok().unwrap();
            }
            sender.try_send(piece("three")).ok().unwrap();
            if is_complete {
                sender.try_send(Part::Done).ok().unwrap();
            }
            drop(sender);
            let mut parts = Parts { parts, piece: Bytes::new(), next: None };
            assert_eq!(parts.next_archive().as_deref(), Some("a"));
            let mut text = [0; 4];
            parts.read_exact(&mut text).unwrap();
            assert_eq!(&text, b"onet");
            assert_eq!(parts.next_archive().as_deref(), Some("b"), "the rest is skipped");
            assert_eq!(io::read_to_string(&mut parts).unwrap(), "three");
            assert_eq!(parts.next_archive(), None);
            assert_eq!(matches!(parts.next, Some(Part::Done)), is_complete);
        }
    }
}
