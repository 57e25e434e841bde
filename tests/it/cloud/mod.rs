//! Engines that speak the Remote Execution API: their content-addressed stores, and steps on them.

mod admission;
mod cas;
mod chunk_traffic;
mod chunks;
mod digest_functions;
mod engines;
mod layer_cache;
mod remote_cache;
mod sources;
mod steps;
mod worker;
