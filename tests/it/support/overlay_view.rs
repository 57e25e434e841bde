//! What an overlay of directories shows, in a few plain lines: the reference for the store's results.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, FileType, Mode, XattrFlags, getxattr, mknodat, setxattr};

/// A path's content: a directory's mode, or a file's mode and text, or a link's target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    Dir(u32),
    File(u32, String),
    Link(PathBuf),
}

/// Every visible entry, by path.
pub(crate) type View = BTreeMap<PathBuf, Node>;

/// The attribute with which tests mark opaque directories: root and ordinary users may set it.
const OPAQUE: &str = "user.overlay.opaque";

pub(crate) fn whiteout(path: &Path) -> bool {
    mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).is_ok()
}

pub(crate) fn make_opaque(path: &Path) -> bool {
    setxattr(path, OPAQUE, b"y", XattrFlags::empty()).is_ok()
}

fn is_opaque(path: &Path) -> bool {
    let mut value = [0; 1];
    [OPAQUE, "trusted.overlay.opaque"].iter().any(|name| getxattr(path, *name, &mut value[..]) == Ok(1))
}

/// Overlays directories, the topmost first.
pub(crate) fn view(dirs: &[PathBuf]) -> View {
    let mut view = View::new();
    for dir in dirs.iter().rev() {
        lay(&mut view, dir, Path::new(""));
    }
    view
}

fn lay(view: &mut View, dir: &Path, path: &Path) {
    let Ok(entries) = fs::read_dir(dir.join(path)) else { return };
    if is_opaque(&dir.join(path)) {
        remove_below(view, path);
    }
    for entry in entries {
        let entry = entry.unwrap();
        let (path, metadata) = (path.join(entry.file_name()), entry.metadata().unwrap());
        let mode = metadata.mode() & 0o7777;
        if metadata.is_dir() {
            if !matches!(view.insert(path.clone(), Node::Dir(mode)), Some(Node::Dir(_))) {
                remove_below(view, &path);
            }
            lay(view, dir, &path);
            continue;
        }
        remove_below(view, &path);
        let node = if metadata.file_type().is_char_device() {
            view.remove(&path);
            continue;
        } else if metadata.is_symlink() {
            Node::Link(fs::read_link(entry.path()).unwrap())
        } else {
            Node::File(mode, fs::read_to_string(entry.path()).unwrap())
        };
        view.insert(path, node);
    }
}

pub(crate) fn remove_below(view: &mut View, path: &Path) {
    view.retain(|other, _| other == path || !other.starts_with(path));
}
