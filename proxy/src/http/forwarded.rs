//! What upstreams are told about the client: `X-Forwarded-*` or `Forwarded`.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, header::FORWARDED};
use towpath_policies::model::ForwardedHeader;

use super::Peer;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// The fields of one client connection, written once.
#[derive(Debug)]
pub(super) struct Forwarding {
    mode: ForwardedHeader,
    /// The client's address, or its `Forwarded` element.
    element: HeaderValue,
    proto: HeaderValue,
}

impl Forwarding {
    pub(super) fn new(mode: ForwardedHeader, peer: &Peer) -> Self {
        let proto = if peer.tls.is_some() { "https" } else { "http" };
        let ip = peer.addr.ip().to_canonical();
        let element = match (mode, ip) {
            (ForwardedHeader::Rfc7239, IpAddr::V6(v6)) => {
                format!("for=\"[{v6}]\";proto={proto}")
            }
            (ForwardedHeader::Rfc7239, IpAddr::V4(v4)) => format!("for={v4};proto={proto}"),
            (_, ip) => ip.to_string(),
        };
        Self {
            mode,
            element: HeaderValue::from_str(&element)
                .unwrap_or_else(|_| HeaderValue::from_static("unknown")),
            proto: HeaderValue::from_static(proto),
        }
    }

    /// Adds the client, and drops what the mode does not trust.
    pub(super) fn apply(&self, headers: &mut HeaderMap) {
        match self.mode {
            ForwardedHeader::Off => {
                for name in [FORWARDED, X_FORWARDED_FOR, X_FORWARDED_PROTO, X_FORWARDED_HOST] {
                    headers.remove(name);
                }
            }
            ForwardedHeader::XForwarded => {
                headers.remove(FORWARDED);
                append(headers, X_FORWARDED_FOR, &self.element);
                // The scheme of the first hop stays what it was.
                headers.entry(X_FORWARDED_PROTO).or_insert_with(|| self.proto.clone());
            }
            ForwardedHeader::Rfc7239 => {
                for name in [X_FORWARDED_FOR, X_FORWARDED_PROTO, X_FORWARDED_HOST] {
                    headers.remove(name);
                }
                append(headers, FORWARDED, &self.element);
            }
        }
    }
}

/// Appends to a list-valued field, in one line.
fn append(headers: &mut HeaderMap, name: HeaderName, element: &HeaderValue) {
    let Some(first) = headers.get(&name) else {
        headers.insert(name, element.clone());
        return;
    };
    let mut list = first.as_bytes().to_vec();
    for more in headers.get_all(&name).iter().skip(1) {
        list.extend_from_slice(b", ");
        list.extend_from_slice(more.as_bytes());
    }
    list.extend_from_slice(b", ");
    list.extend_from_slice(element.as_bytes());
    if let Ok(value) = HeaderValue::from_maybe_shared(bytes::Bytes::from(list)) {
        headers.insert(name, value);
    }
}
