//! The cache: hits, misses, and results that are never claimed.

mod concurrent_steps;
mod errors;
mod hits;
mod keys;
mod on_change;
mod on_the_sandbox;
mod projects;
mod why;
