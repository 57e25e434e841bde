//! `hm-step`, as a worker runs it: as root, as an ordinary user, and in another engine's sandbox.

mod attributes;
mod buildbox;
mod ends;
mod inputs;
mod layer_cache;
mod layers;
