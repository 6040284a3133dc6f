//! What kind of freight a request is, and whose.

use serde::{Deserialize, Serialize};

use super::tries::Stall;

/// The terms of a route that Envoy's API has no words for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Transfer {
    /// Who goes first where there is not room for all.
    pub class: Class,
    /// How a request tells whose it is; `None` = all are of one tenant.
    pub tenant: Option<TenantKey>,
    /// The least that bodies must move while they are waited for; `None` = only the idle time counts.
    pub stall: Option<Stall>,
}

/// Who goes first where there is not room for all: in queues, in shares of bandwidth, and last
/// to be shed under overload.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "camelCase")]
pub enum Class {
    /// Somebody waits for the answer. The default.
    #[default]
    Interactive,
    /// Freight: it should be done soon, and takes what is left.
    Bulk,
    /// It tolerates delay, and is the first to be shed.
    Background,
}

/// How a request tells whose it is. Tenants are never trusted with more than fairness among
/// themselves: whoever sets the header chooses the tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TenantKey {
    /// The value of this header (lower case); requests without it are one tenant.
    Header(String),
    /// The client's IP address.
    ClientAddress,
}

impl Class {
    /// All, the first to be served first.
    pub const ALL: [Self; 3] = [Self::Interactive, Self::Bulk, Self::Background];

    /// Its name in policies, metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Bulk => "bulk",
            Self::Background => "background",
        }
    }
}
