//! Packs a frozen source for the service.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use flate2::{Compression, write::GzEncoder};

use super::error::ServiceError;
use crate::source::{FrozenSource, largest_files};

/// The service's limit, in bytes after compression.
pub(super) const MAX_ARCHIVE_BYTES: u64 = 6 << 20;

/// The number of files that are named if the source is too large.
const NAMED: usize = 10;

/// Returns the source as `tar.gz`, of at most `limit` bytes. Blocks.
pub(super) fn pack(source: &FrozenSource, limit: u64) -> Result<Vec<u8>, ServiceError> {
    let mut packed = Limited { bytes: Vec::new(), limit, is_exceeded: false };
    let mut gzip = GzEncoder::new(&mut packed, Compression::default());
    let written = source.write_tar(&mut gzip);
    let ended = gzip.finish().map(drop);
    if packed.is_exceeded {
        return Err(too_large(source, limit)?);
    }
    written?;
    ended.map_err(|source| ServiceError::Local { doing: "compress the source".into(), source })?;
    Ok(packed.bytes)
}

/// Returns the error for a source that is too large.
fn too_large(source: &FrozenSource, limit: u64) -> Result<ServiceError, ServiceError> {
    let largest: Vec<(PathBuf, u64)> = largest_files(source, NAMED)?;
    Ok(ServiceError::TooLarge { limit, largest })
}

/// A buffer that refuses to grow beyond its limit.
struct Limited {
    bytes: Vec<u8>,
    limit: u64,
    is_exceeded: bool,
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if (self.bytes.len() + bytes.len()) as u64 > self.limit {
            self.is_exceeded = true;
            return Err(io::Error::other("the limit is exceeded"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, io::Read};

    use super::*;
    use crate::source::test_project::TestProject;

    #[tokio::test]
    async fn the_archive_has_every_file_with_its_mode_and_no_more_than_the_limit() {
        let project = TestProject::new();
        fs::write(project.file("a.txt"), "content").unwrap();
        fs::create_dir(project.file("dir")).unwrap();
        fs::write(project.file("dir/big"), vec![7; 100_000]).unwrap();
        std::os::unix::fs::symlink("a.txt", project.file("link")).unwrap();
        let store = project.handle().get().unwrap();
        let source = project.source().freeze(&store).await.unwrap();

        let packed = pack(&source, MAX_ARCHIVE_BYTES).unwrap();
        assert_eq!(packed, pack(&source, MAX_ARCHIVE_BYTES).unwrap(), "the order is fixed");
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&*packed));
        let found: BTreeMap<String, usize> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let path = entry.path().unwrap().display().to_string();
                (path, entry.read_to_end(&mut Vec::new()).unwrap())
            })
            .collect();
        assert_eq!((found["a.txt"], found["dir/big"], found["link"]), (7, 100_000, 0));

        let Err(ServiceError::TooLarge { limit: 100, largest }) = pack(&source, 100) else {
            panic!("it fits");
        };
        assert_eq!(largest, [("dir/big".into(), 100_000), ("a.txt".into(), 7)]);
    }
}
