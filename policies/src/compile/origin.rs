//! Where the values of a compiled resource come from, for `explain`.

use std::collections::BTreeMap;

use crate::problem::Span;

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Nobody said it.
    Default,
    /// Written here, in this document.
    Written(Span, String),
}

/// Field and origin, in order of the fields.
pub(crate) type Origins = Vec<(&'static str, Origin)>;

/// The origins of everything that can be set in more than one place.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    /// By route table and name of route.
    pub(crate) routes: BTreeMap<(String, String), RouteNote>,
    /// By service.
    pub(crate) services: BTreeMap<String, Origins>,
}

/// What is known of a rule.
#[derive(Debug)]
pub(crate) struct RouteNote {
    /// Where it is written.
    pub(crate) span: Span,
    pub(crate) origins: Origins,
}
