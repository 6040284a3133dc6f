//! The values that fields have: numbers with bounds, times, sizes, names.

use std::{
    net::{IpAddr, SocketAddr},
    ops::{Deref, RangeInclusive},
    time::Duration,
};

use ipnetwork::IpNetwork;
use serde_json::{Value as Json, json};

use super::read::{Definitions, Read, invalid, ticked, wrong_type};
use crate::{
    diagnostic::Rule,
    problem::{At, Problems},
    yaml::{Node, ScalarKind, Value, scalar_kind},
};

impl Read for String {
    fn read(node: &Node, problems: &mut Problems) -> Option<Self> {
        let Value::Scalar { text, plain } = &node.value else {
            wrong_type(node, "text", problems);
            return None;
        };
        if scalar_kind(text, *plain) != ScalarKind::Text {
            wrong_type(node, "text", problems).help(format!("put it in quotes: \"{text}\""));
            return None;
        }
        Some(text.clone())
    }

    fn schema(_: &mut Definitions) -> Json {
        json!({ "type": "string" })
    }
}

impl Read for bool {
    fn read(node: &Node, problems: &mut Problems) -> Option<Self> {
        match &node.value {
            Value::Scalar { text, plain } if scalar_kind(text, *plain) == ScalarKind::Bool => {
                Some(text.eq_ignore_ascii_case("true"))
            }
            _ => {
                wrong_type(node, "true or false", problems);
                None
            }
        }
    }

    fn schema(_: &mut Definitions) -> Json {
        json!({ "type": "boolean" })
    }
}

/// A whole number from `MIN` to `MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Whole<const MIN: u32, const MAX: u32>(pub(crate) u32);

/// A TCP port; 0 is none.
pub(crate) type Port = Whole<1, 65_535>;
/// Any count, with none allowed.
pub(crate) type Count = Whole<0, 4_294_967_295>;
/// A count of at least one.
pub(crate) type Positive = Whole<1, 4_294_967_295>;
/// 0 to 100.
pub(crate) type Percent = Whole<0, 100>;

impl<const MIN: u32, const MAX: u32> Read for Whole<MIN, MAX> {
    fn read(node: &Node, problems: &mut Problems) -> Option<Self> {
        let Some(number) = whole_number(node, problems)? else {
            let help = bounds(MIN, MAX);
            invalid(node.span, format!("{} is out of range", node.describe()), help, problems);
            return None;
        };
        match u32::try_from(number) {
            Ok(number) if (MIN..=MAX).contains(&number) => Some(Self(number)),
            _ => {
                let message = format!("{number} is out of range");
                invalid(node.span, message, bounds(MIN, MAX), problems);
                None
            }
        }
    }

    fn schema(_: &mut Definitions) -> Json {
        json!({ "type": "integer", "minimum": MIN, "maximum": MAX })
    }
}

impl<const MIN: u32, const MAX: u32> Deref for Whole<MIN, MAX> {
    type Target = u32;

    fn deref(&self) -> &u32 {
        &self.0
    }
}

fn bounds(min: u32, max: u32) -> String {
    if max == u32::MAX {
        format!("a whole number of at least {min}")
    } else {
        format!("a whole number from {min} to {max}")
    }
}

/// The number, `Some(None)` when it does not fit at all.
#[expect(
    clippy::option_option,
    reason = "not a number, and a number too large, are told differently"
)]
fn whole_number(node: &Node, problems: &mut Problems) -> Option<Option<i64>> {
    let Value::Scalar { text, plain } = &node.value else {
        wrong_type(node, "a whole number", problems);
        return None;
    };
    match scalar_kind(text, *plain) {
        ScalarKind::Integer => {}
        ScalarKind::Text if !*plain && text.parse::<i64>().is_ok() => {
            wrong_type(node, "a whole number", problems).help("leave the quotes out");
            return None;
        }
        _ => {
            wrong_type(node, "a whole number", problems);
            return None;
        }
    }
    let parsed = if let Some(hex) = text.strip_prefix("0x") {
        i64::from_str_radix(hex, 16).ok()
    } else if let Some(octal) = text.strip_prefix("0o") {
        i64::from_str_radix(octal, 8).ok()
    } else {
        text.parse().ok()
    };
    Some(parsed)
}

/// Degrees from `-MAX` to `MAX`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Degrees<const MAX: u32>(pub(crate) f64);

impl<const MAX: u32> Read for Degrees<MAX> {
    fn read(node: &Node, problems: &mut Problems) -> Option<Self> {
        let most = f64::from(MAX);
        number(node, -most..=most, format!("degrees from -{MAX} to {MAX}"), problems).map(Self)
    }

    fn schema(_: &mut Definitions) -> Json {
        json!({ "type": "number", "minimum": -f64::from(MAX), "maximum": f64::from(MAX) })
    }
}

/// A factor from 0 to 100.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Factor(pub(crate) f64);

impl Read for Factor {
    fn read(node: &Node, problems: &mut Problems) -> Option<Self> {
        number(node, 0.0..=100.0, "a number from 0 to 100".to_owned(), problems).map(Self)
    }

    fn schema(_: &mut Definitions) -> Json {
        json!({ "type": "number", "minimum": 0, "maximum": 100 })
    }
}

/// A number from 0 to `MAX`, with decimals or without.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Decimal<const MAX: u32>(pub(crate) f64);

impl<const MAX: u32> Read for Decimal<MAX> {
    fn read(node: &Node, problems: &mut Problems) -> Option<Self> {
        let help = format!("a number from 0 to {MAX}");
        number(node, 0.0..=f64::from(MAX), help, problems).map(Self)
    }

    fn schema(_: &mut Definitions) -> Json {
        json!({ "type": "number", "minimum": 0, "maximum": MAX })
    }
}

/// A number that may have decimals.
fn number(
    node: &Node,
    range: RangeInclusive<f64>,
    help: String,
    problems: &mut Problems,
) -> Option<f64> {
    let number = match &node.value {
        Value::Scalar { text, plain } => match scalar_kind(text, *plain) {
            ScalarKind::Integer | ScalarKind::Float => text.parse::<f64>().unwrap_or(f64::NAN),
            _ => {
                wrong_type(node, "a number", problems).help(help);
                return None;
            }
        },
        _ => {
            wrong_type(node, "a number", problems).help(help);
            return None;
        }
    };
    // What is not a number is in no range.
    if range.contains(&number) {
        return Some(number);
    }
    invalid(node.span, format!("{} is out of range", node.describe()), help, problems);
    None
}

/// A length of time as Gateway API writes it (GEP-2257): `1h30m`, `250ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Time(pub(crate) Duration);

/// A [`Time`] above zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PositiveTime(pub(crate) Duration);

const TIME_HELP: &str = "a time like 250ms, 30s or 1h30m (h, m, s, ms; whole numbers)";

impl Time {
    /// `None` for zero, which stands for no limit.
    pub(crate) fn limit(self) -> Option<Duration> {
        (!self.0.is_zero()).then_some(self.0)
    }
}

impl Read for Time {
    fn read(node: &Node, problems: &mut Problems) -> Option<Self> {
        let Some(text) = node.text() else {
            wrong_type(node, "a time", problems).help(TIME_HELP);
            return None;
        };
        if let Some(time) = parse_time(text) {
            return Some(Self(time));
        }
        let message = match text.strip_prefix('-').and_then(parse_time) {
            Some(_) => format!("{} is negative", ticked(text)),
            None if text.parse::<f64>().is_ok() => format!("{} has no unit", ticked(text)),
            None => format!("{} is not a time", ticked(text)),
        };
        invalid(node.span, message, TIME_HELP, problems);
        None
    }

    fn schema(definitions: &mut Definitions) -> Json {
        definitions.refer("Time", |_| {
            json!({
                "type": "string",
                "description": TIME_HELP,
                "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$",
            })
        })
    }
}

impl Read for PositiveTime {
    fn read(node: &Node, problems: &mut Problems) -> Option<Self> {
        let Time(time) = Time::read(node, problems)?;
        if time.is_zero() {
            invalid(node.span, "the time must be above zero", TIME_HELP, problems);
            return None;
        }
        Some(Self(time))
    }

    fn schema(definitions: &mut Definitions) -> Json {
        Time::schema(definitions)
    }
}

/// Reads a time as Gateway API writes it (GEP-2257): one to four numbers of at most five digits,
/// each with a unit (`h`, `m`, `s`, `ms`).
pub fn parse_time(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut sum = Duration::ZERO;
    for _ in 0..4 {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        if digits == 0 || digits > 5 {
            return None;
        }
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let (unit, length) = if rest.starts_with("ms") {
            (Duration::from_millis(number), 2)
        } else if rest.starts_with('s') {
            (Duration::from_secs(number), 1)
        } else if rest.starts_with('m') {
            (Duration::from_secs(number * 60), 1)
        } else if rest.starts_with('h') {
            (Duration::from_secs(number * 3600), 1)
        } else {
            return None;
        };
        sum += unit;
        rest = &rest[length..];
        if rest.is_empty() {
            return Some(sum);
        }
    }
    None
}

/// A number of bytes: `64KiB`, `10MB`, `1048576`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Bytes(pub(crate) u64);

/// Sizes travel to proxies as doubles, which hold every whole number up to here.
const MAX_BYTES: u64 = 1 << 53;
const BYTES_HELP: &str = "bytes like 65536, 64KiB or 10MB (B, kB, MB, GB, TB, KiB, MiB, GiB, TiB)";

impl Read for Bytes {
    fn read(node: &Node, problems: &mut Problems) -> Option<Self> {
        let Some(text) = node.text() else {
            wrong_type(node, "a size in bytes", problems).help(BYTES_HELP);
            return None;
        };
        match parse_bytes(text) {
            Some(size) if size <= MAX_BYTES => Some(Self(size)),
            Some(_) => {
                let message = format!("{} is too large a size", ticked(text));
                let help = format!("at most {MAX_BYTES} bytes (8192 TiB)");
                invalid(node.span, message, help, problems);
                None
            }
            None => {
                let message = format!("{} is not a size in bytes", ticked(text));
                invalid(node.span, message, BYTES_HELP, problems);
                None
            }
        }
    }

    fn schema(definitions: &mut Definitions) -> Json {
        definitions.refer("Bytes", |_| {
            json!({
                "description": BYTES_HELP,
                "oneOf": [
                    { "type": "integer", "minimum": 0, "maximum": MAX_BYTES },
                    { "type": "string", "pattern": "^[0-9]+ ?([kMGT]?B|[KMGT]iB)?$" },
                ],
            })
        })
    }
}

/// Reads a number of bytes: a whole number, with or without a unit (`B`, `kB` to `TB`, `KiB` to
/// `TiB`). `None` also for what 64 bits do not hold.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let number: u64 = text[..text.len() - unit.len()].parse().ok()?;
    let factor: u64 = match unit.strip_prefix(' ').unwrap_or(unit) {
        "" if unit.is_empty() => 1,
        "B" => 1,
        "kB" => 1000,
        "MB" => 1000_u64.pow(2),
        "GB" => 1000_u64.pow(3),
        "TB" => 1000_u64.pow(4),
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return None,
    };
    number.checked_mul(factor)
}

/// Declares text of a certain form.
macro_rules! text {
    ($(#[doc = $doc:literal])* $name:ident, $pattern:literal, $check:expr, $help:literal) => {
        $(#[doc = $doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(crate) struct $name(pub(crate) String);

        impl $crate::document::read::Read for $name {
            fn read(
                node: &$crate::yaml::Node,
                problems: &mut $crate::problem::Problems,
            ) -> Option<Self> {
                $crate::document::value::checked_text(node, $check, $help, problems).map(Self)
            }

            fn schema(
                definitions: &mut $crate::document::read::Definitions,
            ) -> serde_json::Value {
                definitions.refer(stringify!($name), |_| {
                    serde_json::json!({ "type": "string", "description": $help, "pattern": $pattern })
                })
            }
        }

        impl std::ops::Deref for $name {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

pub(crate) use text;

/// Reads text that `check` accepts.
pub(crate) fn checked_text(
    node: &Node,
    check: fn(&str) -> Result<(), &'static str>,
    help: &str,
    problems: &mut Problems,
) -> Option<String> {
    let text = String::read(node, problems)?;
    match check(&text) {
        Ok(()) => Some(text),
        Err(why) => {
            invalid(node.span, format!("{} {why}", ticked(&text)), help, problems);
            None
        }
    }
}

text!(
    /// RFC 1123 label.
    Name,
    "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$",
    |text| if is_label(text) { Ok(()) } else { Err("is not a name") },
    "1 to 63 of a-z, 0-9 and -, with no - at either end"
);
text!(
    /// Host name, or one wildcard label and a host name.
    Hostname,
    "^(\\*\\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
    |text| check_hostname(text, true),
    "a lower-case DNS name, with at most one `*.` in front, no port, no IP address"
);
text!(
    /// Host name without a wildcard.
    PreciseHostname,
    "^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
    |text| check_hostname(text, false),
    "a lower-case DNS name without a wildcard or a port"
);
text!(
    /// Name of a place on earth.
    PlaceName,
    "^\\S(.{0,98}\\S)?$",
    check_place,
    "1 to 100 characters, e.g. Frankfurt, or Portland, OR, or eu-central-1"
);
impl PlaceName {
    /// A name that was read as mere text.
    pub(crate) fn checked(text: &At<String>, problems: &mut Problems) -> Option<At<Self>> {
        let value = Value::Scalar { text: text.value.clone(), plain: false };
        At::read(&Node { span: text.span, value }, problems)
    }
}

text!(
    /// RFC 9110 field name.
    HeaderName,
    "^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}$",
    |text| if is_token(text) { Ok(()) } else { Err("is not a header name") },
    "letters, digits and !#$%&'*+-.^_`|~ (RFC 9110 token), at most 256; no pseudo-header"
);
text!(
    /// Name of a query parameter.
    QueryName,
    "^[^&=#\\s]{1,256}$",
    |text| if is_query_name(text) { Ok(()) } else { Err("is not the name of a query parameter") },
    "1 to 256 characters as they are in the URL, without &, =, # or blanks"
);
text!(
    /// RFC 9110 field value: visible ASCII, inner blanks and tabs.
    HeaderValue,
    "^[!-~]([ \\t!-~]{0,4094}[!-~])?$",
    |text| if is_field_value(text) { Ok(()) } else { Err("is not a header value") },
    "visible ASCII with blanks inside, 1 to 4096 characters, no line breaks"
);
text!(
    /// Path of a URL, without query.
    UrlPath,
    "^/[^?#\\s]*$",
    check_path,
    "a path that starts with / and has no ?, # or blanks, at most 1024 bytes"
);
text!(
    /// Path of a file on the proxy's machine.
    FilePath,
    "^/",
    |text| if text.starts_with('/') && !text.contains('\0') { Ok(()) } else { Err("is not an absolute path") },
    "an absolute path on the proxy's machine, e.g. /etc/towpath/tls.crt"
);

fn is_query_name(text: &str) -> bool {
    let odd = |c: char| matches!(c, '&' | '=' | '#') || c.is_whitespace();
    (1..=256).contains(&text.chars().count()) && !text.contains(odd)
}

pub(crate) fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn check_place(text: &str) -> Result<(), &'static str> {
    if text.is_empty() || text.chars().count() > crate::places::MAX_NAME {
        Err("is not the name of a place")
    } else if text.trim() != text || text.chars().any(char::is_control) {
        Err("has blanks around it, or control characters")
    } else {
        Ok(())
    }
}

fn check_hostname(text: &str, wildcard: bool) -> Result<(), &'static str> {
    let rest = match text.strip_prefix("*.") {
        Some(rest) if wildcard => rest,
        Some(_) => return Err("must not have a wildcard"),
        None => text,
    };
    if rest.contains(':') || rest.parse::<IpAddr>().is_ok() {
        return Err("is not a host name");
    }
    if text.len() > 253 || !rest.split('.').all(is_label) {
        return Err("is not a host name");
    }
    Ok(())
}

pub(crate) fn is_token(text: &str) -> bool {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    (1..=256).contains(&text.len()) && text.bytes().all(token)
}

fn is_field_value(text: &str) -> bool {
    let inner = |b: u8| b == b'\t' || (b' '..=b'~').contains(&b);
    (1..=4096).contains(&text.len())
        && text.bytes().all(inner)
        && text.trim_matches([' ', '\t']).len() == text.len()
}

fn check_path(text: &str) -> Result<(), &'static str> {
    if !text.starts_with('/') {
        return Err("does not start with /");
    }
    if text.len() > 1024 {
        return Err("is too long");
    }
    if text.contains(['?', '#']) {
        return Err("has a query or fragment");
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("has blanks or control characters");
    }
    Ok(())
}

/// An IP address and a port above 0 that can be connected to.
/// Where a service is reached: an address with a port or without, or a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ServiceAddress {
    pub(crate) port: Option<u16>,
    pub(crate) network: IpNetwork,
}

impl ServiceAddress {
    fn parse(text: &str) -> Result<Self, &'static str> {
        let (port, network) = if let Ok(address) = text.parse::<SocketAddr>() {
            (Some(address.port()), IpNetwork::from(address.ip()))
        } else {
            (None, text.parse::<IpNetwork>().map_err(|_| "is neither an address nor a network")?)
        };
        if port == Some(0) {
            return Err("has port 0");
        }
        if network.prefix() == 0 || network.ip().is_unspecified() {
            return Err("is every address");
        }
        if network.ip() != network.network() {
            return Err("has bits set beyond its prefix");
        }
        if network.ip().is_multicast() {
            return Err("is a multicast address");
        }
        Ok(Self { port, network })
    }
}

impl Read for ServiceAddress {
    fn read(node: &Node, problems: &mut Problems) -> Option<Self> {
        const HELP: &str = "an IP address (10.0.0.7), one with a port (10.0.0.7:5432, [fd00::7]:5432) or a network (10.1.0.0/16)";
        let Some(text) = node.text() else {
            wrong_type(node, "an address", problems).help(HELP);
            return None;
        };
        match Self::parse(text) {
            Ok(address) => Some(address),
            Err(why) => {
                invalid(node.span, format!("{} {why}", ticked(text)), HELP, problems);
                None
            }
        }
    }

    fn schema(definitions: &mut Definitions) -> Json {
        definitions.refer("ServiceAddress", |_| {
            json!({
                "type": "string",
                "description": "An IP address with a port or without, or a network.",
                "pattern": "^([0-9.]+(:[0-9]{1,5})?|[0-9.]+/[0-9]{1,2}|[0-9a-fA-F:.]+(/[0-9]{1,3})?|\\[[0-9a-fA-F:.]+\\]:[0-9]{1,5})$",
            })
        })
    }
}

impl Read for SocketAddr {
    fn read(node: &Node, problems: &mut Problems) -> Option<Self> {
        const HELP: &str = "an IP address and a port, e.g. 10.0.0.7:8080 or [fd00::7]:8080";
        let Some(text) = node.text() else {
            wrong_type(node, "an address", problems).help(HELP);
            return None;
        };
        let why = match text.parse::<Self>() {
            Ok(address) if address.port() == 0 => "has port 0",
            Ok(address) if address.ip().is_unspecified() => {
                "is every address, not one that can be reached"
            }
            Ok(address) if address.ip().is_multicast() => "is a multicast address",
            Ok(address) => return Some(address),
            Err(_) => "is not an address",
        };
        problems
            .error(Rule::InvalidValue, node.span, format!("{} {why}", ticked(text)))
            .help(format!("{HELP}; for a host name use `dns`"));
        None
    }

    fn schema(definitions: &mut Definitions) -> Json {
        definitions.refer("Address", |_| {
            json!({
                "type": "string",
                "description": "An IP address and a port.",
                "pattern": "^([0-9.]+|\\[[0-9a-fA-F:.]+\\]):[0-9]{1,5}$",
            })
        })
    }
}
