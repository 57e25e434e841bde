//! Engines that speak the Remote Execution API: their content-addressed stores, and steps on them.

#[cfg(target_os = "linux")]
mod admission;
mod cas;
#[cfg(target_os = "linux")]
mod remote_cache;
#[cfg(target_os = "linux")]
mod sources;
#[cfg(target_os = "linux")]
mod steps;
#[cfg(target_os = "linux")]
mod worker;
