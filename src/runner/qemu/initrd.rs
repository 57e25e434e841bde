//! The initial filesystem of a machine: the guest program, and modules. It is an archive in cpio's `newc`
//! format, as specified in the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`.

use std::{
    fs,
    io::{self, Write},
};

use super::programs::Programs;
use crate::guest;

const DIR: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const DEVICE: u32 = 0o020_600;

/// Writes the archive.
pub(super) fn write(programs: &Programs, out: impl Write) -> io::Result<()> {
    let mut archive = Archive { out, entries: 0, written: 0 };
    archive.entry("dev", DIR, (0, 0), &[])?;
    // A program that starts without streams opens the console first.
    archive.entry("dev/console", DEVICE, (5, 1), &[])?;
    archive.entry("dev/null", DEVICE, (1, 3), &[])?;
    archive.entry("init", PROGRAM, (0, 0), &programs.guest.bytes()?)?;
    archive.entry(guest::MODULES, DIR, (0, 0), &[])?;
    for (index, path) in programs.kernel.modules.iter().enumerate() {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("module.ko");
        archive.entry(&format!("{}/{index:03}-{name}", guest::MODULES), FILE, (0, 0), &fs::read(path)?)?;
    }
    archive.entry("TRAILER!!!", 0, (0, 0), &[])?;
    archive.out.flush()
}

struct Archive<W> {
    out: W,
    entries: u32,
    written: usize,
}

impl<W: Write> Archive<W> {
    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> io::Result<()> {
        self.entries += 1;
        let too_large = |error| io::Error::new(io::ErrorKind::FileTooLarge, error);
        let (size, length) = (content.len().try_into().map_err(too_large)?, name.len() + 1);
        let length = length.try_into().map_err(too_large)?;
        let (major, minor) = device;
        // Inode, mode, owner, group, links, time, size, device, number of a device node, length of the name,
        // checksum.
        let numbers: [u32; 13] = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, major, minor, length, 0];
        let header = numbers.iter().fold(String::from("070701"), |header, number| format!("{header}{number:08x}"));
        self.put(header.as_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.pad()?;
        self.put(content)?;
        self.pad()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len();
        self.out.write_all(bytes)
    }

    fn pad(&mut self) -> io::Result<()> {
        let missing = self.written.next_multiple_of(4) - self.written;
        self.put(&[0; 3][..missing])
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn cpio_reads_what_is_written() {
        let mut out = Vec::new();
        let mut archive = Archive { out: &mut out, entries: 0, written: 0 };
        archive.entry("dir", DIR, (0, 0), &[]).unwrap();
        archive.entry("dir/file", FILE, (0, 0), b"hello").unwrap();
        archive.entry("TRAILER!!!", 0, (0, 0), &[]).unwrap();
        assert_eq!(out.len() % 4, 0);
        // The header is checked in any case, and with cpio (busybox has one) if it is installed.
        assert!(out.starts_with(b"070701000000010000"));
        let Ok(mut cpio) =
            Command::new("cpio").args(["-t", "--quiet"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()
        else {
            return;
        };
        cpio.stdin.take().unwrap().write_all(&out).unwrap();
        let listed = cpio.wait_with_output().unwrap();
        assert_eq!(String::from_utf8(listed.stdout).unwrap(), "dir\ndir/file\n");
    }
}
