//! Continuous batching: which rows of which sequences run in a step, and where their keys and values lie.
//!
//! Pure bookkeeping: no device, no clock, no threads. Callers pass the time and run the planned steps.
//!
//! `scheduler.rs` plans the steps. `pages/mod.rs` manages the pages of the cache.

mod clients;
mod pages;
mod scheduler;
#[cfg(test)]
mod simulation;
mod step;

pub(crate) use scheduler::Scheduler;
pub(crate) use step::{Limits, Request, Work};
