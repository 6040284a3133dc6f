//! What kind of freight a request is, and whose.

use serde::{Deserialize, Serialize};

use super::{
    RateLimits,
    tries::{Hedge, Stall},
};

/// The terms of a route that Envoy's API has no words for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Transfer {
    /// Who goes first where there is not room for all.
    pub class: Class,
    /// How a request tells whose it is; `None` = all are of one tenant.
    pub tenant: Option<TenantKey>,
    /// Digests of bodies.
    pub integrity: Integrity,
    /// The least that bodies must move while they are waited for; `None` = only the idle time counts.
    pub stall: Option<Stall>,
    /// When a read is asked for a second time; `None` = never.
    pub hedge: Option<Hedge>,
    /// What one proxy lets pass.
    pub limits: RateLimits,
    /// The largest request body that is taken; `None` = any.
    pub max_request_bytes: Option<u64>,
    /// A `PUT` or `POST` that breaks goes on where it broke, at servers of resumable uploads. Nothing without attempts.
    pub resume_uploads: bool,
}

/// Digests of bodies (RFC 9530), made where there are none and checked where there are some.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Integrity {
    /// Request bodies get a `Content-Digest`, and response bodies one where the request wants it.
    pub make: bool,
    /// Bodies are held against the digests that come with them; such are asked for.
    pub check: bool,
    /// What is made, wanted, and checked in trailers.
    pub algorithm: DigestAlgorithm,
}

/// The active algorithms of RFC 9530 §5.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DigestAlgorithm {
    /// SHA-256. The default.
    #[default]
    Sha256,
    /// SHA-512.
    Sha512,
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

impl Integrity {
    /// Whether anything is done at all.
    pub const fn is_on(self) -> bool {
        self.make || self.check
    }
}

impl DigestAlgorithm {
    /// Its key in digest fields.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha-256",
            Self::Sha512 => "sha-512",
        }
    }
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
