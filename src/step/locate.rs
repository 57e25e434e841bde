//! Finding the `hm-step` executable that travels.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

/// Names the executable, over every other way but the caller's own word.
pub const STEP_VARIABLE: &str = "HM_STEP";

/// What it is called, beside `hm`.
const NAME: &str = "hm-step";

/// The segment of an ELF file that names the dynamic linker.
const PT_INTERP: u32 = 3;
/// More segments than this no linker writes.
const MAX_SEGMENTS: u16 = 1024;

/// An `hm-step` for other machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepProgram {
    /// Where it is.
    pub path: PathBuf,
    /// Whether it runs on machines that have no libraries. One that is not runs where the libraries of this machine are.
    pub is_static: bool,
}

/// Why there is no `hm-step`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NoStepProgram {
    /// Nobody names one, and there is none beside this program.
    #[error("found no hm-step: build one (`just hm-step`), and put it beside hm or name it by {STEP_VARIABLE}")]
    Missing,
    /// It can't be read.
    #[error("failed to read {}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no program for machines of today.
    #[error("{} is no 64-bit ELF file: build it with `just hm-step`", path.display())]
    NoProgram {
        /// Which.
        path: PathBuf,
    },
}

/// Finds `hm-step`: as given, as the environment says, or beside this executable.
///
/// # Errors
/// Where there is none, and where what is named is none.
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

/// Whether a 64-bit ELF file asks for no dynamic linker. `None` where it is no such file.
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

    /// A little ELF file with segments of these kinds.
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
        // The test is no `hm-step`, and linked like every program of this machine.
        let this = std::env::current_exe().unwrap();
        assert_eq!(locate(Some(&this)).unwrap().path, this);
    }
}
