//! Layers with odd members that docker accepts, made byte for byte: kaniko's output, packages of merged-usr
//! systems, and GNU tar's.

use tar::{EntryType, Header};

/// A layer under construction.
#[derive(Clone, Default)]
pub(crate) struct Odd(Vec<u8>);

impl Odd {
    pub(crate) fn entry(mut self, kind: EntryType, path: &str, link: &str, data: &[u8]) -> Self {
        if path.len() > 100 || link.len() > 100 {
            self = self.extended(&[("path", path.as_bytes()), ("linkpath", link.as_bytes())]);
        }
        let mut header = Header::new_gnu();
        // Written as bytes, because the library refuses such names.
        let bytes = header.as_mut_bytes();
        bytes[..path.len().min(100)].copy_from_slice(&path.as_bytes()[..path.len().min(100)]);
        bytes[157..157 + link.len().min(100)].copy_from_slice(&link.as_bytes()[..link.len().min(100)]);
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o640 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn dir(self, path: &str) -> Self {
        self.entry(EntryType::Directory, path, "", b"")
    }

    pub(crate) fn file(self, path: &str, data: &str) -> Self {
        self.entry(EntryType::Regular, path, "", data.as_bytes())
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, path, target, b"")
    }

    pub(crate) fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Link, path, target, b"")
    }

    /// Adds a pax header.
    pub(crate) fn extended(self, records: &[(&str, &[u8])]) -> Self {
        let mut text = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + rest.to_string().len();
            length = rest + length.to_string().len();
            text.extend_from_slice(format!("{length} {key}=").as_bytes());
            text.extend_from_slice(value);
            text.push(b'\n');
        }
        self.entry(EntryType::XHeader, "PaxHeaders.0/pax", "", &text)
    }

    /// Adds a sparse file in GNU tar's latest format: `text` at `offset` of `size` bytes.
    pub(crate) fn sparse(self, path: &str, offset: u64, text: &str, size: u64) -> Self {
        let mut data = format!("2\n{offset}\n{}\n{size}\n0\n", text.len()).into_bytes();
        data.resize(512, 0);
        data.extend_from_slice(text.as_bytes());
        let size = size.to_string();
        let records: &[(&str, &[u8])] = &[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", path.as_bytes()),
            ("GNU.sparse.realsize", size.as_bytes()),
        ];
        self.extended(records).entry(EntryType::Regular, "GNUSparseFile.0/sparse", "", &data)
    }

    /// Returns the members alone, to be combined with others.
    pub(crate) fn members(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn and(mut self, members: &[u8]) -> Self {
        self.0.extend_from_slice(members);
        self
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// Makes two layers, all below `odd`.
pub(crate) fn layers() -> [Odd; 2] {
    let deep = "odd/".to_owned() + &"d/".repeat(140);
    let lower = Odd::default()
        .dir("odd")
        // As kaniko writes them.
        .dir("odd/usr/bin")
        .file("odd/usr/bin/perlbug", "perl")
        .hard_link("odd/usr/bin/perlthanks", "/odd/usr/bin/perlbug")
        .hard_link("odd/inner", "odd/usr/../usr/./bin/perlbug")
        // Paths behind links.
        .dir("odd/usr/lib")
        .symlink("odd/lib", "usr/lib")
        .file("odd/lib/x", "X")
        .hard_link("odd/y", "odd/lib/x")
        .hard_link("odd/lib/z", "/odd/lib/x")
        .symlink("odd/abs", "/odd/usr/lib")
        .dir("odd/abs/dir")
        .file("odd/abs/dir/f", "F")
        .symlink("odd/out", "../../../../odd/usr")
        .file("odd/out/o", "O")
        .hard_link("odd/out/link", "odd/lib")
        .file("odd/lib/../plain", "P")
        // In place of a link. No name may come twice, because the daemon records all of them.
        .symlink("odd/turned", "usr/lib")
        .symlink("odd/self", ".")
        .dir("odd/self/turned")
        .file("odd/turned/t", "T")
        // The last of several headers counts.
        .extended(&[("path", b"odd/first"), ("mtime", b"5")])
        .extended(&[("path", b"odd/second")])
        .file("odd/third", "2")
        .sparse("odd/sparse", 1 << 20, "hello", 5 << 20)
        .file(&(deep + "f"), "deep")
        // The same path twice.
        .file("odd/filled/dir/f", "")
        .file("odd/filled", "no more")
        .file("odd/kept", "kept")
        .symlink("odd/merged", "usr/lib");
    let upper = Odd::default()
        .dir("odd")
        // A link of a lower layer leads nowhere in this layer.
        .file("odd/merged/own", "own")
        .symlink("odd/sbin", "usr/sbin")
        .dir("odd/usr/sbin")
        .file("odd/sbin/s", "S")
        .dir("odd/lib2")
        .file("odd/lib2/.wh..wh..opq", "")
        .file("odd/.wh.kept", "");
    [lower, upper]
}
