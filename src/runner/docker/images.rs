//! Images that a pipeline names. The daemon has them or pulls them.

use std::{collections::BTreeMap, time::Instant};

use bollard::{
    Docker,
    models::{CreateImageInfo, ImageInspect},
    query_parameters::CreateImageOptionsBuilder,
};
use futures_util::StreamExt;

use super::{
    connection::patient,
    error::{self, is_missing},
};
use crate::{
    image::{ImageProgram, PullPolicy},
    ir::Env,
    model::{Activity, ActivityCount, REPORTED_EVERY, StdStream},
    runner::{RunnerError, vm::Output},
    store::ImageDigest,
};

/// An image at the daemon.
#[derive(Debug, Clone)]
pub(super) struct DaemonImage {
    /// The daemon's id of the image, which stays the same if the name changes.
    pub(super) id: String,
    /// The digests of its uncompressed layers, lowest first.
    pub(super) diff_ids: Vec<ImageDigest>,
    /// The variables that the image sets.
    pub(super) env: Env,
    /// The program that it runs by default.
    pub(super) program: Option<ImageProgram>,
}

/// Returns whether the store, rather than the daemon, resolves an image with this name.
pub(super) fn is_the_stores(name: &str) -> bool {
    ["rootfs:", "oci:", "oci-archive:", "docker-archive:"].iter().any(|form| name.starts_with(form))
}

/// Looks up an image. Returns `None` if the daemon has no image with that name.
pub(super) async fn find(docker: &Docker, name: &str) -> Result<Option<DaemonImage>, RunnerError> {
    if !is_reference(name) {
        let name = name.escape_debug();
        return Err(RunnerError::unsupported(format!(
            "invalid image name `{name}`: use a name such as `debian:bookworm`"
        )));
    }
    match docker.inspect_image(name).await {
        Ok(found) => Ok(Some(described(name, found)?)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error::daemon("look at the image")(error)),
    }
}

/// Returns the image of a root step. Pulls it if that is requested or necessary, and reports that.
pub(super) async fn get(
    docker: &Docker,
    name: &str,
    pull: PullPolicy,
    output: &Output<'_>,
) -> Result<DaemonImage, RunnerError> {
    if pull != PullPolicy::Always
        && let Some(found) = find(docker, name).await?
    {
        return Ok(found);
    }
    if pull == PullPolicy::Never {
        return Err(RunnerError::unsupported(format!(
            "the daemon does not have image `{name}` and may not pull it: pull it first, or run without --offline"
        )));
    }
    let note = async |line: String| output.write(StdStream::Stderr, line.as_bytes()).await;
    note(format!("pulling {name}\n")).await;
    let started = Instant::now();
    let (image, tag) = reference(name);
    let options = CreateImageOptionsBuilder::default().from_image(image).tag(tag).build();
    let patient = patient(docker);
    let mut pulling = patient.create_image(Some(options), None, None);
    let mut pull = Pull::default();
    while let Some(progress) = pulling.next().await {
        // The daemon itself retries temporary failures of a registry.
        let progress = progress.map_err(|error| {
            RunnerError::unsupported(format!(
                "failed to get the image: the daemon cannot pull `{name}` ({error}): check its name, or `docker pull` or \
                 `docker import` it first"
            ))
        })?;
        if output.bus.wants_progress()
            && let Some(count) = pull.counted(progress)
        {
            output.bus.progress(Some(output.step_id), Activity::PullingImage, Some(count));
        }
    }
    note(format!("pulled {name} in {:.1} s\n", started.elapsed().as_secs_f64())).await;
    find(docker, name).await?.ok_or_else(|| {
        RunnerError::infrastructure(
            "get the image",
            anyhow::anyhow!("the daemon pulled `{name}`, but does not have it"),
        )
    })
}

/// How much the daemon has downloaded.
#[derive(Debug, Default)]
struct Pull {
    layers: BTreeMap<String, ActivityCount>,
    reported: Option<Instant>,
}

impl Pull {
    /// Adds what the daemon says, which it repeats for each layer. Returns the sum if it is time to report
    /// it.
    fn counted(&mut self, info: CreateImageInfo) -> Option<ActivityCount> {
        let (id, status, detail) = (info.id?, info.status?, info.progress_detail);
        if let Some((current, total)) = detail.and_then(|detail| detail.current.zip(detail.total))
            && status == "Downloading"
        {
            let count = |bytes| u64::try_from(bytes).unwrap_or(0);
            self.layers.insert(id, ActivityCount::new(count(current), count(total)));
        } else if let Some(layer) = self.layers.get_mut(&id) {
            // It unpacks the layer now.
            layer.done = layer.total;
        }
        if self.layers.is_empty() || self.reported.is_some_and(|reported| reported.elapsed() < REPORTED_EVERY) {
            return None;
        }
        self.reported = Some(Instant::now());
        let sum = |sum: ActivityCount, layer: &ActivityCount| {
            ActivityCount::new(sum.done.saturating_add(layer.done), sum.total.saturating_add(layer.total))
        };
        Some(self.layers.values().fold(ActivityCount::new(0, 0), sum))
    }
}

/// Returns whether a name may become a part of a request's path, where dots could lead elsewhere.
fn is_reference(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:/@".contains(&byte);
    name.bytes().all(is_plain) && name.split('/').all(|part| !part.is_empty() && !part.starts_with('.'))
}

/// Splits a name before the tag. Without a tag the daemon would pull all tags.
fn reference(name: &str) -> (&str, &str) {
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    match name[last..].find([':', '@']) {
        Some(at) if name[last + at..].starts_with(':') && !name.contains('@') => {
            (&name[..last + at], &name[last + at + 1..])
        }
        // A digest is part of the name.
        Some(_) => (name, ""),
        None => (name, "latest"),
    }
}

fn described(name: &str, found: ImageInspect) -> Result<DaemonImage, RunnerError> {
    let odd = |what: &str| RunnerError::unsupported(format!("the daemon's image `{name}` has no {what}"));
    let layers = found.root_fs.and_then(|root| root.layers).ok_or_else(|| odd("layers"))?;
    let diff_ids = layers.iter().map(|layer| layer.parse()).collect::<Result<_, _>>().map_err(|_| odd("digests"))?;
    let config = found.config.unwrap_or_default();
    let program = ImageProgram::of(config.entrypoint.as_ref(), config.cmd.as_ref(), config.working_dir.as_deref());
    let env = config.env.unwrap_or_default();
    let env = env.iter().filter_map(|variable| variable.split_once('='));
    Ok(DaemonImage {
        id: found.id.ok_or_else(|| odd("id"))?,
        diff_ids,
        env: env.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        program,
    })
}

#[cfg(test)]
mod tests {
    use bollard::models::{CreateImageInfo, ProgressDetail};

    use super::{Pull, is_reference, reference};
    use crate::model::ActivityCount;

    #[test]
    fn a_pull_is_the_sum_of_its_layers() {
        let info = |id: &str, status: &str, bytes: Option<(i64, i64)>| CreateImageInfo {
            id: Some(id.to_owned()),
            status: Some(status.to_owned()),
            progress_detail: bytes
                .map(|(current, total)| ProgressDetail { current: Some(current), total: Some(total) }),
            ..CreateImageInfo::default()
        };
        let mut pull = Pull::default();
        let mut counted = |id, status, bytes| {
            pull.reported = None;
            pull.counted(info(id, status, bytes))
        };
        assert_eq!(counted("latest", "Pulling from library/debian", None), None);
        assert_eq!(counted("a", "Downloading", Some((1, 10))), Some(ActivityCount::new(1, 10)));
        assert_eq!(counted("b", "Downloading", Some((2, 5))), Some(ActivityCount::new(3, 15)));
        assert_eq!(counted("a", "Extracting", Some((1, 99))), Some(ActivityCount::new(12, 15)));
        pull.reported = Some(std::time::Instant::now());
        assert_eq!(pull.counted(info("b", "Downloading", Some((5, 5)))), None);
    }

    #[test]
    fn names_lead_nowhere_else_in_the_api() {
        for name in ["debian", "debian:bookworm", "h:5000/a/b@sha256:00", "sha256:0a"] {
            assert!(is_reference(name), "{name}");
        }
        for name in ["", "a?b", "../containers/x", "a/../../x", "/a", "a b", "a%2e", "a#b", "a\n"] {
            assert!(!is_reference(name), "{name:?}");
        }
    }

    #[test]
    fn a_name_without_a_tag_means_one_image() {
        for (name, expected) in [
            ("debian", ("debian", "latest")),
            ("debian:bookworm", ("debian", "bookworm")),
            ("host:5000/a/b", ("host:5000/a/b", "latest")),
            ("host:5000/a/b:c", ("host:5000/a/b", "c")),
            ("a@sha256:00", ("a@sha256:00", "")),
            ("a:b@sha256:00", ("a:b@sha256:00", "")),
        ] {
            assert_eq!(reference(name), expected);
        }
    }
}
