//! Engines that speak the Remote Execution API: their content-addressed stores, and steps on them.

mod cas;
mod engine;
