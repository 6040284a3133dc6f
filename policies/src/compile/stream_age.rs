//! What becomes of streams and connections that last.

use std::time::Duration;

use crate::{
    diagnostic::Rule,
    document::{own::StreamAgeSpec, read::invalid},
    model::{Protocol, Service, StreamAge},
    problem::Problems,
};

/// Below this, streams would do little but move.
const YOUNGEST: Duration = Duration::from_secs(10);

pub(super) fn compile(
    written: Option<&StreamAgeSpec>,
    service: &Service,
    problems: &mut Problems,
) -> Option<StreamAge> {
    let spec = written?;
    let default = StreamAge::default();
    if let Some(max) = spec.max.as_ref().filter(|max| max.0 < YOUNGEST) {
        invalid(max.span, "streams this young are moved for nothing", "at least 10s", problems);
    }
    if service.protocol == Protocol::Tcp {
        problems
            .error(
                Rule::Conflict,
                spec.span,
                "opaque connections cannot be moved, so they have no age",
            )
            .help("remove it, or give the service a protocol that is HTTP");
    }
    Some(StreamAge {
        max: spec.max.as_ref().map_or(default.max, |max| max.0),
        jitter_percent: spec.jitter_percent.as_ref().map_or(default.jitter_percent, |p| ***p),
    })
}
