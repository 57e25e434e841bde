//! Prints the public API of a crate, one item a line, from the JSON that rustdoc wrote: `public-api FILE`.

use std::io::Write as _;

use anyhow::{Context as _, Result};

fn main() -> Result<()> {
    let json = std::env::args_os().nth(1).context("usage: public-api FILE.json")?;
    // Derived and blanket implementations say nothing that the types do not say.
    let api = public_api::Builder::from_rustdoc_json(&json)
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(true)
        .omit_auto_derived_impls(true)
        .build()
        .with_context(|| format!("failed to read {}", json.display()))?;
    let mut out = std::io::stdout().lock();
    for item in api.items() {
        writeln!(out, "{item}")?;
    }
    Ok(())
}
