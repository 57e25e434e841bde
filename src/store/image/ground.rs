//! The lowest layer below every image: mount points, and files that name resolution wants, where an image has none.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    sync::Arc,
};

use super::{ImageDigest, aside::Aside};
use crate::store::{IdMap, LayerId, Store, StoreError, error::Doing, layout::make_dir, tree};

/// Directories, with their modes.
const DIRS: [(&str, u32); 7] =
    [("dev", 0o755), ("proc", 0o555), ("sys", 0o555), ("etc", 0o755), ("tmp", 0o1777), ("root", 0o700), ("run", 0o755)];

/// Files. `resolv.conf` is where this machine's is shown.
const FILES: [(&str, &str); 2] =
    [("etc/resolv.conf", ""), ("etc/hosts", "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n")];

/// Raised with any change to what the layer has.
const VERSION: &[u8] = b"hm-exec ground 1";

/// Which layer it is.
pub(crate) fn layer_id(id_map: IdMap) -> LayerId {
    LayerId::of_image(&ImageDigest::of(VERSION), id_map)
}

/// Makes the layer where the store has none.
pub(super) fn ensure(store: &Arc<Store>, id_map: IdMap) -> Result<(), StoreError> {
    let layer = layer_id(id_map);
    if store.is_whole(&layer)? {
        return Ok(());
    }
    store.discard_from(&store.layer_home(&layer))?;
    let aside = Aside::new(store)?;
    for (name, mode) in DIRS {
        let path = aside.root().join(name);
        make_dir(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(mode)).doing("set the mode of", &path)?;
    }
    for (name, content) in FILES {
        let path = aside.root().join(name);
        fs::write(&path, content).doing("write", &path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o644)).doing("set the mode of", &path)?;
    }
    // So that it is the same whenever it is made.
    for name in FILES.iter().map(|(name, _)| *name).chain(DIRS.iter().map(|(name, _)| *name)).chain([""]) {
        let path = aside.root().join(name);
        rustix::fs::utimensat(rustix::fs::CWD, &path, &tree::mtime(0, 0), rustix::fs::AtFlags::empty())
            .doing("set the time of", &path)?;
    }
    aside.place(&layer)
}
