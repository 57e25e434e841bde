//! The size limits of the store: from arguments, from the environment, or by default.

use std::{fmt::Display, time::Duration};

use hm_exec::{
    size,
    store::{GcLimits, Store},
};

use crate::{
    args::parse_duration,
    config::variables::{CACHE_MAX_AGE, CACHE_MAX_SIZE, CACHE_MIN_FREE},
    failure::{Failure, Outcome},
};

/// What differs from the default limits.
#[derive(Debug, Default, clap::Args)]
pub(super) struct LimitArgs {
    /// Maximum size of the store, such as 500M or 10G [default: a fifth of the filesystem, at most 100 GiB]
    #[arg(long, value_name = "SIZE", value_parser = size::parse, env = CACHE_MAX_SIZE, hide_env_values = true)]
    max_size: Option<u64>,

    /// Minimum free space on the store's filesystem [default: a twentieth of it, at most 10 GiB]
    #[arg(long, value_name = "SIZE", value_parser = size::parse, env = CACHE_MIN_FREE, hide_env_values = true)]
    min_free: Option<u64>,

    /// Maximum age of unused cached steps, sources and images, such as 12h or 14d [default: 30d]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, env = CACHE_MAX_AGE, hide_env_values = true)]
    max_age: Option<Duration>,
}

impl LimitArgs {
    /// Reads the limits from the environment only.
    pub(super) fn from_env() -> Result<Self, String> {
        Ok(Self {
            max_size: read(CACHE_MAX_SIZE, size::parse)?,
            min_free: read(CACHE_MIN_FREE, size::parse)?,
            max_age: read(CACHE_MAX_AGE, parse_duration)?,
        })
    }

    /// Returns the limits of this store.
    pub(super) fn of(&self, store: &Store) -> Outcome<GcLimits> {
        let mut limits = store
            .default_limits()
            .map_err(|error| Failure::infrastructure("failed to choose the limits of the store").because(error))?;
        limits.max_bytes = self.max_size.unwrap_or(limits.max_bytes);
        limits.min_free_bytes = self.min_free.unwrap_or(limits.min_free_bytes);
        limits.max_age = self.max_age.unwrap_or(limits.max_age);
        Ok(limits)
    }
}

fn read<T, E: Display>(variable: &str, parse: impl FnOnce(&str) -> Result<T, E>) -> Result<Option<T>, String> {
    match std::env::var(variable) {
        Ok(text) if !text.is_empty() => parse(&text).map(Some).map_err(|error| format!("{variable}: {error}")),
        _ => Ok(None),
    }
}
