//! Files of other steps: in a volume at the daemon, from which a container gets them read-only.
//!
//! The volume is filled through a container that never starts, so the daemon may be on another machine. Both
//! live as long as the step: a volume that no container has could be pruned. Neither is part of what is
//! committed.

use std::{
    io::{self, Read},
    path::Path,
    sync::Arc,
};

use bollard::{
    Docker as Client, body_stream,
    models::{Mount, MountType, VolumeCreateRequest},
    query_parameters::UploadToContainerOptionsBuilder,
};
use bytes::Bytes;
use futures_util::{FutureExt, Stream, future::BoxFuture, stream};
use tar::{EntryType, Header};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{
    connection::patient,
    container::Container,
    error::{self, is_missing},
    shared::Shared,
    sweep::{remove_container, remove_volume},
};
use crate::{
    runner::{ExecutorInput, RunnerError, StepContext},
    store::Store,
};

const DOING: &str = "copy files of other steps to the daemon";

/// The path of the volume in the container that fills it.
pub(super) const PLACE: &str = "/hm-inputs";

/// The size of one piece of a stream in bytes, and the number of pieces that may wait for the daemon.
const PIECE: usize = 64 << 10;
const QUEUE: usize = 16;

/// The name of an input that is a file, in the stream and so in the volume.
const FILE: &str = "file";

/// A volume with the inputs of a step. Dropping it removes it.
#[derive(Debug)]
pub(super) struct InputVolume {
    shared: Arc<Shared>,
    client: Client,
    name: String,
    /// The container that has it.
    filler: Option<Container>,
    /// What shows the inputs to a container.
    pub(super) mounts: Vec<Mount>,
}

/// What an input is.
enum Top {
    File,
    /// A directory, with its header in the stream.
    Dir(Box<Header>),
}

impl Drop for InputVolume {
    fn drop(&mut self) {
        let (client, name) = (self.client.clone(), std::mem::take(&mut self.name));
        let filler = self.filler.take().and_then(Container::into_name);
        let what = format!("remove volume {name}, which is left to the end of the build or the next run");
        self.shared.cleanup.run(what, async move {
            // The volume cannot be removed before it.
            if let Some(filler) = filler {
                remove_container(&client, &filler).await?;
            }
            remove_volume(&client, &name).await
        });
    }
}

impl InputVolume {
    /// Makes a volume with the inputs of a step, for a container that will start from the image of `beside`.
    pub(super) fn make<'a>(
        beside: &'a Container,
        store: &'a Arc<Store>,
        ctx: &'a StepContext,
        input: &'a ExecutorInput,
    ) -> BoxFuture<'a, Result<Arc<Self>, RunnerError>> {
        async move {
            let (shared, client) = (Arc::clone(beside.shared()), beside.client().clone());
            let name = format!("hm-{}", Uuid::new_v4().simple());
            let request = VolumeCreateRequest {
                name: Some(name.clone()),
                driver: Some("local".into()),
                labels: Some(beside.labels()),
                ..Default::default()
            };
            let mut volume = Self { shared, client, name, filler: None, mounts: Vec::new() };
            let made = volume.client.create_volume(request).await.map_err(error::daemon(DOING))?;
            let at = Path::new(&made.mountpoint);
            if !at.is_absolute() {
                return Err(RunnerError::unsupported(format!(
                    "the daemon cannot show files of other steps to a step: it does not say where its volumes are, \
                     but `{}`: run the step on `sandbox`",
                    made.mountpoint.escape_debug()
                )));
            }
            let filler = volume.filler.insert(beside.filler(&volume.name).await?).name().to_owned();
            let tops = volume.fill(&filler, store, ctx, input).await?;
            for (number, (top, files)) in tops.iter().zip(input.inputs()).enumerate() {
                let source = at.join(number.to_string());
                let source = if matches!(top, Top::File) { source.join(FILE) } else { source };
                volume.mounts.push(Mount {
                    typ: Some(MountType::BIND),
                    source: Some(source.to_string_lossy().into_owned()),
                    target: Some(files.target.to_string()),
                    read_only: Some(true),
                    ..Mount::default()
                });
            }
            Ok(Arc::new(volume))
        }
        .boxed()
    }

    /// Returns whether the daemon still has the volume.
    pub(super) async fn is_there(&self) -> Result<bool, RunnerError> {
        match self.client.inspect_volume(&self.name).await {
            Ok(_) => Ok(true),
            Err(error) if is_missing(&error) => Ok(false),
            Err(error) => Err(error::daemon("look for files of other steps at the daemon")(error)),
        }
    }

    /// Copies each input to a directory of its own.
    async fn fill(
        &self,
        filler: &str,
        store: &Arc<Store>,
        ctx: &StepContext,
        input: &ExecutorInput,
    ) -> Result<Vec<Top>, RunnerError> {
        let source = ctx.frozen_source(store).await.map_err(error::store("freeze the source"))?;
        let places = directories((0..input.inputs().len()).map(|number| (number, None)));
        self.upload(filler, PLACE, stream::iter([places.map_err(failed)?.into()])).await?;
        let sandbox = self.shared.sandbox(store);
        let mut tops = Vec::with_capacity(input.inputs().len());
        for (number, files) in input.inputs().iter().enumerate() {
            let (sender, mut pieces) = mpsc::channel::<Bytes>(QUEUE);
            let pieces = stream::poll_fn(move |cx| pieces.poll_recv(cx));
            let reading = sandbox.take_input(store, (&source, files), move |stream| send(stream, &sender));
            let place = format!("{PLACE}/{number}");
            let (read, uploaded) = tokio::join!(reading, self.upload(filler, &place, pieces));
            // If reading failed, the daemon got only a part, and may complain about that.
            tops.push(read?);
            uploaded?;
        }
        // Daemons leave the topmost directory of an archive as it was.
        let dirs = tops.iter().enumerate().filter_map(|(number, top)| match top {
            Top::Dir(header) => Some((number, Some(&**header))),
            Top::File => None,
        });
        self.upload(filler, PLACE, stream::iter([directories(dirs).map_err(failed)?.into()])).await?;
        Ok(tops)
    }

    async fn upload(
        &self,
        filler: &str,
        place: &str,
        archive: impl Stream<Item = Bytes> + Send + 'static,
    ) -> Result<(), RunnerError> {
        let options = UploadToContainerOptionsBuilder::default().path(place).build();
        patient(&self.client)
            .upload_to_container(filler, Some(options), body_stream(archive))
            .await
            .map_err(error::daemon(DOING))
    }
}

fn failed(error: io::Error) -> RunnerError {
    RunnerError::infrastructure(DOING, error)
}

/// Returns an archive of empty directories with these numbers as names, and with the mode and time of these
/// headers.
fn directories<'a>(dirs: impl Iterator<Item = (usize, Option<&'a Header>)>) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for (number, like) in dirs {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Directory);
        header.set_mode(like.map_or(Ok(0o755), Header::mode)?);
        header.set_mtime(like.map_or(Ok(0), Header::mtime)?);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        archive.append_data(&mut header, number.to_string(), io::empty())?;
    }
    archive.into_inner()
}

/// Sends a plain stream in pieces. Stops early if the receiver is closed: the upload then returns the error.
fn send(stream: &mut dyn Read, pieces: &mpsc::Sender<Bytes>) -> io::Result<Top> {
    let mut first = [0; 512];
    stream.read_exact(&mut first)?;
    let header = Header::from_byte_slice(&first);
    let top = if header.entry_type().is_dir() { Top::Dir(Box::new(header.clone())) } else { Top::File };
    let mut piece = first.to_vec();
    while !piece.is_empty() && pieces.blocking_send(piece.into()).is_ok() {
        piece = Vec::with_capacity(PIECE);
        (&mut *stream).take(PIECE as u64).read_to_end(&mut piece)?;
    }
    Ok(top)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::store::tree::pack_plain;

    /// Returns the stream of a path, as the daemon gets it.
    fn sent(path: &Path) -> (Top, Vec<u8>) {
        let mut packed = Vec::new();
        pack_plain(path, &mut packed).unwrap();
        let (sender, mut pieces) = mpsc::channel(1000);
        let top = send(&mut &packed[..], &sender).unwrap();
        drop(sender);
        let mut all = Vec::new();
        while let Some(piece) = pieces.blocking_recv() {
            all.extend_from_slice(&piece);
        }
        assert_eq!(all, packed);
        (top, all)
    }

    #[test]
    fn the_first_entry_tells_what_an_input_is() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("large");
        std::fs::write(&file, vec![7; 3 * PIECE + 1]).unwrap();
        let (top, stream) = sent(&file);
        assert!(matches!(top, Top::File));
        let mut archive = tar::Archive::new(&stream[..]);
        assert_eq!(&*archive.entries().unwrap().next().unwrap().unwrap().path_bytes(), FILE.as_bytes());
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o750)).unwrap();
        let (Top::Dir(header), _) = sent(dir.path()) else { panic!("a directory") };
        let archive = directories([(3, Some(&*header)), (4, None)].into_iter()).unwrap();
        let mut archive = tar::Archive::new(&archive[..]);
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            (
                entry.path().unwrap().display().to_string(),
                entry.header().mode().unwrap(),
                entry.header().mtime().unwrap(),
            )
        });
        let entries: Vec<_> = entries.collect();
        assert_eq!(entries, [("3".into(), 0o750, header.mtime().unwrap()), ("4".into(), 0o755, 0)]);
    }

    #[test]
    fn a_stream_that_ends_early_is_an_error_and_a_daemon_that_went_away_is_not() {
        let (sender, pieces) = mpsc::channel(1);
        assert_eq!(send(&mut &[0; 100][..], &sender).map(drop).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        drop(pieces);
        assert!(send(&mut &[0; 2000][..], &sender).is_ok());
    }
}
