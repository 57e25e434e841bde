//! Small images, made byte for byte.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use hm_exec::store::ImageDigest;
use serde_json::{Value, json};

use super::backends::usable;

/// A statically linked shell with all applets, if this machine has one.
pub(crate) const BUSYBOX: &str = "/bin/busybox";

/// Returns whether there is a busybox to make images of; prints a note if there is none.
pub(crate) fn has_busybox() -> bool {
    usable("busybox", Path::new(BUSYBOX).exists(), "install busybox-static: images are made of it")
}

/// A layer as a tar stream.
pub(crate) struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    pub(crate) fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    pub(crate) fn put(mut self, kind: tar::EntryType, path: &str, mode: u32, link: &str, data: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(data.len() as u64);
        header.set_mtime(1_600_000_000);
        if link.is_empty() {
            self.0.append_data(&mut header, path, data).unwrap();
        } else {
            self.0.append_link(&mut header, path, link).unwrap();
        }
        self
    }

    pub(crate) fn dir(self, path: &str) -> Self {
        self.put(tar::EntryType::Directory, path, 0o755, "", b"")
    }

    pub(crate) fn file(self, path: &str, mode: u32, data: impl AsRef<[u8]>) -> Self {
        self.put(tar::EntryType::Regular, path, mode, "", data.as_ref())
    }

    /// Adds an empty file with an owner.
    fn owned(mut self, path: &str, id: u64) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o600);
        header.set_size(0);
        header.set_uid(id);
        header.set_gid(id);
        self.0.append_data(&mut header, path, &b""[..]).unwrap();
        self
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.put(tar::EntryType::Symlink, path, 0o777, target, b"")
    }

    pub(crate) fn hard_link(self, path: &str, target: &str) -> Self {
        self.put(tar::EntryType::Link, path, 0o755, target, b"")
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// An image: its layers as tar streams, lowest first, and the variables it sets.
#[derive(Clone)]
pub(crate) struct Image {
    pub(crate) layers: Vec<Vec<u8>>,
    pub(crate) env: Vec<String>,
}

impl Image {
    /// Returns a shell in three layers: the third changes and removes files of the others.
    pub(crate) fn shell() -> Self {
        let base = Layer::new()
            .dir("bin")
            .file("bin/busybox", 0o755, fs::read(BUSYBOX).unwrap())
            .symlink("bin/sh", "busybox")
            .hard_link("bin/cat", "bin/busybox")
            .dir("etc")
            .file("etc/issue", 0o644, "one\n")
            .file("etc/gone", 0o644, "")
            .dir("data")
            .file("data/old", 0o600, "old\n")
            .dir("tools");
        let tools = [
            "ls", "stat", "find", "sort", "rm", "echo", "id", "mkdir", "sleep", "touch", "wc", "env", "sh", "cp", "mv",
            "ln", "readlink",
        ];
        let tools = tools
            .into_iter()
            .fold(Layer::new().dir("tools"), |layer, tool| layer.symlink(&format!("tools/{tool}"), "/bin/busybox"));
        let change = Layer::new()
            .file("etc/.wh.gone", 0o644, "")
            .file("etc/issue", 0o640, "two\n")
            .owned("etc/owned", 1234)
            .dir("data")
            .file("data/.wh..wh..opq", 0o644, "")
            .file("data/new", 0o4755, "new\n");
        let env = ["PATH=/tools:/bin", "FROM_IMAGE=yes", "EDITOR=ed"].map(str::to_owned).to_vec();
        Self { layers: vec![base.bytes(), tools.bytes(), change.bytes()], env }
    }

    pub(crate) fn config(&self) -> Vec<u8> {
        let diff_ids: Vec<String> = self.layers.iter().map(|layer| ImageDigest::of(layer).to_string()).collect();
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let config = json!({
            "os": "linux", "architecture": architecture, "config": { "Env": self.env },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        serde_json::to_vec(&config).unwrap()
    }

    /// Returns the digest by which the store knows the image.
    pub(crate) fn digest(&self) -> ImageDigest {
        ImageDigest::of(&self.config())
    }

    /// Returns the blobs of an OCI image, compressed, with the manifest last.
    pub(crate) fn blobs(&self) -> Vec<Vec<u8>> {
        let layers: Vec<Vec<u8>> = self.layers.iter().map(|layer| gzip(layer)).collect();
        let descriptor = |media_type: &str, blob: &[u8]| json!({ "mediaType": media_type, "digest": ImageDigest::of(blob).to_string(), "size": blob.len() });
        let config = self.config();
        let layer = |blob: &Vec<u8>| descriptor("application/vnd.oci.image.layer.v1.tar+gzip", blob);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": layers.iter().map(layer).collect::<Vec<Value>>(),
        });
        layers.into_iter().chain([config, serde_json::to_vec(&manifest).unwrap()]).collect()
    }

    /// Writes an OCI layout that has the image under a tag.
    pub(crate) fn write_oci(&self, dir: &Path, tag: &str) {
        let blobs = self.blobs();
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        for blob in &blobs {
            fs::write(dir.join("blobs/sha256").join(ImageDigest::of(blob).hex()), blob).unwrap();
        }
        let manifest = blobs.last().unwrap();
        let index = json!({ "schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": ImageDigest::of(manifest).to_string(),
            "size": manifest.len(),
            "annotations": { "org.opencontainers.image.ref.name": tag },
        }]});
        fs::write(dir.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    }

    /// Writes an archive in the format of `docker save`.
    pub(crate) fn write_docker(&self, file: &Path, name: &str) {
        let mut archive = tar::Builder::new(fs::File::create(file).unwrap());
        let mut append = |path: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, path, bytes).unwrap();
        };
        let config = self.config();
        let config_name = format!("{}.json", ImageDigest::of(&config).hex());
        append(&config_name, &config);
        let mut layers = Vec::new();
        for layer in &self.layers {
            let path = format!("{}/layer.tar", ImageDigest::of(layer).hex());
            append(&path, layer);
            layers.push(path);
        }
        let manifest = json!([{ "Config": config_name, "RepoTags": [name], "Layers": layers }]);
        append("manifest.json", &serde_json::to_vec(&manifest).unwrap());
        archive.finish().unwrap();
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

/// Packs a directory as a tar file.
pub(crate) fn tar_of(dir: &Path, file: &Path) -> PathBuf {
    let mut archive = tar::Builder::new(fs::File::create(file).unwrap());
    archive.append_dir_all(".", dir).unwrap();
    archive.finish().unwrap();
    file.to_owned()
}
