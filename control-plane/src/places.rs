//! Map services: who is asked for places that the policies' gazetteer does not know.
//!
//! [`AppleMaps`] is one; [`Gazetteer`] is the table itself in the same shape. Answers are kept
//! on disk, and nothing on the way of a change waits for one: an endpoint has no coordinates
//! until they come, then its set alone is sent again. Knows nothing of policies or xDS.

mod apple;
mod cache;
mod follow;
mod gazetteer;
mod locate;
mod options;

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use towpath_policies::model::Coordinates;

pub use self::{
    apple::{AppleKey, AppleMaps, KeyError},
    gazetteer::Gazetteer,
    options::{APPLE_HEADING, AppleArgs, AppleError, AskFor},
};
pub(crate) use self::{follow::Places, locate::Locate};
pub use crate::{fetch::HttpError, pace::Limits};

/// A place as a map service knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// As a person would read it, e.g. `Frankfurt, Hesse, Germany`.
    pub name: String,
    /// ISO 3166-1 alpha-2; empty where the service does not say.
    pub country: String,
    /// Where it is.
    pub coordinates: Coordinates,
}

/// What it takes to get from one point to another, now or at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Eta {
    /// Metres by road.
    pub distance_meters: u64,
    /// Time it takes with the traffic there is.
    pub expected: Duration,
    /// Time it takes on empty roads.
    pub empty_roads: Duration,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// Not asked: the pace, the day's quota or an earlier failure forbid it for now.
    #[error("not asked for now, for {} s more: {why}", wait.as_secs_f64().ceil())]
    Waiting {
        /// Time after which asking makes sense.
        wait: Duration,
        /// What forbids it.
        why: &'static str,
    },
    /// Asked without a useful answer; later there may be one.
    #[error("{why}")]
    Unavailable {
        /// Time after which asking makes sense.
        wait: Duration,
        /// What happened.
        why: String,
    },
    /// The service does not accept who asks.
    #[error("the credentials are refused: {why}")]
    Credentials {
        /// Time after which asking makes sense.
        wait: Duration,
        /// What it says.
        why: String,
    },
    /// The service does not take this question; asking it again is no use.
    #[error("{0}")]
    Refused(String),
}

impl PlaceError {
    /// Time after which asking again makes sense; `None` = never.
    pub fn wait(&self) -> Option<Duration> {
        match self {
            Self::Waiting { wait, .. }
            | Self::Unavailable { wait, .. }
            | Self::Credentials { wait, .. } => Some(*wait),
            Self::Refused(_) => None,
        }
    }
}

/// An answer to come.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, PlaceError>> + Send + 'a>>;

/// Somebody who knows where places are.
pub trait MapService: Send + Sync {
    /// The places of a name, the likeliest first.
    fn find<'a>(&'a self, name: &'a str) -> Answer<'a, Vec<Found>>;

    /// What is at a point, the likeliest first.
    fn at(&self, point: Coordinates) -> Answer<'_, Vec<Found>>;

    /// How long it takes by car from a point to each of others, in their order, leaving at a time
    /// or now; `None` for one that cannot be reached.
    fn etas<'a>(
        &'a self,
        origin: Coordinates,
        destinations: &'a [Coordinates],
        departure: Option<SystemTime>,
    ) -> Answer<'a, Vec<Option<Eta>>>;
}

/// The map service that a control plane asks.
#[derive(Clone)]
pub struct Maps {
    /// Who is asked.
    pub service: Arc<dyn MapService>,
    /// For which places.
    pub ask_for: AskFor,
}

impl fmt::Debug for Maps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Maps").field("ask_for", &self.ask_for).finish_non_exhaustive()
    }
}

/// Text of a stranger, without what could play with a terminal, and not too much of it.
fn readable(text: &str) -> String {
    const KEPT: usize = 200;
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.take(KEPT).collect::<String>().trim().to_owned()
}
