use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::{queued::network, retry_after};
use crate::http::message::{Length, ResponseHead};

#[test]
fn a_client_is_one_tenant_by_its_address_or_by_its_network_of_ipv6() {
    for (one, other, same) in [
        ("10.0.0.1", "10.0.0.1", true),
        ("10.0.0.1", "10.0.0.2", false),
        ("10.0.0.1", "::a00:1", false),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", true),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", false),
    ] {
        let of = |address: &str| network(address.parse().unwrap());
        assert_eq!(of(one) == of(other), same, "{one} {other}");
    }
}

#[test]
fn retry_after_is_read_in_seconds_and_as_a_date() {
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    for (value, expected) in [
        ("3", Some(3)),
        (" 120 ", Some(120)),
        ("Sun, 06 Nov 1994 08:49:40 GMT", Some(3)),
        // The obsolete forms are understood as well (RFC 9110 §5.6.7).
        ("Sunday, 06-Nov-94 08:49:40 GMT", Some(3)),
        ("Sun Nov  6 08:49:40 1994", Some(3)),
        (date, Some(0)),
        ("Sun, 06 Nov 1994 08:49:00 GMT", Some(0)),
        ("-1", None),
        ("soon", None),
        ("", None),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(header::DATE, HeaderValue::from_static(date));
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static(value));
        let mut head =
            ResponseHead { status: StatusCode::SERVICE_UNAVAILABLE, headers, length: Length::None };
        assert_eq!(retry_after(&head), expected.map(Duration::from_secs), "{value}");
        // Without a date of its own, ours: what was due in 1994 is due now.
        head.headers.remove(header::DATE);
        if value.contains("GMT") {
            assert_eq!(retry_after(&head), Some(Duration::ZERO), "{value}");
        }
    }
}
