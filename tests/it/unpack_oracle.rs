//! Unpacking an image's layer beside a model of it that is plainly right: an archive of any members becomes the tree that
//! the model says, or is refused where the model refuses it, and nothing is written elsewhere. The property test and the
//! fuzz target share it.

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
use proptest::prelude::*;

/// A member of an archive.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    path: String,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    File(Vec<u8>),
    Directory,
    Symlink(String),
    HardLink(String),
}

/// Stands for a directory beside the one that is unpacked to.
const OUTSIDE: &str = "OUTSIDE";

/// Names, the likelier the oftener they stand here: such as get in each other's way, such as mean something, and such as lead
/// elsewhere.
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

/// Where links lead, beside those that lead to a path.
const TARGETS: [&str; 4] = ["../out", OUTSIDE, "/", "."];

/// The archive's members for which these bytes stand; any do for some.
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
            _ => Kind::HardLink(path_of(&mut bytes)),
        };
        members.push(Member { path, kind });
    }
    members
}

/// One name to three, from a byte and one for each.
fn path_of(bytes: &mut impl Iterator<Item = u8>) -> String {
    let count = usize::from(bytes.next().unwrap_or(0) % 3) + 1;
    let names = bytes.take(count).map(|byte| NAMES[usize::from(byte) % NAMES.len()]);
    names.collect::<Vec<_>>().join("/")
}

/// What is at a path.
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

/// The archive is to be refused.
struct Refused;

impl Model {
    fn put(&mut self, Member { path, kind }: &Member) -> Result<(), Refused> {
        // Archives of old times mark a directory by its name.
        let kind = if matches!(kind, Kind::File(_)) && path.ends_with('/') { &Kind::Directory } else { kind };
        let parts = parts(path)?;
        let Some((name, parents)) = parts.split_last() else {
            return if matches!(kind, Kind::Directory) { Ok(()) } else { Err(Refused) };
        };
        for depth in 1..=parents.len() {
            match self.0.entry(parents[..depth].to_vec()).or_insert(Node::Directory { is_opaque: false }) {
                Node::Directory { .. } => {}
                _ => return Err(Refused),
            }
        }
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
            None => self.make(&parts, kind)?,
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
            Kind::Symlink(target) if target.is_empty() => return Err(Refused),
            Kind::Symlink(target) => Node::Symlink(target.clone()),
            Kind::HardLink(target) if target.starts_with('/') => return Err(Refused),
            Kind::HardLink(target) => {
                let target = parts(target)?;
                let leads_there = (1..target.len()).all(|depth| self.is_directory(&target[..depth]));
                match self.0.get(&target) {
                    Some(node @ (Node::File(_) | Node::Symlink(_))) if leads_there && target != path => node.clone(),
                    _ => return Err(Refused),
                }
            }
        };
        let is_filled = self.0.keys().any(|other| other.len() > path.len() && other.starts_with(path));
        if is_filled && self.is_directory(path) {
            return Err(Refused);
        }
        self.0.insert(path.to_vec(), node);
        Ok(())
    }

    fn is_directory(&self, path: &[String]) -> bool {
        matches!(self.0.get(path), Some(Node::Directory { .. }))
    }

    fn make_opaque(&mut self, path: &[String]) {
        // The empty path is the root.
        self.0.insert(path.to_vec(), Node::Directory { is_opaque: true });
    }
}

fn parts(path: &str) -> Result<Vec<String>, Refused> {
    let parts: Vec<String> = path.split('/').filter(|part| !matches!(*part, "" | ".")).map(String::from).collect();
    if parts.iter().any(|part| part == "..") { Err(Refused) } else { Ok(parts) }
}

/// Unpacks the archive that has these members, and compares.
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
    for Member { path, kind } in members {
        // The name as it is, which the crate's own methods would refuse.
        let mut name = tar::Header::new_gnu();
        name.set_entry_type(tar::EntryType::GNULongName);
        append(&mut builder, &mut name, format!("{path}\0").as_bytes());
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        let (kind, link, data) = match kind {
            Kind::File(data) => (tar::EntryType::Regular, "", &data[..]),
            Kind::Directory => (tar::EntryType::Directory, "", &[][..]),
            Kind::Symlink(target) => (tar::EntryType::Symlink, &target[..], &[][..]),
            Kind::HardLink(target) => (tar::EntryType::Link, &target[..], &[][..]),
        };
        if !link.is_empty() {
            let mut name = tar::Header::new_gnu();
            name.set_entry_type(tar::EntryType::GNULongLink);
            append(&mut builder, &mut name, format!("{link}\0").as_bytes());
        }
        header.set_entry_type(kind);
        append(&mut builder, &mut header, data);
    }
    builder.into_inner().unwrap()
}

fn append(builder: &mut tar::Builder<Vec<u8>>, header: &mut tar::Header, data: &[u8]) {
    header.set_size(data.len() as u64);
    header.set_cksum();
    builder.append(header, data).unwrap();
}

/// What is in a directory, as the model would say it.
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn an_archive_becomes_what_the_model_says_and_nothing_else(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
        check(&members_of(&bytes));
    }
}
