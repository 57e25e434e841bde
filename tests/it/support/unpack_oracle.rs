//! Unpacking an image's layer, compared with a reference model that is evidently right. An archive of any
//! members becomes the tree that the model computes, or is refused if the model refuses it, and nothing is
//! written elsewhere. The property test and the fuzz target share it.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::Path,
};

use hm_exec::store::{
    IdMap,
    tree::{UnpackLimits, unpack},
};

/// A member of an archive.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    path: String,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    File(Vec<u8>),
    /// A file with a hole before each part, and one at its end, in one of GNU tar's formats.
    Sparse(Vec<Vec<u8>>, Format),
    Directory,
    Symlink(String),
    HardLink(String),
}

#[derive(Debug, Clone, Copy)]
enum Format {
    Header,
    Records,
    Data,
}

/// The length of holes, in bytes.
const HOLE: usize = 700;

/// Stands for a directory beside the root that is unpacked to.
const OUTSIDE: &str = "OUTSIDE";

/// Names; the more often a name is listed, the likelier it is. Some collide with each other, some have a
/// special meaning, and some lead elsewhere.
const NAMES: [&str; 32] = [
    "a",
    "b",
    "c",
    "a",
    "b",
    "c",
    "a",
    "b",
    "c",
    "a",
    "b",
    "c",
    "a",
    "b",
    "c",
    "a",
    "b",
    "c",
    "a",
    "b",
    "c",
    ".wh.a",
    ".wh.b",
    ".wh..wh..opq",
    "..",
    ".",
    "",
    OUTSIDE,
    ".wh.",
    ".wh..",
    ".wh..wh.x",
    ".wh.c",
];

/// Targets of links, besides those that are paths of members.
const TARGETS: [&str; 8] = ["../out", OUTSIDE, "/", ".", "/a", "/b/../c", "../a/../../b", "c/./"];

/// Returns the archive members that these bytes encode; any bytes encode some.
pub(crate) fn members_of(bytes: &[u8]) -> Vec<Member> {
    let mut bytes = bytes.iter().copied();
    let mut members = Vec::new();
    while let Some(kind) = bytes.next()
        && members.len() < 16
    {
        let path = path_of(&mut bytes);
        let kind = match kind % 14 {
            0..4 => Kind::File(bytes.by_ref().take(usize::from(kind / 14) * 2).collect()),
            4..8 => Kind::Directory,
            8..10 => Kind::Symlink(path_of(&mut bytes)),
            10 => Kind::Symlink(TARGETS[usize::from(kind / 14) % TARGETS.len()].into()),
            11 => {
                let format = [Format::Header, Format::Records, Format::Data][usize::from(kind / 14) % 3];
                let parts = usize::from(bytes.next().unwrap_or(0) % 40);
                Kind::Sparse((0..parts).map(|at| vec![b'x'; at % 3]).collect(), format)
            }
            _ => Kind::HardLink(path_of(&mut bytes)),
        };
        members.push(Member { path, kind });
    }
    members
}

/// Returns a path of one to three names, from one byte for the count and one for each name.
fn path_of(bytes: &mut impl Iterator<Item = u8>) -> String {
    let count = usize::from(bytes.next().unwrap_or(0) % 3) + 1;
    let names = bytes.take(count).map(|byte| NAMES[usize::from(byte) % NAMES.len()]);
    names.collect::<Vec<_>>().join("/")
}

/// The entry at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    Directory { is_opaque: bool },
    File(Vec<u8>),
    Symlink(String),
    Whiteout,
}

/// A tree in memory.
#[derive(Debug, Default)]
struct Model(BTreeMap<Vec<String>, Node>);

/// The archive must be refused.
struct Refused;

impl Model {
    fn put(&mut self, Member { path, kind }: &Member) -> Result<(), Refused> {
        // Old archives mark a directory by its name.
        let kind =
            if matches!(kind, Kind::File(_) | Kind::Sparse(_, Format::Records | Format::Data)) && path.ends_with('/') {
                &Kind::Directory
            } else {
                kind
            };
        let parts = parts(path)?;
        let Some((name, parents)) = parts.split_last() else {
            return if matches!(kind, Kind::Directory) { Ok(()) } else { Err(Refused) };
        };
        let parents = &self.real(parents, true)?[..];
        match name.strip_prefix(".wh.") {
            Some(".wh..opq") => self.make_opaque(parents),
            Some(meta) if meta.starts_with(".wh.") => {}
            Some("" | "." | "..") => return Err(Refused),
            Some(hidden) => {
                let path = [parents, &[hidden.to_owned()]].concat();
                match self.0.get(&path) {
                    None => drop(self.0.insert(path, Node::Whiteout)),
                    Some(Node::Directory { .. }) => self.make_opaque(&path),
                    Some(_) => {}
                }
            }
            None => self.make(&[parents, std::slice::from_ref(name)].concat(), kind)?,
        }
        Ok(())
    }

    fn make(&mut self, path: &[String], kind: &Kind) -> Result<(), Refused> {
        let node = match kind {
            Kind::Directory => match self.0.get(path) {
                Some(Node::Directory { .. }) => return Ok(()),
                found => Node::Directory { is_opaque: found == Some(&Node::Whiteout) },
            },
            Kind::File(content) => Node::File(content.clone()),
            Kind::Sparse(parts, _) => {
                let hole = [0; HOLE];
                let content = parts.iter().flat_map(|part| [&hole[..], part]).chain([&hole[..]]);
                Node::File(content.collect::<Vec<_>>().concat())
            }
            Kind::Symlink(target) if target.is_empty() => return Err(Refused),
            Kind::Symlink(target) => Node::Symlink(target.clone()),
            Kind::HardLink(target) => {
                let target = parts(target)?;
                let (name, parents) = target.split_last().ok_or(Refused)?;
                let target = [self.real(parents, false)?, vec![name.clone()]].concat();
                match self.0.get(&target) {
                    // It is removed before the link is made, if it is inside the path that the link replaces.
                    Some(node @ (Node::File(_) | Node::Symlink(_))) if !target.starts_with(path) => node.clone(),
                    _ => return Err(Refused),
                }
            }
        };
        self.0.retain(|other, _| !other.starts_with(path));
        self.0.insert(path.to_vec(), node);
        Ok(())
    }

    /// Returns the directory that a path means; links in it are followed as if the model were the whole file
    /// system.
    fn real(&mut self, path: &[String], makes: bool) -> Result<Vec<String>, Refused> {
        let (mut at, mut links) = (Vec::new(), 0);
        self.follow(path, makes, &mut at, &mut links)?;
        Ok(at)
    }

    fn follow(&mut self, path: &[String], makes: bool, at: &mut Vec<String>, links: &mut u32) -> Result<(), Refused> {
        for name in path {
            if name == ".." {
                at.pop();
                continue;
            }
            at.push(name.clone());
            match self.0.get(at) {
                Some(Node::Directory { .. }) => {}
                Some(Node::Symlink(target)) => {
                    *links += 1;
                    if *links > 40 {
                        return Err(Refused);
                    }
                    at.pop();
                    if target.starts_with('/') {
                        at.clear();
                    }
                    let target: Vec<String> = names(target).map(String::from).collect();
                    self.follow(&target, makes, at, links)?;
                }
                None if makes => drop(self.0.insert(at.clone(), Node::Directory { is_opaque: false })),
                _ => return Err(Refused),
            }
        }
        Ok(())
    }

    fn make_opaque(&mut self, path: &[String]) {
        // The empty path is the root.
        self.0.insert(path.to_vec(), Node::Directory { is_opaque: true });
    }
}

fn names(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|name| !matches!(*name, "" | "."))
}

fn parts(path: &str) -> Result<Vec<String>, Refused> {
    let mut parts = Vec::new();
    for name in names(path) {
        match name {
            ".." => drop(parts.pop().ok_or(Refused)?),
            name => parts.push(name.to_owned()),
        }
    }
    Ok(parts)
}

/// Unpacks the archive of these members, and compares the tree with the model's.
pub(crate) fn check(members: &[Member]) {
    let top = tempfile::tempdir().unwrap();
    let (root, outside) = (top.path().join("root"), top.path().join("out"));
    fs::create_dir(&root).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("a"), "untouched").unwrap();
    let members: Vec<Member> = members.iter().map(|member| member.with_outside(&outside)).collect();

    let archive = archive(&members);
    let unpacked = unpack(&archive[..], &root, IdMap::Single, UnpackLimits::default());
    let mut model = Model::default();
    let expected = members.iter().try_for_each(|member| model.put(member));
    match (unpacked, expected) {
        (Ok(unpacked), Ok(())) => {
            assert_eq!(unpacked.bytes, archive.len() as u64);
            let mut found = BTreeMap::new();
            list(&root, &mut Vec::new(), &mut found);
            model.0.entry(vec![]).or_insert(Node::Directory { is_opaque: false });
            assert_eq!(found, model.0, "{members:?}");
        }
        (Err(_), Err(Refused)) => {}
        (Ok(_), Err(Refused)) => panic!("not refused: {members:?}"),
        (Err(error), Ok(())) => panic!("refused: {error}: {members:?}"),
    }
    assert_eq!(fs::read(outside.join("a")).unwrap(), b"untouched");
    let names = |dir: &Path| fs::read_dir(dir).unwrap().count();
    assert_eq!((names(&outside), names(top.path())), (1, 2), "{members:?}");
}

impl Member {
    fn with_outside(&self, outside: &Path) -> Self {
        let put = |text: &String| text.replace(OUTSIDE, outside.to_str().unwrap());
        let kind = match &self.kind {
            Kind::Symlink(target) => Kind::Symlink(put(target)),
            Kind::HardLink(target) => Kind::HardLink(put(target)),
            kind => kind.clone(),
        };
        Self { path: put(&self.path), kind }
    }
}

fn archive(members: &[Member]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (at, Member { path, kind }) in members.iter().enumerate() {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        let (mut records, mut all, mut map) = (Vec::new(), Vec::new(), 0);
        let (kind, link, data) = match kind {
            Kind::File(data) => (tar::EntryType::Regular, "", &data[..]),
            Kind::Sparse(parts, format) => {
                let kind = sparse(parts, *format, &mut header, &mut records, &mut all);
                // The blocks with the rest of a header's map are not part of its size.
                map = if let Format::Header = format { all.len() - parts.concat().len() } else { 0 };
                (kind, "", &all[..])
            }
            Kind::Directory => (tar::EntryType::Directory, "", &[][..]),
            Kind::Symlink(target) => (tar::EntryType::Symlink, &target[..], &[][..]),
            Kind::HardLink(target) => (tar::EntryType::Link, &target[..], &[][..]),
        };
        // The names are written unchanged, which the crate's own methods would refuse: in pax headers, of
        // which the last one counts, or in GNU's format.
        let is_pax = at % 2 == 1 && !path.is_empty();
        if is_pax {
            extended(&mut builder, &[("path".into(), "decoy".into()), ("linkpath".into(), "decoy".into())]);
            records.push(("path".into(), path.clone()));
            records.extend((!link.is_empty()).then(|| ("linkpath".into(), link.into())));
        }
        if !records.is_empty() {
            extended(&mut builder, &records);
        }
        if !is_pax {
            let mut name = tar::Header::new_gnu();
            name.set_entry_type(tar::EntryType::GNULongName);
            append(&mut builder, &mut name, format!("{path}\0").as_bytes());
            if !link.is_empty() {
                let mut name = tar::Header::new_gnu();
                name.set_entry_type(tar::EntryType::GNULongLink);
                append(&mut builder, &mut name, format!("{link}\0").as_bytes());
            }
        }
        header.set_entry_type(kind);
        append_sized(&mut builder, &mut header, data.len() - map, data);
    }
    builder.into_inner().unwrap()
}

/// Returns an archive's representation of a sparse file: fields of its header, records, data.
fn sparse(
    parts: &[Vec<u8>],
    format: Format,
    header: &mut tar::Header,
    records: &mut Vec<(String, String)>,
    data: &mut Vec<u8>,
) -> tar::EntryType {
    let (mut pairs, mut end) = (Vec::new(), 0);
    for part in parts {
        end += HOLE;
        pairs.push((end, part.len()));
        end += part.len();
    }
    let size = end + HOLE;
    let numbers = || pairs.iter().flat_map(|(offset, bytes)| [offset, bytes]);
    let mut kind = tar::EntryType::Regular;
    match format {
        Format::Header => {
            kind = tar::EntryType::GNUSparse;
            let gnu = header.as_gnu_mut().unwrap();
            let fill = |to: &mut tar::GnuSparseHeader, &(offset, bytes): &(usize, usize)| {
                to.offset.copy_from_slice(format!("{offset:011o}\0").as_bytes());
                to.numbytes.copy_from_slice(format!("{bytes:011o}\0").as_bytes());
            };
            gnu.realsize.copy_from_slice(format!("{size:011o}\0").as_bytes());
            gnu.sparse.iter_mut().zip(&pairs).for_each(|(to, pair)| fill(to, pair));
            let rest = &pairs[pairs.len().min(4)..];
            gnu.isextended[0] = u8::from(!rest.is_empty());
            for (at, pairs) in rest.chunks(21).enumerate() {
                let mut more = tar::GnuExtSparseHeader::new();
                more.sparse.iter_mut().zip(pairs).for_each(|(to, pair)| fill(to, pair));
                more.isextended[0] = u8::from((at + 1) * 21 < rest.len());
                data.extend_from_slice(more.as_bytes());
            }
        }
        Format::Records => {
            let map: Vec<String> = numbers().map(ToString::to_string).collect();
            records.push(("GNU.sparse.size".into(), size.to_string()));
            // Without a map, it would not be a sparse file.
            records.push(("GNU.sparse.map".into(), if map.is_empty() { "0,0".into() } else { map.join(",") }));
        }
        Format::Data => {
            for (key, value) in [("major", "1".into()), ("minor", "0".into()), ("realsize", size.to_string())] {
                records.push((format!("GNU.sparse.{key}"), value));
            }
            let count = pairs.len();
            let map = std::iter::once(&count).chain(numbers()).map(|number| format!("{number}\n"));
            data.extend(map.collect::<String>().into_bytes());
            data.resize(data.len().next_multiple_of(512), 0);
        }
    }
    data.extend(parts.concat());
    kind
}

fn extended(builder: &mut tar::Builder<Vec<u8>>, records: &[(String, String)]) {
    let mut text = String::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + rest.to_string().len();
        length = rest + length.to_string().len();
        text += &format!("{length} {key}={value}\n");
    }
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::XHeader);
    append(builder, &mut header, text.as_bytes());
}

fn append(builder: &mut tar::Builder<Vec<u8>>, header: &mut tar::Header, data: &[u8]) {
    append_sized(builder, header, data.len(), data);
}

fn append_sized(builder: &mut tar::Builder<Vec<u8>>, header: &mut tar::Header, size: usize, data: &[u8]) {
    header.set_size(size as u64);
    header.set_cksum();
    builder.append(header, data).unwrap();
}

/// Lists a directory's entries in the model's terms.
fn list(dir: &Path, at: &mut Vec<String>, found: &mut BTreeMap<Vec<String>, Node>) {
    let mut value = [0; 1];
    let is_opaque = rustix::fs::lgetxattr(dir, IdMap::Single.opaque_xattr(), &mut value[..]).is_ok();
    found.insert(at.clone(), Node::Directory { is_opaque });
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let metadata = entry.path().symlink_metadata().unwrap();
        let kind = metadata.file_type();
        at.push(entry.file_name().into_string().unwrap());
        if kind.is_dir() {
            list(&entry.path(), at, found);
        } else {
            let node = if kind.is_file() {
                Node::File(fs::read(entry.path()).unwrap())
            } else if kind.is_symlink() {
                Node::Symlink(
                    String::from_utf8(fs::read_link(entry.path()).unwrap().as_os_str().as_bytes().to_vec()).unwrap(),
                )
            } else {
                assert!(kind.is_char_device() && metadata.rdev() == 0);
                Node::Whiteout
            };
            found.insert(at.clone(), node);
        }
        at.pop();
    }
}
