//! Writing what `docker load` reads.

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

/// Writes an archive of one image: layers as plain tar files, the configuration, and a manifest that names them.
pub(super) fn write_archive(
    path: &Path,
    name: Option<&str>,
    config: &[u8],
    layers: &[PackedLayer],
) -> Result<(), ExportError> {
    let dir = path.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."));
    let file = tempfile::Builder::new().prefix(".hm-export-").tempfile_in(dir).writing(path)?;
    let config_name = format!("{}.json", ImageDigest::of(config).hex());
    let layer_names: Vec<String> = layers.iter().map(|layer| format!("{}.tar", layer.diff_id.hex())).collect();
    let manifest = json!([{
        "Config": config_name,
        "RepoTags": name.into_iter().collect::<Vec<_>>(),
        "Layers": layer_names,
    }]);
    let manifest = serde_json::to_vec(&manifest).map_err(|error| ExportError::Encode(error.to_string()))?;
    let write = || -> io::Result<()> {
        let mut archive = Builder::new(BufWriter::new(file.as_file()));
        append(&mut archive, "manifest.json", manifest.len() as u64, &manifest[..])?;
        append(&mut archive, &config_name, config.len() as u64, config)?;
        let mut written = Vec::new();
        for (layer, name) in layers.iter().zip(&layer_names) {
            // The same layer twice is one file.
            if !written.contains(&layer.diff_id) {
                append(&mut archive, name, layer.size, layer.reader()?)?;
                written.push(layer.diff_id);
            }
        }
        archive.into_inner()?.flush()
    };
    write().writing(path)?;
    persist(file, path)
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
