//! The list of a layer's chunks: a `Tree` of the protocol, so that an engine knows what belongs to a result.

use prost::Message;

use super::{cutter::MAX_BYTES, layout::Part};
use crate::{
    hex::{from_hex, to_hex},
    remote::{Digest, DigestFunction, reapi},
};

/// The maximum number of chunks. Layers with more travel whole.
pub(super) const MAX_CHUNKS: usize = 1 << 16;
/// More than a list of that many chunks has.
pub(super) const MAX_LIST_BYTES: u64 = 16 << 20;
/// More than one of its files takes, with its name and its digest.
const MAX_FILE_BYTES: usize = 300;
/// More than a chunk has that cannot be compressed.
const MAX_BLOB_BYTES: u64 = MAX_BYTES as u64 + (4 << 10);

/// A chunk, and the blob that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk {
    /// The BLAKE3 of its bytes.
    pub(super) hash: [u8; 32],
    /// How many bytes it has.
    pub(super) size: usize,
    /// Its bytes, compressed.
    pub(super) blob: Digest,
}

/// The chunks of a layer, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct ChunkList {
    pub(super) metadata: Vec<Chunk>,
    pub(super) content: Vec<Chunk>,
}

impl ChunkList {
    /// Returns the chunks of both parts.
    pub(super) fn chunks(&self) -> impl Iterator<Item = &Chunk> {
        self.metadata.iter().chain(&self.content)
    }

    /// Returns the number of chunks.
    pub(super) fn len(&self) -> usize {
        self.metadata.len() + self.content.len()
    }

    /// Returns the chunks of one part.
    pub(super) fn part(&self, part: Part) -> &[Chunk] {
        match part {
            Part::Metadata => &self.metadata,
            Part::Content => &self.content,
        }
    }

    /// Returns the length of the layer's tar.
    pub(super) fn tar_bytes(&self) -> u64 {
        self.chunks().map(|chunk| chunk.size as u64).sum()
    }

    /// Encodes the list. The order of the names is that of the chunks.
    pub(super) fn encode(&self) -> Vec<u8> {
        let file = |part: char, index: usize, chunk: &Chunk| reapi::FileNode {
            name: format!("{part}{index:05}-{:06}-{}", chunk.size, to_hex(&chunk.hash)),
            digest: Some(chunk.blob.into()),
            ..Default::default()
        };
        let content = self.content.iter().enumerate().map(|(index, chunk)| file('c', index, chunk));
        let metadata = self.metadata.iter().enumerate().map(|(index, chunk)| file('m', index, chunk));
        let root = reapi::Directory { files: content.chain(metadata).collect(), ..Default::default() };
        reapi::Tree { root: Some(root), children: Vec::new() }.encode_to_vec()
    }

    /// Decodes what [`encode`](Self::encode) wrote. Returns a reason if it is anything else.
    pub(super) fn decode(bytes: &[u8], function: DigestFunction) -> Result<Self, String> {
        check_shape(bytes)?;
        let tree = reapi::Tree::decode(bytes).map_err(|error| error.to_string())?;
        let files = tree.root.map(|root| root.files).unwrap_or_default();
        let mut list = Self::default();
        for file in files {
            let wrong = || format!("`{}` is no chunk", file.name.chars().take(100).collect::<String>().escape_debug());
            let parts: Vec<&str> = file.name.split('-').collect();
            let &[place, size, hash] = &parts[..] else { return Err(wrong()) };
            let (size, hash) = (size.parse().map_err(|_| wrong())?, from_hex(hash).ok_or_else(wrong)?);
            let blob = file.digest.as_ref().and_then(|digest| function.parse(digest).ok()).ok_or_else(wrong)?;
            let of_part = match place.as_bytes().first() {
                Some(b'c') => &mut list.content,
                Some(b'm') => &mut list.metadata,
                _ => return Err(wrong()),
            };
            let is_next = place.get(1..).and_then(|index| index.parse().ok()) == Some(of_part.len());
            let is_sized = (1..=MAX_BYTES).contains(&size) && (1..=MAX_BLOB_BYTES).contains(&blob.size_bytes);
            if !is_next || !is_sized {
                return Err(wrong());
            }
            of_part.push(Chunk { hash, size, blob });
        }
        Ok(list)
    }
}

/// Checks that a list has one directory, and that this has nothing but files, not too many and not too long.
/// Decoding anything else could take a hundred times its length in memory.
fn check_shape(bytes: &[u8]) -> Result<(), String> {
    let mut rest = bytes;
    let Some(mut files) = next_field(&mut rest)? else { return Err("it is empty".into()) };
    if !rest.is_empty() {
        return Err("it has more than a directory".into());
    }
    let mut count = 0;
    while let Some(file) = next_field(&mut files)? {
        count += 1;
        if count > MAX_CHUNKS || file.len() > MAX_FILE_BYTES {
            return Err(format!("it has more than {MAX_CHUNKS} chunks, or one with a long name"));
        }
    }
    Ok(())
}

/// Returns the bytes of the next field, which must be the first one of its message, and of variable length.
fn next_field<'a>(bytes: &mut &'a [u8]) -> Result<Option<&'a [u8]>, String> {
    const KEY: u8 = 1 << 3 | 2;
    let wrong = || "it is no list of files".to_owned();
    let Some((&key, mut rest)) = bytes.split_first() else { return Ok(None) };
    if key != KEY {
        return Err(wrong());
    }
    let length = prost::encoding::decode_varint(&mut rest).map_err(|_| wrong())?;
    let length = usize::try_from(length).map_err(|_| wrong())?;
    let (field, rest) = rest.split_at_checked(length).ok_or_else(wrong)?;
    *bytes = rest;
    Ok(Some(field))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(text: &str) -> Chunk {
        Chunk { hash: *blake3::hash(text.as_bytes()).as_bytes(), size: text.len(), blob: Digest::of(text.as_bytes()) }
    }

    fn list() -> ChunkList {
        ChunkList { metadata: vec![chunk("head")], content: vec![chunk("body"), chunk("x"), chunk("body")] }
    }

    #[test]
    fn a_list_is_a_canonical_tree_and_comes_back() {
        let bytes = list().encode();
        assert_eq!(ChunkList::decode(&bytes, DigestFunction::Sha256), Ok(list()));
        let files = reapi::Tree::decode(&bytes[..]).unwrap().root.unwrap().files;
        assert!(files.is_sorted_by(|a, b| a.name < b.name), "names are unique and in order");
        assert_eq!(list().tar_bytes(), 13);
    }

    #[test]
    fn a_list_that_does_not_fit_is_refused() {
        let change = |change: &dyn Fn(&mut Vec<reapi::FileNode>)| {
            let mut tree = reapi::Tree::decode(&list().encode()[..]).unwrap();
            change(&mut tree.root.as_mut().unwrap().files);
            ChunkList::decode(&tree.encode_to_vec(), DigestFunction::Sha256)
        };
        let renamed = |name: &'static str| move |files: &mut Vec<reapi::FileNode>| files[0].name = name.into();
        assert_eq!(change(&|_| {}), Ok(list()));
        for name in ["", "c00000", "c00000-000004-zz", "../etc/passwd", "c00000-4-4-4", "\u{e9}"] {
            assert!(change(&renamed(name)).is_err(), "{name}");
        }
        let hash = to_hex(&[7; 32]);
        for place in ["c00001-000004", "x00000-000004", "c00000-000000", "c00000-262145", "c00000--00001"] {
            let named = format!("{place}-{hash}");
            assert!(change(&|files| files[0].name.clone_from(&named)).is_err(), "{place}");
        }
        let sized =
            |size_bytes| change(&|files| files[0].digest = Some(reapi::Digest { hash: hash.clone(), size_bytes }));
        assert!(sized(1).is_ok());
        for size_bytes in [-1, 0, 1 << 20, i64::MAX] {
            assert!(sized(size_bytes).is_err(), "{size_bytes}");
        }
        assert!(change(&|files| files[0].digest = None).is_err());
        assert!(change(&|files| drop(files.remove(0))).is_err(), "a chunk is missing");
        let many = |files: &mut Vec<reapi::FileNode>| *files = vec![files[0].clone(); MAX_CHUNKS + 1];
        assert!(change(&many).unwrap_err().contains("more than 65536 chunks"));
        // What would take a hundred times its length in memory.
        for bomb in [
            [0x0a, 0x00].repeat(8 << 20),
            [&[0x0a, 0x80, 0x80, 0x80, 0x08][..], &[0x0a, 0x00].repeat(8 << 20)].concat(),
        ] {
            assert!(ChunkList::decode(&bomb, DigestFunction::Sha256).is_err());
        }
        let tree = reapi::Tree::decode(&list().encode()[..]).unwrap();
        let more = reapi::Tree { children: vec![reapi::Directory::default()], ..tree.clone() };
        assert!(ChunkList::decode(&more.encode_to_vec(), DigestFunction::Sha256).is_err());
        let mut linked = tree;
        linked.root.as_mut().unwrap().symlinks.push(reapi::SymlinkNode::default());
        assert!(ChunkList::decode(&linked.encode_to_vec(), DigestFunction::Sha256).is_err());
        assert!(ChunkList::decode(b"no tree", DigestFunction::Sha256).is_err());
    }
}
