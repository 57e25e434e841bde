//! Writes the files of a stream to a step's directory of outputs, and reads the test results among them.

use std::{
    io::{self, Read},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use tar::{Archive, Entry, EntryType};

use super::{
    Collected, LIMITS, Mask, OutputPlace,
    out_dir::{self, NewDir},
};
use crate::{
    model::ArtifactRef,
    tree::{LEFT_OUT, PackLimits, PathPatterns, copy_sparse},
};

/// The most directories of a file's path.
const MOST_NAMES: usize = 200;

/// The most files that are named in warnings, of those that are left out.
const MOST_WARNINGS: u32 = 10;

/// The names in a stream of files.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StreamNames<'a> {
    /// The work directory of the step. Files below it have their names without it.
    pub(crate) workdir: &'a str,
    /// The files to take of a stream that has others, too.
    pub(crate) only: Option<Chosen<'a>>,
}

/// The files to take of an archive of a directory, or of a single file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chosen<'a> {
    /// The path of what the archive is of. It stands for the first name of each path in the archive.
    pub(crate) path: &'a str,
    pub(crate) patterns: &'a PathPatterns,
}

/// The outputs of a step as they arrive. They are put in place at the end.
#[derive(Debug)]
pub(crate) struct Receiving<'a> {
    place: &'a OutputPlace,
    /// The paths of what is not the step's own.
    inputs: &'a [Arc<str>],
    mask: &'a Mask,
    limits: PackLimits,
    new: NewDir,
    /// The place, below the source directory.
    shown: PathBuf,
    collected: Collected,
    files: u32,
    bytes: u64,
    left_out: u32,
}

impl<'a> Receiving<'a> {
    pub(super) fn new(place: &'a OutputPlace, mask: &'a Mask) -> io::Result<Self> {
        let new = NewDir::make(&place.source_dir, &place.pipeline, &place.step)?;
        let shown = out_dir::path(&place.pipeline, &place.step);
        Ok(Self {
            place,
            inputs: &[],
            mask,
            limits: LIMITS,
            new,
            shown,
            collected: Collected::default(),
            files: 0,
            bytes: 0,
            left_out: 0,
        })
    }

    /// Skips what is at or below these absolute paths.
    pub(super) fn without(self, inputs: &'a [Arc<str>]) -> Self {
        Self { inputs, ..self }
    }

    /// Copies the files of a tar stream.
    ///
    /// # Errors
    /// Returns an error if the stream cannot be read, or if a file cannot be written. Files that are left out
    /// are warnings.
    pub(crate) fn add(&mut self, stream: impl Read, names: StreamNames<'_>) -> io::Result<()> {
        let workdir = Path::new(names.workdir.trim_matches('/'));
        let mut archive = Archive::new(stream);
        for entry in archive.entries()? {
            let mut entry = entry?;
            let kind = entry.header().entry_type();
            let mut name = entry.path()?.into_owned();
            if let Some(Chosen { path, patterns }) = names.only {
                let below = name.strip_prefix("./").unwrap_or(&name).components().skip(1);
                name = Path::new(path).components().chain(below).collect();
                if self.is_input(&name) {
                    continue;
                }
                // Patterns are text.
                let is_chosen = name.to_str().is_some_and(|name| patterns.covers(name));
                if !is_chosen || matches!(kind, EntryType::Directory | EntryType::Symlink | EntryType::Fifo) {
                    continue;
                }
                if !matches!(kind, EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse) {
                    // An archive has the content of a file with several names only once.
                    self.leave_out(&name, "it is no regular file, or has another name, too");
                    continue;
                }
            } else if self.is_input(&name) {
                continue;
            } else if kind == EntryType::new(LEFT_OUT) {
                let path = name.strip_prefix(workdir).unwrap_or(&name);
                self.files = self.files.saturating_add(1);
                self.leave_out(path, if self.files > self.limits.files { TOO_MANY } else { TOO_LARGE });
                continue;
            } else if kind != EntryType::Regular {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the runner sent something other than files"));
            }
            let path = name.strip_prefix(workdir).unwrap_or(&name).to_owned();
            self.take(&mut entry, &path)?;
            if self.files > self.limits.files {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Returns whether a file below the root of the step's files came from another step, or is the mount
    /// point of such files.
    fn is_input(&self, name: &Path) -> bool {
        self.inputs.iter().any(|target| name.starts_with(target.trim_start_matches('/')))
    }

    fn take(&mut self, entry: &mut Entry<'_, impl Read>, path: &Path) -> io::Result<()> {
        let size = entry.size();
        self.files = self.files.saturating_add(1);
        if self.files > self.limits.files {
            self.leave_out(path, TOO_MANY);
            return Ok(());
        }
        if !is_plain(path) {
            self.leave_out(path, "its name is too long, or not text");
            return Ok(());
        }
        if is_gits(path) {
            self.leave_out(path, "git would take it for a part of a repository, whose settings can run programs");
            return Ok(());
        }
        let Some(bytes) = self.bytes.checked_add(size).filter(|bytes| *bytes <= self.limits.bytes) else {
            self.leave_out(path, TOO_LARGE);
            return Ok(());
        };
        let executable = entry.header().mode()? & 0o111 != 0;
        let mut file = match self.new.create(path, executable) {
            // Two patterns can lead to one name: a relative and an absolute one. A name of one can also be a
            // directory of the other.
            Err(error) if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory) => {
                self.leave_out(path, "another file has that name");
                return Ok(());
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidFilename => {
                self.leave_out(path, "its name is too long, or not text");
                return Ok(());
            }
            created => created?,
        };
        self.bytes = bytes;
        copy_sparse(entry, &mut file)?;
        #[cfg(feature = "junit")]
        if let Err(error) = super::junit::add_file(&mut self.collected.tests, &mut file, (path, size), self.mask)? {
            let text = self.mask.text(&format!("the output {path:?} is not read as test results: {error}"));
            tracing::warn!(step = &*self.place.step, "{text}");
        }
        // The name is text.
        let key = self.mask.text(&self.shown.join(path).to_string_lossy());
        let artifact = ArtifactRef { key, mime: media_type(path).to_owned(), size_bytes: size };
        self.collected.artifacts.push(artifact);
        Ok(())
    }

    fn leave_out(&mut self, path: &Path, why: &str) {
        self.left_out = self.left_out.saturating_add(1);
        if self.left_out <= MOST_WARNINGS {
            let path = self.mask.text(&format!("{path:?}"));
            tracing::warn!(step = &*self.place.step, "the output {path} is left out: {why}");
        }
    }

    /// Puts the files in their place.
    pub(super) fn finish(self) -> io::Result<Collected> {
        let more = self.left_out.saturating_sub(MOST_WARNINGS);
        if more > 0 {
            tracing::warn!(step = &*self.place.step, "{more} more outputs are left out");
        }
        self.new.put_in_place()?;
        Ok(self.collected)
    }
}

const TOO_MANY: &str = "a step has at most 10000 outputs, and those that follow are left out, too";
const TOO_LARGE: &str =
    "it cannot be read, the outputs are larger than 4 GiB, or a million names have been compared with the patterns";

/// Returns whether a path has plain names, which are text, and not too many.
fn is_plain(path: &Path) -> bool {
    let plain = path.components().all(|part| matches!(part, Component::Normal(name) if name.to_str().is_some()));
    plain && (1..=MOST_NAMES).contains(&path.components().count())
}

/// Returns whether git may find a repository with this file: within `.git`, or in a bare repository, which
/// needs a file `HEAD`. Some filesystems do not distinguish case.
fn is_gits(path: &Path) -> bool {
    let is = |name: &std::ffi::OsStr, gits: &str| name.to_str().is_some_and(|name| name.eq_ignore_ascii_case(gits));
    path.iter().any(|name| is(name, ".git")) || path.file_name().is_some_and(|name| is(name, "HEAD"))
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

    static MASK: Mask = Mask(None);

    fn place(source_dir: &Path) -> OutputPlace {
        OutputPlace { source_dir: source_dir.to_owned(), pipeline: "ci".into(), step: "test".into() }
    }

    fn stream(top: &Path, pattern: &str) -> Vec<u8> {
        let mut stream = Vec::new();
        pack_matching(top, &PathPatterns::parse([pattern]).unwrap(), LIMITS, &mut stream).unwrap();
        stream
    }

    fn received(place: &OutputPlace, stream: &[u8]) -> io::Result<Collected> {
        let mut receiving = Receiving::new(place, &MASK)?;
        receiving.add(stream, StreamNames { workdir: "/workspace", only: None })?;
        receiving.finish()
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
        let first = received(&place(&source), &stream(&step, "**")).unwrap();
        let keys: Vec<_> = first.artifacts.iter().map(|it| (&*it.key, &*it.mime, it.size_bytes)).collect();
        assert_eq!(
            keys,
            [
                (".hm/out/ci/test/broken.xml", "application/xml", 20),
                (".hm/out/ci/test/r.xml", "application/xml", 43),
                (".hm/out/ci/test/sub/new\nline.txt", "text/plain", 4),
            ]
        );
        assert_eq!(first.tests.map(|results| results.tests), cfg!(feature = "junit").then_some(1));
        let out = source.join(".hm/out/ci/test");
        assert_eq!(fs::read_to_string(out.join("sub/new\nline.txt")).unwrap(), "text");
        // An incomplete stream changes nothing.
        let torn = stream(&step, "**");
        assert!(received(&place(&source), &torn[..600]).is_err());
        assert_eq!(fs::read_dir(&out).unwrap().count(), 3);
        let second = received(&place(&source), &stream(&step, "none")).unwrap();
        assert_eq!((second.artifacts, fs::read_dir(&out).unwrap().count()), (vec![], 0));
    }

    #[test]
    fn names_that_lead_elsewhere_are_left_out() {
        for name in ["../x", "/x", "a/../../x", "", "."] {
            assert!(!is_plain(Path::new(name)), "{name}");
        }
        assert!(is_plain(Path::new("a/b.c")));
        let gits = ["dist/.git/config", ".GIT", "a/.git", "bare/HEAD", "head"];
        assert_eq!(gits.map(|name| is_gits(Path::new(name))), [true; 5]);
        assert_eq!([".gitignore", "git/x", "HEAD.txt", "HEAD/x"].map(|name| is_gits(Path::new(name))), [false; 4]);
    }

    /// Makes an archive as daemons do: all of a directory, with its own name first.
    fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, kind, text) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o644);
            if *kind == EntryType::Symlink || *kind == EntryType::Link {
                header.set_size(0);
                tar.append_link(&mut header, name, text).unwrap();
            } else {
                header.set_size(text.len() as u64);
                // Not `append_data`, which refuses hostile names.
                header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
                header.set_cksum();
                tar.append(&header, text.as_bytes()).unwrap();
            }
        }
        tar.into_inner().unwrap()
    }

    #[test]
    fn of_an_archive_of_everything_only_what_matches_is_taken() {
        let source = tempfile::tempdir().unwrap();
        let (file, link, dir) = (EntryType::Regular, EntryType::Symlink, EntryType::Directory);
        let stream = archive(&[
            ("target/", dir, ""),
            ("target/a.xml", file, "<a/>"),
            ("target/b.txt", file, "no"),
            ("target/c.xml", link, "/etc/passwd"),
            ("target/d.xml", EntryType::Fifo, ""),
            ("target/e.xml", EntryType::Link, "target/a.xml"),
            ("target/../../f.xml", file, "<f/>"),
            ("target/all/g/h", file, "h"),
        ]);
        let patterns = PathPatterns::parse(["workspace/target/*.xml", "workspace/target/**/all"]).unwrap();
        let place = place(source.path());
        let mut receiving = Receiving::new(&place, &MASK).unwrap();
        let only = Some(Chosen { path: "workspace/target", patterns: &patterns });
        receiving.add(&stream[..], StreamNames { workdir: "/workspace", only }).unwrap();
        assert_eq!(receiving.left_out, 1, "the second name of a file");
        let keys: Vec<_> = receiving.finish().unwrap().artifacts.into_iter().map(|it| it.key).collect();
        assert_eq!(keys, [".hm/out/ci/test/target/a.xml", ".hm/out/ci/test/target/all/g/h"]);
    }

    #[test]
    fn files_of_other_steps_are_skipped() {
        let source = tempfile::tempdir().unwrap();
        let names = ["in/one", "in/one.txt", "in/two/a", "in/two/b/c", "in/twofold"];
        let entries = names.map(|name| (name, EntryType::Regular, "text"));
        let stream = archive(&entries);
        let patterns = PathPatterns::parse(["workspace/**"]).unwrap();
        let (place, inputs) = (place(source.path()), ["/workspace/one".into(), "/workspace/two".into()]);
        let mut receiving = Receiving::new(&place, &MASK).unwrap().without(&inputs);
        let only = Some(Chosen { path: "workspace", patterns: &patterns });
        receiving.add(&stream[..], StreamNames { workdir: "/workspace", only }).unwrap();
        let keys: Vec<_> = receiving.finish().unwrap().artifacts.into_iter().map(|it| it.key).collect();
        assert_eq!(keys, [".hm/out/ci/test/one.txt", ".hm/out/ci/test/twofold"]);
    }

    #[test]
    fn more_files_than_allowed_are_left_out_with_few_words() {
        let top = tempfile::tempdir().unwrap();
        let (step, source) = (top.path().join("step"), top.path().join("source"));
        fs::create_dir_all(step.join("workspace")).unwrap();
        fs::create_dir_all(&source).unwrap();
        for at in 0..50 {
            fs::write(step.join(format!("workspace/{at:05}")), "x").unwrap();
        }
        let (place, stream) = (place(&source), stream(&step, "**"));
        let names = StreamNames { workdir: "/workspace", only: None };
        // The sender may have other limits, or none.
        for (limits, files, left_out, kept) in [((20, 100), 21, 1, 20), ((100, 20), 50, 30, 20)] {
            let mut receiving = Receiving::new(&place, &MASK).unwrap();
            receiving.limits = PackLimits { files: limits.0, bytes: limits.1 };
            receiving.add(&stream[..], names).unwrap();
            assert_eq!((receiving.files, receiving.left_out), (files, left_out));
            assert_eq!(receiving.finish().unwrap().artifacts.len(), kept);
        }
    }
}
