//! The carbon intensity of this hour, of the zones that regions name: asked of an API like that of
//! Electricity Maps, kept on disk, and put into the endpoint sets of those regions alone.
//!
//! Nothing waits for it. What was said last counts for six hours, then what the policies say.

mod api;
mod cache;
mod follow;
mod options;
#[cfg(test)]
mod standin;

pub(crate) use self::follow::Intensities;
pub use self::{
    api::{CarbonApi, CarbonError},
    options::{CARBON_HEADING, CarbonArgs, CarbonOptionsError},
};
