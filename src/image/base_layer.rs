//! The base layer, which is below every image: see [`tree::make_base_layer`].

use std::sync::Arc;

use super::{ImageDigest, partial::Partial};
use crate::store::{IdMap, LayerId, Store, StoreError, error::IoContext, tree};

/// Must be increased with any change to the contents of the layer.
const VERSION: &[u8] = b"hm-exec ground 3";

/// Returns the name of the layer.
pub(super) fn layer_id(id_map: IdMap) -> LayerId {
    LayerId::of_image(&ImageDigest::of(VERSION), id_map)
}

/// Returns the lowest layer of every step that does not run on this machine's own system, and creates it if
/// the store does not have it. It contains mount points and files that name resolution needs.
///
/// # Errors
/// Returns an error if the layer is missing and cannot be created.
pub fn base_layer(store: &Arc<Store>, id_map: IdMap) -> Result<LayerId, StoreError> {
    let layer = layer_id(id_map);
    if !store.layers().is_intact(&layer)? {
        store.trash().discard_from(&store.layers().home(&layer))?;
        let partial = Partial::new(store)?;
        tree::make_base_layer(&partial.root()).doing("fill", &partial.root())?;
        partial.place(&layer)?;
    }
    Ok(layer)
}
