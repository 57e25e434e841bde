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

/// A kind of object at a daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Container,
    Volume,
    Image,
}

/// Removes the containers, volumes and images with the label `label` for whose process `is_left` returns
/// true. If an object cannot be removed, the others still are, and the first error is returned.
pub(super) async fn remove(docker: &Docker, label: &str, is_left: impl Fn(&str) -> bool) -> Result<Swept, Error> {
    let left = |labels: &HashMap<String, String>| is_left(labels.get(PROCESS).map_or("", |process| process));
    let filters = HashMap::from([("label", vec![label])]);
    let mut swept = Swept::default();
    let mut failed = None;
    for kind in [Kind::Container, Kind::Volume, Kind::Image] {
        let removed = match list(docker, kind, &filters, &left).await {
            Ok(ids) => remove_all(docker, kind, ids, &mut failed).await,
            Err(error) => {
                failed.get_or_insert(error);
                0
            }
        };
        match kind {
            Kind::Container => swept.containers = removed,
            Kind::Volume => swept.volumes = removed,
            Kind::Image => swept.images = removed,
        }
        // It was waited for long enough.
        if matches!(failed, Some(Error::RequestTimeoutError)) {
            break;
        }
    }
    failed.map_or(Ok(swept), Err)
}

/// Lists the objects of one kind whose labels `left` accepts, in the order in which they can be removed.
async fn list(
    docker: &Docker,
    kind: Kind,
    filters: &HashMap<&str, Vec<&str>>,
    left: impl Fn(&HashMap<String, String>) -> bool,
) -> Result<Vec<String>, Error> {
    match kind {
        Kind::Container => {
            let options = ListContainersOptionsBuilder::default().all(true).filters(filters).build();
            let found = docker.list_containers(Some(options)).await?;
            let found =
                found.into_iter().filter(|container| left(container.labels.as_ref().unwrap_or(&HashMap::new())));
            Ok(found.filter_map(|container| container.id).collect())
        }
        Kind::Volume => {
            let options = ListVolumesOptionsBuilder::default().filters(filters).build();
            let found = docker.list_volumes(Some(options)).await?.volumes.unwrap_or_default();
            Ok(found.into_iter().filter(|volume| left(&volume.labels)).map(|volume| volume.name).collect())
        }
        Kind::Image => {
            let options = ListImagesOptionsBuilder::default().all(true).filters(filters).build();
            let found = docker.list_images(Some(options)).await?.into_iter().filter(|image| left(&image.labels));
            // Newest first: an image cannot be removed before those that are based on it.
            let images: BTreeSet<(i64, String)> = found.map(|image| (-image.created, image.id)).collect();
            Ok(images.into_iter().map(|(_, id)| id).collect())
        }
    }
}

/// Removes objects of one kind, also those that can be removed only after others. Returns how many were
/// removed.
async fn remove_all(docker: &Docker, kind: Kind, mut ids: Vec<String>, failed: &mut Option<Error>) -> usize {
    let mut count = 0;
    loop {
        let (before, mut kept, mut refused) = (ids.len(), Vec::new(), None);
        for id in ids {
            let removed = match kind {
                Kind::Container => remove_container(docker, &id).await,
                Kind::Volume => remove_volume(docker, &id).await,
                Kind::Image => remove_image(docker, &id).await,
            };
            match removed {
                Ok(()) => {
                    count += 1;
                    continue;
                }
                // Other images are based on it, which may be removed later, or a container of another owner
                // uses it.
                Err(Error::DockerResponseServerError { status_code: 409, .. }) if kind != Kind::Container => {}
                // Podman refuses to remove a container whose network others have.
                Err(error @ Error::DockerResponseServerError { .. }) => {
                    refused.get_or_insert(error);
                }
                // The daemon does not answer.
                Err(error) => {
                    failed.get_or_insert(error);
                    return count;
                }
            }
            kept.push(id);
        }
        if kept.is_empty() || kept.len() == before {
            if let Some(error) = refused {
                failed.get_or_insert(error);
            }
            return count;
        }
        ids = kept;
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

/// Removes a volume. A missing volume is ignored.
pub(super) async fn remove_volume(docker: &Docker, name: &str) -> Result<(), Error> {
    let options = RemoveVolumeOptionsBuilder::default().build();
    match docker.remove_volume(name, Some(options)).await {
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

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, Write},
        os::unix::net::{UnixListener, UnixStream},
        sync::Arc,
        thread,
    };

    use bollard::API_DEFAULT_VERSION;

    use super::*;
    use crate::sync::Mutex;

    /// Answers as a daemon that removes `holder` only after `member`, and that lists no volumes.
    fn answer(request: &str, removed: &Mutex<Vec<String>>) -> (&'static str, String) {
        let labels = format!("{{\"{PROCESS}\":\"dead\"}}");
        if request.starts_with("DELETE") {
            let name = ["holder", "member", "image"].into_iter().find(|name| request.contains(name)).unwrap();
            let mut removed = removed.lock();
            if name == "holder" && !removed.iter().any(|name| name == "member") {
                return ("500 Internal Server Error", "{\"message\":\"it has dependent containers\"}".into());
            }
            removed.push(name.to_owned());
            return ("200 OK", "[]".into());
        }
        if request.contains("/volumes") {
            return ("403 Forbidden", "{\"message\":\"denied\"}".into());
        }
        if request.contains("/images/json") {
            let image = format!(
                "[{{\"Id\":\"image\",\"ParentId\":\"\",\"RepoTags\":[],\"RepoDigests\":[],\"Created\":1,\"Size\":1,\
                 \"SharedSize\":1,\"Labels\":{labels},\"Containers\":0}}]"
            );
            return ("200 OK", image);
        }
        let container = |name: &str, labels: &str| format!("{{\"Id\":\"{name}\",\"Labels\":{labels}}}");
        let all = ["holder", "member"].map(|name| container(name, &labels)).join(",");
        ("200 OK", format!("[{all},{}]", container("alive", "{}")))
    }

    fn serve(stream: &UnixStream, removed: &Mutex<Vec<String>>) {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
        while let Some(request) = lines.next() {
            // None of these requests has a body.
            lines.by_ref().take_while(|line| !line.is_empty()).for_each(drop);
            let (status, body) = answer(&request, removed);
            let length = body.len();
            let head =
                format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
            Write::write_all(&mut { stream }, (head + &body).as_bytes()).unwrap();
        }
    }

    #[tokio::test]
    async fn what_cannot_be_removed_keeps_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let removed = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&removed);
        // It ends with this process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let seen = Arc::clone(&seen);
                thread::spawn(move || serve(&stream.unwrap(), &seen));
            }
        });
        let client = Docker::connect_with_unix(socket.to_str().unwrap(), 30, API_DEFAULT_VERSION).unwrap();
        let swept = remove(&client, "label", |process| process == "dead").await;
        let Err(Error::DockerResponseServerError { status_code, .. }) = swept else { panic!("{swept:?}") };
        assert_eq!(status_code, 403);
        assert_eq!(*removed.lock(), ["member", "holder", "image"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_does_not_answer_is_asked_once() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        // It accepts connections, and answers nothing.
        let _listener = UnixListener::bind(&socket).unwrap();
        let client = Docker::connect_with_unix(socket.to_str().unwrap(), 5 * 60, API_DEFAULT_VERSION).unwrap();
        let begin = tokio::time::Instant::now();
        let swept = remove(&client, "label", |_| true).await;
        assert!(matches!(swept, Err(Error::RequestTimeoutError)), "{swept:?}");
        assert_eq!(begin.elapsed().as_secs() / 60, 5);
    }
}
