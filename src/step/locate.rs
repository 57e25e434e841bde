//! Locates the `hm-step` executable for other machines.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

/// The environment variable that names the executable. Only the caller's path takes precedence over it.
pub const STEP_VARIABLE: &str = "HM_STEP";

/// The file name of the executable in the directory of `hm`.
const NAME: &str = "hm-step";

/// The segment of an ELF file that names the dynamic linker.
const PT_INTERP: u32 = 3;
/// The maximum number of segments. No linker writes more.
const MAX_SEGMENTS: u16 = 1024;

/// An `hm-step` executable for other machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepProgram {
    /// The path of the executable.
    pub path: PathBuf,
    /// Whether it runs on machines without libraries. If not, it runs on machines with the same libraries as
    /// this one.
    pub is_static: bool,
}

/// The reason why there is no `hm-step`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NoStepProgram {
    /// No path is given, and there is none in the directory of this program.
    #[error("hm-step not found: build it with `just hm-step`, and put it next to hm or set {STEP_VARIABLE}")]
    Missing,
    /// The file cannot be read.
    #[error("failed to read {}", path.display())]
    Unreadable {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file is not a 64-bit ELF file.
    #[error("{} is not a 64-bit ELF file: build it with `just hm-step`", path.display())]
    NoProgram {
        /// The path.
        path: PathBuf,
    },
}

/// Locates `hm-step`: at the given path, at the path in the environment, or in the directory of this
/// executable.
///
/// # Errors
/// Returns an error if there is none, or if the file is not an executable.
pub fn locate(given: Option<&Path>) -> Result<StepProgram, NoStepProgram> {
    let named = || std::env::var_os(STEP_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
    let beside = || {
        let beside = std::env::current_exe().ok()?.parent()?.join(NAME);
        beside.is_file().then_some(beside)
    };
    let path = given.map(PathBuf::from).or_else(named).or_else(beside).ok_or(NoStepProgram::Missing)?;
    match File::open(&path).and_then(is_static) {
        Ok(Some(is_static)) => Ok(StepProgram { path, is_static }),
        Ok(None) => Err(NoStepProgram::NoProgram { path }),
        Err(source) => Err(NoStepProgram::Unreadable { path, source }),
    }
}

/// Returns whether a 64-bit ELF file needs no dynamic linker, or `None` for other files.
fn is_static(mut file: impl Read + Seek) -> io::Result<Option<bool>> {
    let mut header = [0; 64];
    match file.read_exact(&mut header) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let is_little = match header[..6] {
        [0x7f, b'E', b'L', b'F', 2, 1] => true,
        [0x7f, b'E', b'L', b'F', 2, 2] => false,
        _ => return Ok(None),
    };
    let number = |bytes: &[u8]| {
        let add = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        if is_little { bytes.iter().rev().fold(0, add) } else { bytes.iter().fold(0, add) }
    };
    let (table, size, count) = (number(&header[32..40]), number(&header[54..56]), number(&header[56..58]));
    if size < 4 || count == 0 || count > u64::from(MAX_SEGMENTS) {
        return Ok(None);
    }
    for index in 0..count {
        let Some(at) = table.checked_add(index * size) else { return Ok(None) };
        let mut kind = [0; 4];
        file.seek(SeekFrom::Start(at))?;
        match file.read_exact(&mut kind) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        if number(&kind) == u64::from(PT_INTERP) {
            return Ok(Some(false));
        }
    }
    Ok(Some(true))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// Makes a minimal ELF file with segments of these kinds.
    fn elf(kinds: &[u32]) -> Vec<u8> {
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[32] = 64;
        file[54] = 56;
        file[56] = u8::try_from(kinds.len()).unwrap();
        for kind in kinds {
            file.extend_from_slice(&kind.to_le_bytes());
            file.extend_from_slice(&[0; 52]);
        }
        file
    }

    #[test]
    fn who_asks_for_a_linker_is_not_static() {
        let is_static = |file: Vec<u8>| is_static(Cursor::new(file)).unwrap();
        assert_eq!(is_static(elf(&[1, 6, 1])), Some(true));
        assert_eq!(is_static(elf(&[6, PT_INTERP, 1])), Some(false));
        assert_eq!(is_static(elf(&[])), None);
        assert_eq!(is_static(elf(&[1, 1])[..122].to_vec()), None, "cut");
        assert_eq!(is_static(b"#!/bin/sh\n".to_vec()), None);
        assert_eq!(is_static([&b"#!/bin/sh\n"[..], &[b'x'; 200]].concat()), None);
    }

    #[test]
    fn what_is_given_is_what_counts() {
        let error = locate(Some(Path::new("/nowhere/hm-step"))).unwrap_err();
        assert!(matches!(&error, NoStepProgram::Unreadable { .. }), "{error}");
        let error = locate(Some(Path::new("/proc/self/status"))).unwrap_err();
        assert!(error.to_string().contains("just hm-step"), "{error}");
        // The test is not an `hm-step`, but it is linked like every program of this machine.
        let this = std::env::current_exe().unwrap();
        assert_eq!(locate(Some(&this)).unwrap().path, this);
    }
}
