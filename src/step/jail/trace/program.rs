//! The files that the kernel opens by itself when it executes a program: interpreters and ELF loaders.

use std::os::fd::OwnedFd;

use rustix::io::pread;

/// The bytes of a file that the kernel examines for `#!`.
const HEAD_BYTES: usize = 256;
/// The longest path of a loader.
const MAX_LOADER_BYTES: u64 = 4096;
/// The most program headers that are examined.
const MAX_HEADERS: u64 = 1024;

const LOADER: u32 = 3;

/// What a program needs besides itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Needs {
    Nothing,
    /// The interpreter of a script.
    Interpreter(Vec<u8>),
    /// The loader of a dynamic program.
    Loader(Vec<u8>),
}

/// A program, as far as the kernel examines it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) needs: Needs,
    /// Whether it makes system calls of another architecture.
    pub(super) is_foreign: bool,
    /// Whether only an interpreter that the machine has registered could run it.
    pub(super) is_unknown: bool,
}

/// Examines a program.
pub(super) fn examine(file: &OwnedFd) -> Program {
    let mut head = [0; HEAD_BYTES];
    let read = pread(file, &mut head[..], 0).unwrap_or(0);
    let head = &head[..read];
    let plain = |needs| Program { needs, is_foreign: false, is_unknown: false };
    if head.starts_with(b"#!") {
        return plain(interpreter(&head[2..]).map_or(Needs::Nothing, Needs::Interpreter));
    }
    if head.starts_with(b"\x7fELF") {
        let is_native_machine = head.get(18..20) == Some(&MACHINE.to_le_bytes());
        let is_64 = head.get(4) == Some(&2);
        let needs = loader(file, head, is_64).map_or(Needs::Nothing, Needs::Loader);
        let is_compat_machine = COMPAT_MACHINE.is_some_and(|machine| head.get(18..20) == Some(&machine.to_le_bytes()));
        return Program {
            needs,
            is_foreign: !is_64 || !is_native_machine,
            is_unknown: !is_native_machine && !is_compat_machine,
        };
    }
    // A shell takes a text for a script, and opens it itself.
    Program { is_unknown: head.contains(&0), ..plain(Needs::Nothing) }
}

/// This architecture, as ELF names it.
const MACHINE: u16 = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
/// The 32-bit architecture whose programs this one can run.
const COMPAT_MACHINE: Option<u16> = if cfg!(target_arch = "x86_64") { Some(3) } else { None };

/// Returns the interpreter of a script's first line.
fn interpreter(line: &[u8]) -> Option<Vec<u8>> {
    let line = line.split(|byte| *byte == b'\n').next()?;
    let start = line.iter().position(|byte| !matches!(byte, b' ' | b'\t'))?;
    let name = line[start..].split(|byte| matches!(byte, b' ' | b'\t' | 0)).next()?;
    (!name.is_empty()).then(|| name.to_vec())
}

/// Returns the loader of an ELF program.
fn loader(file: &OwnedFd, head: &[u8], is_64: bool) -> Option<Vec<u8>> {
    let (table, size, count) = if is_64 {
        (number(head, 32, 8)?, number(head, 54, 2)?, number(head, 56, 2)?)
    } else {
        (number(head, 28, 4)?, number(head, 42, 2)?, number(head, 44, 2)?)
    };
    let (offset_at, length_at, bytes) = if is_64 { (8, 32, 56) } else { (4, 16, 32) };
    if size < bytes as u64 {
        return None;
    }
    for index in 0..count.min(MAX_HEADERS) {
        let mut header = [0; 56];
        let at = table.checked_add(index.checked_mul(size)?)?;
        if pread(file, &mut header[..bytes], at).ok()? < bytes {
            return None;
        }
        if number(&header, 0, 4)? == u64::from(LOADER) {
            let (offset, length) = if is_64 {
                (number(&header, offset_at, 8)?, number(&header, length_at, 8)?)
            } else {
                (number(&header, offset_at, 4)?, number(&header, length_at, 4)?)
            };
            let mut path = vec![0; usize::try_from(length.min(MAX_LOADER_BYTES)).ok()?];
            let read = pread(file, &mut path[..], offset).ok()?;
            path.truncate(read);
            let end = path.iter().position(|byte| *byte == 0).unwrap_or(path.len());
            path.truncate(end);
            return (!path.is_empty()).then_some(path);
        }
    }
    None
}

/// Returns a little-endian number of at most eight bytes.
fn number(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    let mut number = [0; 8];
    number[..length].copy_from_slice(bytes.get(at..at + length)?);
    Some(u64::from_le_bytes(number))
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write};

    use super::*;

    fn file(content: &[u8]) -> OwnedFd {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file.into()
    }

    #[test]
    fn scripts_have_interpreters() {
        for (content, name) in [
            (&b"#!/bin/sh\necho"[..], &b"/bin/sh"[..]),
            (b"#! \t/usr/bin/env python3\n", b"/usr/bin/env"),
            (b"#!rel/sh -e", b"rel/sh"),
        ] {
            assert_eq!(examine(&file(content)).needs, Needs::Interpreter(name.to_vec()));
        }
        assert_eq!(examine(&file(b"#!\n/bin/sh")).needs, Needs::Nothing);
    }

    #[test]
    fn this_program_has_the_loader_that_it_was_linked_with() {
        let program = examine(&File::open("/proc/self/exe").unwrap().into());
        assert!(!program.is_foreign && !program.is_unknown, "{program:?}");
        if let Needs::Loader(path) = program.needs {
            assert!(path.starts_with(b"/"), "{path:?}");
        }
    }

    #[test]
    fn headers_that_lead_outside_of_the_file_are_ignored() {
        let mut head = vec![0_u8; 64];
        head[..5].copy_from_slice(b"\x7fELF\x02");
        head[18..20].copy_from_slice(&MACHINE.to_le_bytes());
        head[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        head[54..56].copy_from_slice(&56_u16.to_le_bytes());
        head[56..58].copy_from_slice(&u16::MAX.to_le_bytes());
        assert_eq!(examine(&file(&head)).needs, Needs::Nothing);
        for length in 0..64 {
            examine(&file(&head[..length]));
        }
    }
}
