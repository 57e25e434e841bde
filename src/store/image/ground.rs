//! The lowest layer below every image, as a layer of the store: see [`tree::make_ground`].

use std::sync::Arc;

use super::{ImageDigest, aside::Aside};
use crate::store::{IdMap, LayerId, Store, StoreError, error::Doing, tree};

/// Must be increased with any change to the contents of the layer.
const VERSION: &[u8] = b"hm-exec ground 3";

/// Returns the name of the layer.
pub(crate) fn layer_id(id_map: IdMap) -> LayerId {
    LayerId::of_image(&ImageDigest::of(VERSION), id_map)
}

/// Creates the layer if the store does not have it.
pub(super) fn ensure(store: &Arc<Store>, id_map: IdMap) -> Result<(), StoreError> {
    let layer = layer_id(id_map);
    if store.is_whole(&layer)? {
        return Ok(());
    }
    store.discard_from(&store.layer_home(&layer))?;
    let aside = Aside::new(store)?;
    tree::make_ground(&aside.root()).doing("fill", &aside.root())?;
    aside.place(&layer)
}
