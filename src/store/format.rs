//! The version of the store's layout, in the file `format`.

use std::{fs, io};

use super::{StoreError, error::IoContext, index, paths::Paths};

/// The content of the file for this version.
pub(super) const FORMAT: &str = "hm-exec store 2\n";
const FORMAT_NAME: &str = "hm-exec store ";
/// The layout before there was an index. The contents of such a store are removed, because there is no record
/// of what they are.
const FORMAT_1: &str = "hm-exec store 1\n";

/// The layout of a store's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// The layout that this version writes.
    This,
    /// The layout of an earlier version, or no layout yet.
    Older,
    /// The format file was damaged. The store has an index, so it was written by this version.
    Lost,
}

impl Format {
    /// Reads the layout version of the store. A file that no version wrote is set aside, because it must not
    /// lock its owner out permanently.
    pub(super) fn read(paths: &Paths) -> Result<Self, StoreError> {
        let path = paths.format();
        let found = match fs::read(&path) {
            Ok(found) if found == FORMAT.as_bytes() => return Ok(Self::This),
            Ok(found) if found == FORMAT_1.as_bytes() => return Ok(Self::Older),
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::Older),
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => Vec::new(),
            Err(error) => return Err(StoreError::io("read", path, error)),
        };
        let text = String::from_utf8_lossy(&found);
        let version = text.strip_suffix('\n').and_then(|text| text.strip_prefix(FORMAT_NAME)).map(str::parse::<u64>);
        if let Some(Ok(version)) = version {
            return Err(StoreError::Corrupt {
                path,
                reason: format!("it has version {version}, written by a newer hm"),
            });
        }
        let aside = paths.dir().join(format!("format-damaged-{}", index::now_ms()));
        fs::rename(&path, &aside).doing("set aside", &path)?;
        tracing::warn!(set_aside = %aside.display(), "the store's file `format` was damaged; writing a new one");
        Ok(if paths.dir().join("index.db").exists() { Self::Lost } else { Self::Older })
    }
}
