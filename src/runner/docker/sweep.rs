//! Removes objects at a daemon by their labels.

use std::{
    collections::{BTreeSet, HashMap},
    pin::pin,
};

use bollard::{
    Docker,
    errors::Error,
    query_parameters::{
        ListContainersOptionsBuilder, ListImagesOptionsBuilder, ListVolumesOptionsBuilder,
        RemoveContainerOptionsBuilder, RemoveImageOptionsBuilder, RemoveVolumeOptionsBuilder,
        WaitContainerOptionsBuilder,
    },
};
use futures_util::StreamExt;

use super::{error::is_missing, labels::PROCESS};

/// The number of objects that were removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Swept {
    /// The number of containers, removed with all their processes.
    pub containers: usize,
    /// The number of images.
    pub images: usize,
    /// The number of volumes.
    pub volumes: usize,
}

/// Removes the containers, volumes and images with the label `label` for whose process `is_left` returns
/// true.
pub(super) async fn remove(docker: &Docker, label: &str, is_left: impl Fn(&str) -> bool) -> Result<Swept, Error> {
    let left = |labels: &HashMap<String, String>| is_left(labels.get(PROCESS).map_or("", |process| process));
    let filters = HashMap::from([("label", vec![label])]);
    let list = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
    let mut swept = Swept::default();
    for container in docker.list_containers(Some(list)).await? {
        if let Some(id) = container.id
            && left(&container.labels.unwrap_or_default())
        {
            remove_container(docker, &id).await?;
            swept.containers += 1;
        }
    }
    let list = ListVolumesOptionsBuilder::default().filters(&filters).build();
    for volume in docker.list_volumes(Some(list)).await?.volumes.unwrap_or_default() {
        if left(&volume.labels) {
            remove_volume(docker, &volume.name).await?;
            swept.volumes += 1;
        }
    }
    let list = ListImagesOptionsBuilder::default().all(true).filters(&filters).build();
    let images = docker.list_images(Some(list)).await?;
    // Newest first: an image cannot be removed before those that are based on it.
    let images: BTreeSet<(i64, String)> =
        images.into_iter().filter(|image| left(&image.labels)).map(|image| (-image.created, image.id)).collect();
    let mut images: Vec<String> = images.into_iter().map(|(_, id)| id).collect();
    loop {
        let before = images.len();
        let mut kept = Vec::new();
        for id in images {
            match remove_image(docker, &id).await {
                Ok(()) => swept.images += 1,
                // Other images are based on it, which may be removed later, or a container of another owner
                // uses it.
                Err(Error::DockerResponseServerError { status_code: 409, .. }) => kept.push(id),
                Err(error) => return Err(error),
            }
        }
        if kept.is_empty() || kept.len() == before {
            return Ok(swept);
        }
        images = kept;
    }
}

/// Kills and removes a container. A missing container is ignored.
pub(super) async fn remove_container(docker: &Docker, name: &str) -> Result<(), Error> {
    let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
    match docker.remove_container(name, Some(options)).await {
        // The removal is already in progress, on the thread for dropped attempts.
        Err(Error::DockerResponseServerError { status_code: 409, .. }) => {
            let options = WaitContainerOptionsBuilder::default().condition("removed").build();
            match pin!(docker.wait_container(name, Some(options))).next().await {
                Some(Ok(_) | Err(Error::DockerContainerWaitError { .. })) | None => Ok(()),
                Some(Err(error)) if is_missing(&error) => Ok(()),
                Some(Err(error)) => Err(error),
            }
        }
        Err(error) if !is_missing(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Removes a volume. A missing volume, and one that a container still has, is ignored.
pub(super) async fn remove_volume(docker: &Docker, name: &str) -> Result<(), Error> {
    let options = RemoveVolumeOptionsBuilder::default().build();
    match docker.remove_volume(name, Some(options)).await {
        Err(Error::DockerResponseServerError { status_code: 409, .. }) => Ok(()),
        Err(error) if !is_missing(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Removes an image, but none that it is based on. A missing image is ignored.
pub(super) async fn remove_image(docker: &Docker, id: &str) -> Result<(), Error> {
    let options = RemoveImageOptionsBuilder::default().force(true).noprune(true).build();
    match docker.remove_image(id, Some(options), None).await {
        Err(error) if !is_missing(&error) => Err(error),
        _ => Ok(()),
    }
}
