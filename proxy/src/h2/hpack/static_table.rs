//! The static table (RFC 7541 Appendix A).

use std::sync::LazyLock;

use http::header;

use super::{
    Field, OVERHEAD,
    name::{CONNECTION_SPECIFIC, Name},
};

/// The indexes 1 to this are static.
pub(super) const LENGTH: usize = 61;

/// The field of an index and its size, with the overhead.
pub(super) fn field(index: usize) -> Option<(&'static Field, usize)> {
    FIELDS.get(index.wrapping_sub(1)).map(|(field, size)| (field, *size))
}

/// The name of an index.
pub(super) fn name(index: usize) -> Option<&'static Name> {
    ENTRIES.get(index.wrapping_sub(1)).map(|(name, _)| name)
}

static FIELDS: LazyLock<Vec<(Field, usize)>> = LazyLock::new(|| {
    let field = |(name, value): &(Name, &str)| {
        let size = name.len() + value.len() + OVERHEAD;
        (name.clone().field(value.as_bytes()).0, size)
    };
    ENTRIES.iter().map(field).collect()
});

static ENTRIES: [(Name, &str); LENGTH] = [
    (Name::Authority, ""),
    (Name::Method, "GET"),
    (Name::Method, "POST"),
    (Name::Path, "/"),
    (Name::Path, "/index.html"),
    (Name::Scheme, "http"),
    (Name::Scheme, "https"),
    (Name::Status, "200"),
    (Name::Status, "204"),
    (Name::Status, "206"),
    (Name::Status, "304"),
    (Name::Status, "400"),
    (Name::Status, "404"),
    (Name::Status, "500"),
    (Name::Header(header::ACCEPT_CHARSET), ""),
    (Name::Header(header::ACCEPT_ENCODING), "gzip, deflate"),
    (Name::Header(header::ACCEPT_LANGUAGE), ""),
    (Name::Header(header::ACCEPT_RANGES), ""),
    (Name::Header(header::ACCEPT), ""),
    (Name::Header(header::ACCESS_CONTROL_ALLOW_ORIGIN), ""),
    (Name::Header(header::AGE), ""),
    (Name::Header(header::ALLOW), ""),
    (Name::Header(header::AUTHORIZATION), ""),
    (Name::Header(header::CACHE_CONTROL), ""),
    (Name::Header(header::CONTENT_DISPOSITION), ""),
    (Name::Header(header::CONTENT_ENCODING), ""),
    (Name::Header(header::CONTENT_LANGUAGE), ""),
    (Name::Header(header::CONTENT_LENGTH), ""),
    (Name::Header(header::CONTENT_LOCATION), ""),
    (Name::Header(header::CONTENT_RANGE), ""),
    (Name::Header(header::CONTENT_TYPE), ""),
    (Name::Header(header::COOKIE), ""),
    (Name::Header(header::DATE), ""),
    (Name::Header(header::ETAG), ""),
    (Name::Header(header::EXPECT), ""),
    (Name::Header(header::EXPIRES), ""),
    (Name::Header(header::FROM), ""),
    (Name::Header(header::HOST), ""),
    (Name::Header(header::IF_MATCH), ""),
    (Name::Header(header::IF_MODIFIED_SINCE), ""),
    (Name::Header(header::IF_NONE_MATCH), ""),
    (Name::Header(header::IF_RANGE), ""),
    (Name::Header(header::IF_UNMODIFIED_SINCE), ""),
    (Name::Header(header::LAST_MODIFIED), ""),
    (Name::Header(header::LINK), ""),
    (Name::Header(header::LOCATION), ""),
    (Name::Header(header::MAX_FORWARDS), ""),
    (Name::Header(header::PROXY_AUTHENTICATE), ""),
    (Name::Header(header::PROXY_AUTHORIZATION), ""),
    (Name::Header(header::RANGE), ""),
    (Name::Header(header::REFERER), ""),
    (Name::Header(header::REFRESH), ""),
    (Name::Header(header::RETRY_AFTER), ""),
    (Name::Header(header::SERVER), ""),
    (Name::Header(header::SET_COOKIE), ""),
    (Name::Header(header::STRICT_TRANSPORT_SECURITY), ""),
    (Name::Bad(CONNECTION_SPECIFIC, "transfer-encoding".len()), ""),
    (Name::Header(header::USER_AGENT), ""),
    (Name::Header(header::VARY), ""),
    (Name::Header(header::VIA), ""),
    (Name::Header(header::WWW_AUTHENTICATE), ""),
];
