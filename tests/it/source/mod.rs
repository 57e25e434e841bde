//! Frozen source trees: which files are part of them, and how they are stored.

mod freeze;
mod ignore_rules;
mod layers;
mod times;
