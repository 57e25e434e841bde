//! Sparse files in archives: the parts of a file for which the archive has data.
//!
//! GNU tar has four formats: fields of a header of the type `S`, and pax records of the versions 0.0, 0.1 and
//! 1.0. Version 1.0 has its map at the beginning of the data.

use tar::{GnuExtSparseHeader, GnuSparseHeader, Header};

use super::{error::Fault, reader::number};

/// The maximum size of a map. A legitimate archive has no larger one.
const MAX_MAP_BYTES: usize = 1 << 20;

pub(super) type Block = [u8; 512];

/// A part of a file for which the archive has data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// The layout of a sparse file according to the archive.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Map {
    /// The size of the whole file, with its holes.
    pub(super) size: u64,
    /// Alternating offsets and lengths.
    numbers: Vec<u64>,
}

/// The pax records whose names begin with `GNU.sparse.`.
#[derive(Debug, Default)]
pub(super) struct Records {
    name: Option<Vec<u8>>,
    major: Option<u32>,
    minor: Option<u32>,
    size: Option<u64>,
    real_size: Option<u64>,
    numbers: Option<Vec<u64>>,
}

pub(super) fn malformed() -> Fault {
    Fault::damaged("the map of a sparse file is malformed")
}

impl Map {
    /// Reads the map in a header of the type `S`; `next` reads the blocks that follow.
    pub(super) fn of_header(header: &Header, mut next: impl FnMut() -> Result<Block, Fault>) -> Result<Self, Fault> {
        let gnu = header.as_gnu().ok_or_else(malformed)?;
        let size = gnu.real_size().map_err(|_| malformed())?;
        let mut map = Self { size, numbers: Vec::new() };
        map.push(&gnu.sparse)?;
        let mut has_more = gnu.is_extended();
        let mut bytes = 0;
        while has_more {
            bytes += size_of::<Block>();
            if bytes > MAX_MAP_BYTES {
                return Err(too_large());
            }
            let mut more = GnuExtSparseHeader::new();
            more.as_mut_bytes().copy_from_slice(&next()?);
            map.push(more.sparse())?;
            has_more = more.is_extended();
        }
        Ok(map)
    }

    fn push(&mut self, entries: &[GnuSparseHeader]) -> Result<(), Fault> {
        for entry in entries.iter().take_while(|entry| !entry.is_empty()) {
            let (Ok(offset), Ok(bytes)) = (entry.offset(), entry.length()) else { return Err(malformed()) };
            self.numbers.extend([offset, bytes]);
        }
        Ok(())
    }

    /// Returns the parts of the file for which there are `stored` bytes of data. They are in order, and
    /// within the file.
    pub(super) fn pieces(self, stored: u64) -> Result<Vec<Piece>, Fault> {
        if !self.numbers.len().is_multiple_of(2) {
            return Err(malformed());
        }
        let (mut end, mut sum) = (0_u64, 0_u64);
        let pieces = self.numbers.chunks_exact(2).map(|pair| {
            let piece = Piece { offset: pair[0], bytes: pair[1] };
            let is_next = piece.offset >= end;
            end = piece.offset.checked_add(piece.bytes).filter(|end| is_next && *end <= self.size)?;
            sum = sum.checked_add(piece.bytes)?;
            Some(piece)
        });
        let pieces = pieces.collect::<Option<Vec<_>>>().ok_or_else(malformed)?;
        if sum != stored {
            return Err(Fault::damaged(format!("the map of a sparse file has {sum} bytes, but the file has {stored}")));
        }
        Ok(pieces)
    }
}

impl Records {
    /// Stores a record. Returns `None` if the value is invalid for the key.
    pub(super) fn set(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"name" => self.name = Some(value.to_vec()),
            b"major" => self.major = Some(number(value)?),
            b"minor" => self.minor = Some(number(value)?),
            b"size" => self.size = Some(number(value)?),
            b"realsize" => self.real_size = Some(number(value)?),
            b"map" => self.numbers = Some(value.split(|byte| *byte == b',').map(number).collect::<Option<_>>()?),
            // They alternate, with one pair for each part.
            b"offset" | b"numbytes" => {
                let numbers = self.numbers.get_or_insert_default();
                if numbers.len().is_multiple_of(2) != (key == b"offset") {
                    return None;
                }
                numbers.push(number(value)?);
            }
            _ => {}
        }
        Some(())
    }

    /// Returns the name of the file, if the archive stores it under another name for programs that do not
    /// know this format.
    pub(super) fn name(&self) -> Option<&Vec<u8>> {
        self.name.as_ref()
    }

    /// Returns whether the map is at the beginning of the data.
    pub(super) fn is_in_data(&self) -> Result<bool, Fault> {
        match (self.major, self.minor) {
            (None, None) | (Some(0), Some(0 | 1)) => Ok(false),
            (Some(1), Some(0)) => Ok(true),
            (major, minor) => {
                let (major, minor) = (major.unwrap_or(0), minor.unwrap_or(0));
                Err(Fault::refused(format!("it is a sparse file of unknown version {major}.{minor}")))
            }
        }
    }

    /// Returns the map in the records, or `None` if the file is not sparse.
    pub(super) fn map(self) -> Result<Option<Map>, Fault> {
        let Some(numbers) = self.numbers else { return Ok(None) };
        let size = self.size.or(self.real_size).ok_or_else(malformed)?;
        Ok(Some(Map { size, numbers }))
    }

    /// Reads the map at the beginning of the data: a count, then as many pairs, each number on a separate
    /// line. `next` reads the blocks of the data.
    pub(super) fn read_map(self, mut next: impl FnMut() -> Result<Block, Fault>) -> Result<Map, Fault> {
        let size = self.real_size.or(self.size).ok_or_else(malformed)?;
        let (mut numbers, mut count) = (Vec::new(), None);
        let (mut line, mut bytes) = (Vec::new(), 0);
        while count.is_none_or(|count| numbers.len() < count) {
            let block = next()?;
            bytes += block.len();
            if bytes > MAX_MAP_BYTES {
                return Err(too_large());
            }
            for byte in block {
                if byte != b'\n' {
                    line.push(byte);
                    continue;
                }
                let value: u64 = number(&line).ok_or_else(malformed)?;
                line.clear();
                match count {
                    None => {
                        let pairs = usize::try_from(value).ok().and_then(|pairs| pairs.checked_mul(2));
                        count = Some(pairs.ok_or_else(malformed)?);
                    }
                    Some(_) => numbers.push(value),
                }
                if count == Some(numbers.len()) {
                    break;
                }
            }
        }
        Ok(Map { size, numbers })
    }
}

fn too_large() -> Fault {
    Fault::refused(format!("the map of a sparse file has more than {MAX_MAP_BYTES} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(pairs: &[(&str, &str)]) -> Option<Records> {
        let mut records = Records::default();
        pairs.iter().try_for_each(|(key, value)| records.set(key.as_bytes(), value.as_bytes()))?;
        Some(records)
    }

    #[test]
    fn maps_in_records_are_read() {
        let expected = || Map { size: 100, numbers: vec![1, 2, 50, 10] };
        let pairs = [("size", "100"), ("offset", "1"), ("numbytes", "2"), ("offset", "50"), ("numbytes", "10")];
        assert_eq!(records(&pairs).unwrap().map().unwrap(), Some(expected()));
        let listed = records(&[("major", "0"), ("minor", "1"), ("size", "100"), ("map", "1,2,50,10")]).unwrap();
        assert!(!listed.is_in_data().unwrap());
        assert_eq!(listed.map().unwrap(), Some(expected()));
        assert_eq!(records(&[("realsize", "5")]).unwrap().map().unwrap(), None);
        for wrong in [[("numbytes", "1"), ("x", "")], [("offset", "1"), ("offset", "2")], [("map", "1,x"), ("x", "")]] {
            assert!(records(&wrong).is_none(), "{wrong:?}");
        }
        assert!(records(&[("map", "1,2")]).unwrap().map().is_err(), "it has no size");
        assert!(records(&[("major", "2"), ("minor", "0")]).unwrap().is_in_data().is_err());
    }

    #[test]
    fn a_map_in_the_data_may_end_in_any_block() {
        let read = |text: &str| {
            let mut blocks = text.as_bytes().chunks(512).map(|chunk| {
                let mut block = [0; 512];
                block[..chunk.len()].copy_from_slice(chunk);
                block
            });
            let next = || blocks.next().ok_or_else(malformed);
            records(&[("realsize", "100000")]).unwrap().read_map(next).map(|map| map.numbers)
        };
        assert!(read("0\n").unwrap().is_empty());
        assert_eq!(read("1\n5\n6\n").unwrap(), [5, 6]);
        let many: Vec<u64> = (0..600).collect();
        let text: String = many.iter().map(|number| format!("{number}\n")).collect();
        assert_eq!(read(&format!("300\n{text}")).unwrap(), many);
        for wrong in ["1\n5\n", "1\n\n6\n", "x\n", "99999999999999999999\n", "18446744073709551615\n"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn pieces_lie_in_order_and_within_the_file() {
        let pieces = |numbers: &[u64], stored| Map { size: 100, numbers: numbers.to_vec() }.pieces(stored);
        assert_eq!(pieces(&[0, 10, 100, 0], 10).unwrap().len(), 2);
        assert!(pieces(&[], 0).unwrap().is_empty());
        for (wrong, stored) in [
            (&[0][..], 0),
            (&[0, 10, 5, 10], 20),
            (&[95, 10], 10),
            (&[u64::MAX, 10], 10),
            (&[0, 10], 11),
            (&[50, 0, 0, 10], 10),
        ] {
            assert!(pieces(wrong, stored).is_err(), "{wrong:?}");
        }
    }
}
