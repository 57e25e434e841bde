//! Engines that speak the Remote Execution API: their content-addressed stores, and steps on them.

#[cfg(target_os = "linux")]
mod actions;
#[cfg(all(feature = "cli", target_os = "linux"))]
mod admission;
#[cfg(target_os = "linux")]
pub(crate) mod buildgrid;
mod cas;
pub(crate) mod engine;
#[cfg(all(feature = "cli", target_os = "linux"))]
pub(crate) mod log_service;
pub(crate) mod proxy;
#[cfg(target_os = "linux")]
mod remote_cache;
#[cfg(target_os = "linux")]
mod sources;
#[cfg(target_os = "linux")]
mod steps;
#[cfg(target_os = "linux")]
mod worker;
