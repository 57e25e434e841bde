//! Loads layers of the store into the daemon, as an image.

use crate::image;
use std::{collections::HashMap, fs::File, io, io::Read, path::PathBuf, pin::pin, sync::Arc};

use bollard::{Docker, body_try_stream, errors::Error, query_parameters::ImportImageOptionsBuilder};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};

use super::{connection::patient, error};
use crate::{
    blocking,
    image::ArchiveFile,
    runner::RunnerError,
    store::{IdMap, ImageDigest, Store},
};

/// The size of one read from an archive in bytes.
const CHUNK: usize = 1 << 20;

const DOING: &str = "load an image into the daemon";

/// A layer of the image.
#[derive(Debug, Clone)]
pub(super) enum Part {
    /// The daemon already has the layer, over the previous ones.
    There(ImageDigest),
    /// The layer's files are in this directory.
    Dir(PathBuf),
}

/// Creates an image of layers, lowest first, and returns its id.
pub(super) async fn load(
    docker: &Docker,
    store: &Arc<Store>,
    parts: Vec<Part>,
    id_map: IdMap,
    labels: HashMap<String, String>,
) -> Result<String, RunnerError> {
    let opened = Arc::clone(store);
    let (file, digest) = blocking::run(DOING, move || {
        let failed = error::export;
        let mut layers = Vec::with_capacity(parts.len());
        for part in parts {
            layers.push(match part {
                Part::There(diff_id) => (diff_id, None),
                Part::Dir(dir) => {
                    let packed = image::pack_layer_tar(&opened, &dir, id_map).map_err(failed("pack a layer"))?;
                    (packed.diff_id(), Some(packed))
                }
            });
        }
        let file = ArchiveFile::new(&opened);
        let layers: Vec<_> = layers.iter().map(|(diff_id, packed)| (*diff_id, packed.as_ref())).collect();
        let digest = image::thin_archive(file.path(), &labels, &layers).map_err(failed("pack an image"))?;
        Ok::<_, RunnerError>((file, digest))
    })
    .await?;
    let archive = File::open(file.path()).map_err(|error| RunnerError::infrastructure(DOING, error))?;
    let options = ImportImageOptionsBuilder::default().quiet(true).build();
    let mut answers = pin!(patient(docker).import_image(options, body_try_stream(chunks(archive)), None));
    let mut id = None;
    while let Some(answer) = answers.next().await {
        let answer = answer.and_then(|answer| match answer.error_detail.and_then(|detail| detail.message) {
            Some(error) => Err(Error::DockerStreamError { error }),
            None => Ok(answer.stream),
        });
        let said = answer.map_err(error::daemon(DOING))?;
        // Podman reports the id in a different wording.
        id = id.or(said
            .as_deref()
            .and_then(|said| said.trim().split("sha256:").nth(1))
            .map(|hex| format!("sha256:{hex}")));
    }
    Ok(id.unwrap_or_else(|| digest.to_string()))
}

/// Streams the bytes of a file.
fn chunks(file: File) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::try_unfold(file, |mut file| async {
        let read = blocking::run("read a file", move || {
            let mut chunk = Vec::with_capacity(CHUNK);
            (&mut file).take(CHUNK as u64).read_to_end(&mut chunk)?;
            Ok::<_, io::Error>((chunk, file))
        });
        let (chunk, file) = read.await?;
        Ok(if chunk.is_empty() { None } else { Some((Bytes::from(chunk), file)) })
    })
}
