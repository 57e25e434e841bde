//! What an ELF file says about the machines that it runs on. The build script has this file, too.

use std::io::{self, Read, Seek, SeekFrom};

/// The segment of an ELF file that names the dynamic linker.
const PT_INTERP: u32 = 3;
/// The maximum number of segments. No linker writes more.
const MAX_SEGMENTS: u16 = 1024;

/// Returns whether a 64-bit ELF file needs no dynamic linker, or `None` for other files.
pub(crate) fn is_static(mut file: impl Read + Seek) -> io::Result<Option<bool>> {
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
}
