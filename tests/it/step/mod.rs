//! `hm-step`, as a worker runs it: as root, as an ordinary user, and in the sandbox of another engine.

mod buildbox;
mod ends;
mod harness;
mod inputs;
mod layers;
