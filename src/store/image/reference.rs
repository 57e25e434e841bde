//! The text that names an image.

use std::path::PathBuf;

use super::ImageError;

/// What the text that names an image asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::store) enum ImageName {
    /// This machine's system.
    Host,
    /// An unpacked root filesystem.
    Rootfs,
    /// An OCI layout in a directory.
    OciDir { path: PathBuf, tag: Option<String> },
    /// An OCI layout in a tar file.
    OciArchive { path: PathBuf, tag: Option<String> },
    /// What `docker save` writes.
    DockerArchive { path: PathBuf, tag: Option<String> },
    /// In a registry.
    Registry,
}

impl ImageName {
    /// Takes the text apart. A path ends at a colon that no slash follows.
    pub(in crate::store) fn parse(image: &str) -> Result<Self, ImageError> {
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
            // `docker-archive:F:name:tag` has a name with a tag of its own.
            let (path, tag) = match (transport, path.split_once(':'), tag) {
                ("docker-archive", Some((path, name)), Some(tag)) => (path, Some(format!("{name}:{tag}"))),
                (_, _, tag) => (path, tag.map(str::to_owned)),
            };
            if path.is_empty() || tag.as_ref().is_some_and(String::is_empty) {
                let reason = format!("write `{transport}:PATH` or `{transport}:PATH:TAG`");
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

#[cfg(test)]
mod tests {
    use super::*;

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
