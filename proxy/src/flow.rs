//! How fast things may pass: rate limits of routes and tenants, and shares of a bounded bandwidth.
//!
//! Decisions are pure, with the time as an argument; exchanges wait on timers of their own. Knows
//! nothing of HTTP.

mod bucket;
mod gate;
mod limiter;
mod pace;
mod shares;
mod tenants;

pub(crate) use gate::Gate;
pub(crate) use limiter::Limiter;
pub(crate) use pace::Pace;
