//! Writes the files of a stream to a step's directory of outputs, and reads the test results among them.

use std::{
    io::{self, BufReader, Read, Seek},
    path::{Component, Path, PathBuf},
};

use tar::{Archive, EntryType};

use super::{
    Collected, LIMITS, OutputPlace,
    junit::{merge, read_junit},
    out_dir::{self, NewDir},
};
use crate::{
    model::ArtifactRef,
    tree::{LEFT_OUT, copy_sparse},
};

/// The largest file that is read as test results, in bytes.
const JUNIT_BYTES: u64 = 64 << 20;

/// The most directories of a file's path.
const MOST_NAMES: usize = 200;

/// Copies the files of `stream` to the place of a step's outputs, if the stream is complete at its end.
///
/// # Errors
/// Returns an error if nothing was put in place.
pub(super) fn receive(
    place: &OutputPlace,
    stream: impl Read,
    workdir: &Path,
    is_complete: impl FnOnce() -> bool,
) -> io::Result<Collected> {
    let step = &*place.step;
    let new = NewDir::make(&place.source_dir, &place.pipeline, step)?;
    let shown = out_dir::path(&place.pipeline, step);
    let (mut collected, mut files, mut bytes) = (Collected::default(), 0, 0_u64);
    let mut archive = Archive::new(stream);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.into_owned();
        let Some(path) = plain_path(name.strip_prefix(workdir).unwrap_or(&name)) else {
            tracing::warn!(step, "the output {name:?} is left out: its name is too long, or not text");
            continue;
        };
        let size = entry.size();
        (files, bytes) = (files + 1, bytes.saturating_add(size));
        if entry.header().entry_type() == EntryType::new(LEFT_OUT) || files > LIMITS.files || bytes > LIMITS.bytes {
            tracing::warn!(step, "the output {path:?} is left out: it cannot be read, or all outputs are too large");
            continue;
        }
        if entry.header().entry_type() != EntryType::Regular {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the runner sent something other than files"));
        }
        let executable = entry.header().mode()? & 0o111 != 0;
        let mut file = match new.create(&path, executable) {
            // Two patterns can lead to one name: a relative and an absolute one.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                tracing::warn!(step, "the output {path:?} is left out: another file has that name");
                continue;
            }
            created => created?,
        };
        copy_sparse(&mut entry, &mut file)?;
        if path.extension().is_some_and(|extension| extension == "xml") && size <= JUNIT_BYTES {
            file.rewind()?;
            match read_junit(BufReader::new(&file)) {
                Ok(Some(results)) => merge(collected.tests.get_or_insert_default(), results),
                Ok(None) => {}
                Err(error) => tracing::warn!(step, "the output {path:?} is not read as test results: {error}"),
            }
        }
        // The name is text.
        let key = shown.join(&path).to_string_lossy().into_owned();
        collected.artifacts.push(ArtifactRef { key, mime: media_type(&path).to_owned(), size_bytes: size });
    }
    if !is_complete() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the step's files could not be read to the end"));
    }
    new.put_in_place()?;
    Ok(collected)
}

/// Returns a path of plain names that are text.
fn plain_path(path: &Path) -> Option<PathBuf> {
    let plain = path.components().all(|part| matches!(part, Component::Normal(name) if name.to_str().is_some()));
    (plain && (1..=MOST_NAMES).contains(&path.components().count())).then(|| path.to_owned())
}

/// Returns the media type of a file by its name.
fn media_type(path: &Path) -> &'static str {
    match path.extension().and_then(|extension| extension.to_str()).unwrap_or_default() {
        "xml" => "application/xml",
        "json" => "application/json",
        "html" | "htm" => "text/html",
        "txt" | "log" => "text/plain",
        "css" => "text/css",
        "csv" => "text/csv",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "pdf" => "application/pdf",
        "zip" => "application/zip",
        "gz" | "tgz" => "application/gzip",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::tree::{PathPatterns, pack_matching};

    fn place(source_dir: &Path) -> OutputPlace {
        OutputPlace { source_dir: source_dir.to_owned(), pipeline: "ci".into(), step: "test".into() }
    }

    fn stream(top: &Path, pattern: &str) -> Vec<u8> {
        let mut stream = Vec::new();
        pack_matching(top, &PathPatterns::parse([pattern]).unwrap(), LIMITS, &mut stream).unwrap();
        stream
    }

    #[test]
    fn files_arrive_with_their_names_and_old_ones_are_gone() {
        let top = tempfile::tempdir().unwrap();
        let (step, source) = (top.path().join("step"), top.path().join("source"));
        fs::create_dir_all(step.join("workspace/sub")).unwrap();
        fs::create_dir_all(&source).unwrap();
        fs::write(step.join("workspace/sub/new\nline.txt"), "text").unwrap();
        fs::write(step.join("workspace/r.xml"), "<testsuite><testcase name='t'/></testsuite>").unwrap();
        fs::write(step.join("workspace/broken.xml"), "<testsuite><testcase").unwrap();
        let first = receive(&place(&source), &stream(&step, "**")[..], Path::new("workspace"), || true).unwrap();
        let keys: Vec<_> = first.artifacts.iter().map(|it| (&*it.key, &*it.mime, it.size_bytes)).collect();
        assert_eq!(
            keys,
            [
                (".hm/out/ci/test/broken.xml", "application/xml", 20),
                (".hm/out/ci/test/r.xml", "application/xml", 43),
                (".hm/out/ci/test/sub/new\nline.txt", "text/plain", 4),
            ]
        );
        assert_eq!(first.tests.unwrap().tests, 1);
        let out = source.join(".hm/out/ci/test");
        assert_eq!(fs::read_to_string(out.join("sub/new\nline.txt")).unwrap(), "text");
        // An incomplete stream changes nothing.
        let torn = stream(&step, "**");
        assert!(receive(&place(&source), &torn[..600], Path::new("workspace"), || false).is_err());
        assert!(receive(&place(&source), &torn[..], Path::new("workspace"), || false).is_err());
        assert_eq!(fs::read_dir(&out).unwrap().count(), 3);
        let second = receive(&place(&source), &stream(&step, "none")[..], Path::new("workspace"), || true).unwrap();
        assert_eq!((second.artifacts, fs::read_dir(&out).unwrap().count()), (vec![], 0));
    }

    #[test]
    fn names_that_lead_elsewhere_are_left_out() {
        for name in ["../x", "/x", "a/../../x", "", "."] {
            assert_eq!(plain_path(Path::new(name)), None, "{name}");
        }
        assert_eq!(plain_path(Path::new("a/b.c")), Some("a/b.c".into()));
    }
}
