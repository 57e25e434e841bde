//! Writes archives for `docker load`.

use std::{
    io::{self, BufWriter, Read, Write},
    path::Path,
};

use serde_json::json;
use tar::{Builder, EntryType, Header};

use super::{
    super::ImageDigest,
    blobs::PackedLayer,
    error::{ExportError, Writing},
    layout::persist,
};

/// Writes an archive of one image: layers as plain tar files, the configuration, and a manifest that names
/// them.
pub(super) fn write_archive(
    path: &Path,
    name: Option<&str>,
    config: &[u8],
    layers: &[PackedLayer],
) -> Result<(), ExportError> {
    let dir = path.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."));
    let file = tempfile::Builder::new().prefix(".hm-export-").tempfile_in(dir).writing(path)?;
    let layers: Vec<_> = layers.iter().map(|layer| (layer.diff_id, Some(layer))).collect();
    write_members(file.as_file(), path, name, config, &layers)?;
    persist(file, path)
}

/// Writes an archive for a daemon. The layers given only by digest are those that the daemon has already.
pub(super) fn write_thin_archive(
    path: &Path,
    config: &[u8],
    layers: &[(ImageDigest, Option<&PackedLayer>)],
) -> Result<(), ExportError> {
    let file = std::fs::File::create_new(path).writing(path)?;
    write_members(&file, path, None, config, layers)
}

fn write_members(
    file: &std::fs::File,
    path: &Path,
    name: Option<&str>,
    config: &[u8],
    layers: &[(ImageDigest, Option<&PackedLayer>)],
) -> Result<(), ExportError> {
    let config_name = format!("{}.json", ImageDigest::of(config).hex());
    let layer_names: Vec<String> = layers.iter().map(|(diff_id, _)| format!("{}.tar", diff_id.hex())).collect();
    let manifest = json!([{
        "Config": config_name,
        "RepoTags": name.into_iter().collect::<Vec<_>>(),
        "Layers": layer_names,
    }]);
    let manifest = serde_json::to_vec(&manifest).map_err(|error| ExportError::Encode(error.to_string()))?;
    let write = || -> io::Result<()> {
        let mut archive = Builder::new(BufWriter::new(file));
        append(&mut archive, "manifest.json", manifest.len() as u64, &manifest[..])?;
        append(&mut archive, &config_name, config.len() as u64, config)?;
        let mut written = Vec::new();
        for ((diff_id, layer), name) in layers.iter().zip(&layer_names) {
            // The same layer twice becomes one file.
            if let Some(layer) = layer
                && !written.contains(diff_id)
            {
                append(&mut archive, name, layer.size, layer.reader()?)?;
                written.push(*diff_id);
            }
        }
        archive.into_inner()?.flush()
    };
    write().writing(path)
}

fn append(archive: &mut Builder<impl Write>, name: &str, size: u64, data: impl Read) -> io::Result<()> {
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::Regular);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    archive.append_data(&mut header, name, data)
}
