//! Suggestions for misspelled names.

use std::sync::Arc;

/// Returns the known name that `name` may be a misspelling of.
pub(super) fn nearest(name: &str, known: &[Arc<str>]) -> Option<Arc<str>> {
    // A name more than twice as long as a known one is not worth computing the distance. A distance of more
    // than half the known name means another word.
    let similar = known.iter().filter(|known| name.len() <= 2 * known.len()).filter_map(|known| {
        let distance = strsim::damerau_levenshtein(known, &name.to_lowercase());
        (2 * distance <= known.len()).then_some((distance, known))
    });
    similar.min().map(|(_, known)| Arc::clone(known))
}
