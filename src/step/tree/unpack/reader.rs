//! Reads a tar stream: members with their names, attributes and data.
//!
//! The `tar` crate parses headers. Members are assembled here, because an untrusted archive must not make
//! this process store an extended header of any size, and because the values in one (extended attributes) may
//! contain any bytes.

use std::{
    io::{self, BufReader, Read},
    ops::Range,
};

use tar::{EntryType, Header};

use super::{
    error::Fault,
    sparse::{self, Map, Piece},
    stream::Measured,
};

const BLOCK_BYTES: u64 = 512;
/// The positions of the numbers in a header.
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MAJOR: Range<usize> = 329..337;
const MINOR: Range<usize> = 337..345;
/// The maximum size of an extended header, or of a long name. A legitimate archive has no larger one.
const MAX_EXTENDED_BYTES: u64 = 1 << 20;

/// A member of an archive, without its data.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) mode: u32,
    /// Seconds and nanoseconds.
    pub(super) mtime: (i64, i64),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Debug)]
pub(super) enum Kind {
    File {
        bytes: u64,
        /// The parts of a sparse file for which the archive has data; the rest of the file is holes.
        pieces: Option<Vec<Piece>>,
    },
    Directory,
    Symlink {
        target: Vec<u8>,
    },
    HardLink {
        target: Vec<u8>,
    },
    Device {
        is_block: bool,
        major: u32,
        minor: u32,
    },
    Fifo,
    /// A member that describes the archive.
    Skipped,
}

/// Reads members one after another.
pub(super) struct Reader<R> {
    stream: BufReader<Measured<R>>,
    /// The number of unread bytes of the current member's data.
    unread: u64,
    padding: u64,
    /// The name of the last member that was read, for errors.
    name: Vec<u8>,
}

/// The data of the current member.
pub(super) struct Data<'a, R>(&'a mut Reader<R>);

/// The content of the extended headers before a member.
#[derive(Debug, Default)]
struct Extended {
    pax: Pax,
    /// Long names in GNU tar's format. They take precedence over those of pax headers, as in Go's reader.
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    any: bool,
}

/// The records of a pax header.
#[derive(Debug, Default)]
struct Pax {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, i64)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: sparse::Records,
}

impl<R: Read> Reader<R> {
    pub(super) fn new(stream: Measured<R>) -> Self {
        Self { stream: BufReader::with_capacity(1 << 16, stream), unread: 0, padding: 0, name: Vec::new() }
    }

    /// Reads the next member. Returns `None` at the archive's end. A fault comes with the name of the
    /// affected member, or of the previous one if the archive ends between two members.
    pub(super) fn next(&mut self) -> Result<Option<Member>, (Vec<u8>, Fault)> {
        self.advance().map_err(|fault| (std::mem::take(&mut self.name), fault))
    }

    fn advance(&mut self) -> Result<Option<Member>, Fault> {
        let mut extended = Extended::default();
        loop {
            self.skip(self.unread.saturating_add(self.padding))?;
            (self.unread, self.padding) = (0, 0);
            let Some(header) = self.header()? else {
                return match extended.any {
                    true => Err(Fault::damaged("it ends with an extended header")),
                    false => Ok(None),
                };
            };
            self.name = extended.path(&header);
            let size = field(&header, SIZE, header.entry_size())?;
            match header.entry_type() {
                // Only the last one counts.
                EntryType::XHeader => extended.pax = Pax::read(&self.extended(size)?)?,
                EntryType::GNULongName => extended.long_path = Some(name(self.extended(size)?)),
                EntryType::GNULongLink => extended.long_link = Some(name(self.extended(size)?)),
                _ => return self.member(&header, size, extended).map(Some),
            }
            extended.any = true;
        }
    }

    /// Returns the data of the member that [`next`](Self::next) returned last.
    pub(super) fn data(&mut self) -> Data<'_, R> {
        Data(self)
    }

    pub(super) fn into_inner(self) -> Measured<R> {
        // The data left in the buffer has been hashed.
        self.stream.into_inner()
    }

    fn member(&mut self, header: &Header, size: u64, mut extended: Extended) -> Result<Member, Fault> {
        let path = self.name.clone();
        let size = extended.pax.size.unwrap_or(size);
        // Only files and members that describe the archive have data. The size of other members is ignored.
        self.unread = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse | EntryType::XGlobalHeader => size,
            _ => 0,
        };
        let map = match header.entry_type() {
            EntryType::GNUSparse => Some(Map::of_header(header, || self.block())?),
            EntryType::Regular | EntryType::Continuous => self.sparse_map(std::mem::take(&mut extended.pax.sparse))?,
            _ => None,
        };
        let end = self.unread.checked_next_multiple_of(BLOCK_BYTES);
        self.padding = end.ok_or_else(|| Fault::damaged("a size is too large"))? - self.unread;
        let device = |is_block| {
            let major = field(header, MAJOR, header.device_major())?;
            let minor = field(header, MINOR, header.device_minor())?;
            Ok(Kind::Device { is_block, major: major.unwrap_or(0), minor: minor.unwrap_or(0) })
        };
        let kind = match header.entry_type() {
            // Old archives mark a directory by its name.
            EntryType::Regular | EntryType::Continuous if path.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => match map {
                Some(map) => Kind::File { bytes: map.size, pieces: Some(map.pieces(self.unread)?) },
                None => Kind::File { bytes: size, pieces: None },
            },
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink { target: extended.link(header) },
            EntryType::Link => Kind::HardLink { target: extended.link(header) },
            EntryType::Char => device(false)?,
            EntryType::Block => device(true)?,
            EntryType::Fifo => Kind::Fifo,
            EntryType::XGlobalHeader => Kind::Skipped,
            other => {
                return Err(Fault::refused(format!("it has the unknown type {:?}", char::from(other.as_byte()))));
            }
        };
        let seconds = || header.mtime().ok().and_then(|seconds| i64::try_from(seconds).ok());
        let pax = extended.pax;
        Ok(Member {
            path,
            kind,
            uid: pax.uid.map_or_else(|| field(header, UID, header.uid()), Ok)?,
            gid: pax.gid.map_or_else(|| field(header, GID, header.gid()), Ok)?,
            mode: field(header, MODE, header.mode())? & 0o7777,
            mtime: pax.mtime.or_else(|| Some((seconds()?, 0))).unwrap_or((0, 0)),
            xattrs: pax.xattrs,
        })
    }

    /// Returns the map of a file that is sparse according to its pax records. If the map is at the beginning
    /// of the data, reads it from there.
    fn sparse_map(&mut self, records: sparse::Records) -> Result<Option<Map>, Fault> {
        if !records.is_in_data()? {
            return records.map();
        }
        let map = records.read_map(|| {
            self.unread = self.unread.checked_sub(BLOCK_BYTES).ok_or_else(sparse::malformed)?;
            self.block()
        });
        map.map(Some)
    }

    /// Reads one block of the archive.
    fn block(&mut self) -> Result<sparse::Block, Fault> {
        let mut block = [0; BLOCK_BYTES as usize];
        self.stream.read_exact(&mut block).map_err(|error| Fault::reading(&error))?;
        Ok(block)
    }

    /// Returns the next header, or `None` at a block of zeros and at the end of the stream.
    fn header(&mut self) -> Result<Option<Header>, Fault> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut filled = 0;
        while filled < block.len() {
            match self.stream.read(&mut block[filled..]).map_err(|error| Fault::reading(&error))? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(self.at_header("is truncated")),
                read => filled += read,
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum = block[..148].iter().chain(&block[156..]).map(|byte| u32::from(*byte)).sum::<u32>() + 8 * 32;
        match header.cksum() {
            Ok(expected) if expected == sum => Ok(Some(header)),
            _ => Err(self.at_header("has a wrong checksum")),
        }
    }

    /// Returns a fault of the header that is being read, for use with the name of the member before it.
    fn at_header(&self, what: &str) -> Fault {
        let which = if self.name.is_empty() { "its first header" } else { "the header after it" };
        Fault::damaged(format!("{which} {what}"))
    }

    /// Returns the content of an extended header.
    fn extended(&mut self, size: u64) -> Result<Vec<u8>, Fault> {
        if size > MAX_EXTENDED_BYTES {
            return Err(Fault::refused(format!("its extended header has {size} bytes")));
        }
        let mut content = vec![0; usize::try_from(size).unwrap_or(0)];
        self.stream.read_exact(&mut content).map_err(|error| Fault::reading(&error))?;
        self.skip(size.next_multiple_of(BLOCK_BYTES) - size)?;
        Ok(content)
    }

    fn skip(&mut self, bytes: u64) -> Result<(), Fault> {
        let skipped =
            io::copy(&mut (&mut self.stream).take(bytes), &mut io::sink()).map_err(|error| Fault::reading(&error))?;
        if skipped < bytes { Err(Fault::damaged("it ends in the middle of a file")) } else { Ok(()) }
    }
}

impl<R: Read> Read for Data<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.0.unread).unwrap_or(usize::MAX));
        let read = self.0.stream.read(&mut buffer[..most])?;
        if read == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.0.unread -= read as u64;
        Ok(read)
    }
}

impl Extended {
    /// Returns the name of the member with this header.
    fn path(&self, header: &Header) -> Vec<u8> {
        let long = self.pax.sparse.name().or(self.long_path.as_ref()).or(self.pax.path.as_ref());
        long.cloned().unwrap_or_else(|| header.path_bytes().into_owned())
    }

    /// Returns the target of the link with this header.
    fn link(&self, header: &Header) -> Vec<u8> {
        let long = self.long_link.as_ref().or(self.pax.link.as_ref());
        let short = || header.link_name_bytes().map(std::borrow::Cow::into_owned).unwrap_or_default();
        long.cloned().unwrap_or_else(short)
    }
}

impl Pax {
    /// Reads records of the form `LENGTH KEY=VALUE\n`. A value may contain any bytes.
    fn read(mut records: &[u8]) -> Result<Self, Fault> {
        let malformed = || Fault::damaged("an extended header is malformed");
        let mut pax = Self::default();
        while !records.is_empty() && records[0] != 0 {
            let space = records.iter().take(21).position(|byte| *byte == b' ').ok_or_else(malformed)?;
            let length: usize = number(&records[..space]).ok_or_else(malformed)?;
            let record = records.get(space + 1..length).and_then(|it| it.strip_suffix(b"\n")).ok_or_else(malformed)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(malformed)?;
            pax.set(&record[..equals], &record[equals + 1..]).ok_or_else(malformed)?;
            records = &records[length..];
        }
        Ok(pax)
    }

    /// Sets a key. Returns `None` if the value is not valid for it.
    fn set(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            self.xattrs.push((name.to_vec(), value.to_vec()));
            return Some(());
        }
        // An empty value means that the header's value applies.
        if value.is_empty() {
            return Some(());
        }
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number(value)?),
            b"uid" => self.uid = Some(number(value)?),
            b"gid" => self.gid = Some(number(value)?),
            b"mtime" => self.mtime = Some(time(value)?),
            _ => {
                if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.set(key, value)?;
                }
            }
        }
        Some(())
    }
}

/// Returns a number of a header. Some tools leave out numbers that are zero.
fn field<T: Default>(header: &Header, at: Range<usize>, number: io::Result<T>) -> Result<T, Fault> {
    match number {
        Err(_) if header.as_bytes()[at].iter().all(|byte| matches!(byte, 0 | b' ')) => Ok(T::default()),
        number => number.map_err(|error| Fault::reading(&error)),
    }
}

pub(super) fn number<T: std::str::FromStr>(digits: &[u8]) -> Option<T> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Cuts a long name at its first zero byte.
fn name(mut content: Vec<u8>) -> Vec<u8> {
    content.truncate(content.iter().position(|byte| *byte == 0).unwrap_or(content.len()));
    content
}

/// Parses a time. `-1.25` is 1.25 seconds before the epoch: seconds are rounded down, and nanoseconds count
/// up.
fn time(text: &[u8]) -> Option<(i64, i64)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: i64 = digits.parse().ok()?;
    match whole.starts_with('-') && nanoseconds > 0 {
        true => Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds)),
        false => Some((seconds, nanoseconds)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_fractions_and_may_lie_before_the_epoch() {
        for (text, expected) in [
            ("1", Some((1, 0))),
            ("1.5", Some((1, 500_000_000))),
            ("1.123456789999", Some((1, 123_456_789))),
            ("-1.25", Some((-2, 750_000_000))),
            ("-0.5", Some((-1, 500_000_000))),
            ("1.x", None),
            ("", None),
        ] {
            assert_eq!(time(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn a_record_may_have_any_bytes_and_no_wrong_length() {
        let pax = Pax::read(b"26 SCHILY.xattr.user.a=\n\n\n31 mtime=12345678901.123456789\n8 path=\n").unwrap();
        assert_eq!(pax.path, None, "a value that is empty says nothing");
        assert_eq!(pax.xattrs, [(b"user.a".to_vec(), b"\n\n".to_vec())]);
        assert_eq!(pax.mtime, Some((12_345_678_901, 123_456_789)));
        for wrong in
            [&b"5 a=b\n"[..], b"7 a=b\n", b"x a=b\n", b"6 ab\n", b"99999999999999999999 a=b\n", b"2 ", b"0 a=b\n"]
        {
            assert!(Pax::read(wrong).is_err(), "{wrong:?}");
        }
    }
}
