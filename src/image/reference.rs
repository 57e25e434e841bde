//! Parses the text that names an image.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{Base, ImageError};

/// The kind of image that a text names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ImageName {
    /// This machine's system.
    Host,
    /// An unpacked root filesystem.
    Rootfs,
    /// An OCI layout in a directory.
    OciDir { path: PathBuf, tag: Option<String> },
    /// An OCI layout in a tar file.
    OciArchive { path: PathBuf, tag: Option<String> },
    /// An archive of `docker save`.
    DockerArchive { path: PathBuf, tag: Option<String> },
    /// An image in a registry.
    Registry,
}

impl ImageName {
    /// Parses the text. A path ends at a colon that is not followed by a slash.
    pub(super) fn parse(image: &str) -> Result<Self, ImageError> {
        if image == "host" {
            return Ok(Self::Host);
        }
        let Some((transport, rest)) = image.split_once(':') else {
            return Ok(Self::Registry);
        };
        if transport == "rootfs" {
            return Ok(Self::Rootfs);
        }
        let located = || {
            let (path, tag) = match rest.rsplit_once(':') {
                Some((path, tag)) if transport == "docker-archive" || !tag.contains('/') => (path, Some(tag)),
                _ => (rest, None),
            };
            // The name in `docker-archive:F:name:tag` has a tag of its own.
            let (path, tag) = match (transport, path.split_once(':'), tag) {
                ("docker-archive", Some((path, name)), Some(tag)) => (path, Some(format!("{name}:{tag}"))),
                (_, _, tag) => (path, tag.map(str::to_owned)),
            };
            if path.is_empty() || tag.as_ref().is_some_and(String::is_empty) {
                let reason = format!("expected `{transport}:PATH` or `{transport}:PATH:TAG`");
                return Err(ImageError::BadName { image: image.into(), reason });
            }
            Ok((PathBuf::from(path), tag))
        };
        match transport {
            "oci" => located().map(|(path, tag)| Self::OciDir { path, tag }),
            "oci-archive" => located().map(|(path, tag)| Self::OciArchive { path, tag }),
            "docker-archive" => located().map(|(path, tag)| Self::DockerArchive { path, tag }),
            _ => Ok(Self::Registry),
        }
    }
}

/// Checks what can be checked of an image without reading it: that the text is a valid name, and that the
/// file or directory exists if the name refers to one on this machine. No registry is contacted.
///
/// # Errors
/// Returns an error that describes what is wrong with the name.
pub(crate) fn check_image(image: &str) -> Result<(), ImageError> {
    let wrong = |reason: String| ImageError::BadName { image: image.into(), reason };
    let found = |path: &Path| {
        fs::metadata(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => wrong(format!("`{}` does not exist", path.display())),
            _ => wrong(format!("failed to look at `{}`: {error}", path.display())),
        })
    };
    match ImageName::parse(image)? {
        ImageName::Host => Ok(()),
        ImageName::Rootfs => Ok(Base::parse(image).map(drop)?),
        ImageName::OciDir { path, .. } if !found(&path)?.is_dir() => {
            Err(wrong(format!("`{}` is not a directory", path.display())))
        }
        ImageName::OciDir { path, .. } => found(&path.join("index.json")).map(drop),
        ImageName::OciArchive { path, .. } | ImageName::DockerArchive { path, .. } => match found(&path)?.is_file() {
            true => Ok(()),
            false => Err(wrong(format!("`{}` is not a regular file", path.display()))),
        },
        #[cfg(feature = "registry")]
        ImageName::Registry => super::registry::reference(image).map(drop),
        #[cfg(not(feature = "registry"))]
        ImageName::Registry => Ok(()),
    }
}

/// Returns the file or directory of this machine in an image's name, if there is one.
///
/// # Examples
/// ```
/// use hm_exec::image::image_path;
///
/// assert_eq!(image_path("oci:/images/it:latest"), Some("/images/it".into()));
/// assert_eq!(image_path("rootfs:/"), Some("/".into()));
/// assert_eq!(image_path("debian:bookworm"), None);
/// ```
#[must_use]
pub fn image_path(image: &str) -> Option<PathBuf> {
    match ImageName::parse(image).ok()? {
        ImageName::Host | ImageName::Registry => None,
        ImageName::Rootfs => image.strip_prefix("rootfs:").map(PathBuf::from),
        ImageName::OciDir { path, .. } | ImageName::OciArchive { path, .. } | ImageName::DockerArchive { path, .. } => {
            Some(path)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_name_or_leads_to_nothing_is_told() {
        let top = tempfile::tempdir().unwrap();
        let path = |name: &str| top.path().join(name).display().to_string();
        fs::create_dir_all(path("layout")).unwrap();
        fs::write(path("layout/index.json"), "").unwrap();
        fs::create_dir(path("empty")).unwrap();
        fs::write(path("file"), "").unwrap();
        for good in [
            "host".to_owned(),
            format!("rootfs:{}", path("empty")),
            format!("oci:{}", path("layout")),
            format!("oci:{}:tag", path("layout")),
            format!("docker-archive:{}:a:b", path("file")),
            "debian".into(),
            "localhost:5000/a/b:c".into(),
        ] {
            check_image(&good).unwrap_or_else(|error| panic!("{good}: {error}"));
        }
        for (wrong, expected) in [
            ("oci:".to_owned(), "expected `oci:PATH`"),
            (format!("oci:{}", path("none")), "` does not exist"),
            (format!("oci:{}", path("empty")), "` does not exist"),
            (format!("oci:{}", path("file")), "is not a directory"),
            (format!("oci-archive:{}", path("layout")), "is not a regular file"),
            (format!("docker-archive:{}:tag", path("none")), "` does not exist"),
            (format!("rootfs:{}", path("none")), "no such directory"),
            (format!("rootfs:{}", path("file")), "it is not a directory"),
            ("rootfs:".into(), "no such directory"),
        ] {
            let error = check_image(&wrong).expect_err(&wrong).to_string();
            assert!(error.contains(expected), "{wrong}: {error}");
        }
        if cfg!(feature = "registry") {
            for wrong in ["", "UPPER", "a//b", "a b", "debian:", "debian@sha256:12", ":tag", "debian:a:b"] {
                let error = check_image(wrong).expect_err(wrong).to_string();
                assert!(error.contains("invalid image name"), "{wrong}: {error}");
            }
        }
    }

    #[test]
    fn names_have_a_transport_a_path_and_a_tag() {
        let oci = |path: &str, tag: Option<&str>| ImageName::OciDir { path: path.into(), tag: tag.map(str::to_owned) };
        let docker =
            |path: &str, tag: Option<&str>| ImageName::DockerArchive { path: path.into(), tag: tag.map(str::to_owned) };
        for (text, expected) in [
            ("host", ImageName::Host),
            ("rootfs:/a:b", ImageName::Rootfs),
            ("oci:dir", oci("dir", None)),
            ("oci:/a/b:tag", oci("/a/b", Some("tag"))),
            ("oci:/a:b/c", oci("/a:b/c", None)),
            ("docker-archive:f.tar", docker("f.tar", None)),
            ("docker-archive:/f.tar:name:tag", docker("/f.tar", Some("name:tag"))),
            ("docker-archive:/f.tar:ghcr.io/name:tag", docker("/f.tar", Some("ghcr.io/name:tag"))),
            ("debian", ImageName::Registry),
            ("debian:bookworm", ImageName::Registry),
            ("localhost:5000/x:y", ImageName::Registry),
        ] {
            assert_eq!(ImageName::parse(text).unwrap(), expected, "{text}");
        }
        for wrong in ["oci:", "oci::tag", "oci:dir:"] {
            assert!(ImageName::parse(wrong).is_err(), "{wrong}");
        }
    }
}
