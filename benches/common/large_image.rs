//! An image as large as those of languages, made byte for byte.

use crate::images::{Image, Layer};

/// Returns an image with a shell and with so many bytes in so many files, which compress as programs do.
pub(crate) fn large(bytes: usize, files: usize) -> Image {
    let mut image = Image::shell();
    image.layers.insert(2, layer(bytes, files, 1));
    image
}

/// Returns a layer with files in `usr`, as a tar stream. Layers with different seeds have different files.
pub(crate) fn layer(bytes: usize, files: usize, seed: u64) -> Vec<u8> {
    const DIRS: usize = 200;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(2 * seed + 1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let top = format!("usr/{seed}");
    let layer = Layer::new().dir("usr").dir(&top);
    let mut layer = (0..DIRS).fold(layer, |layer, dir| layer.dir(&format!("{top}/{dir}")));
    for file in 0..files {
        let mut content = Vec::with_capacity(bytes / files);
        for word in 0..(bytes / files / 16) as u64 {
            content.extend_from_slice(&next().to_le_bytes());
            content.extend_from_slice(&word.to_le_bytes());
        }
        layer = layer.file(&format!("{top}/{}/{file}", file % DIRS), 0o644, content);
    }
    layer.bytes()
}
