//! Pieces that every resource needs.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use envoy_types::pb::{
    envoy::config::core::v3::{
        self as core, AggregatedConfigSource, ApiVersion, ConfigSource, DataSource,
        SelfConfigSource, SocketAddress, address, config_source::ConfigSourceSpecifier,
        data_source, socket_address,
    },
    google::protobuf::{self as pb, Any, BoolValue, UInt32Value},
};
use prost::{Message, Name};

use super::Invalid;

pub(super) type Result<T> = std::result::Result<T, Invalid>;

/// Adds the field to an error's path.
pub(super) trait At<T> {
    fn at(self, field: &str) -> Result<T>;
    fn at_index(self, field: &str, index: usize) -> Result<T>;
}

impl<T> At<T> for Result<T> {
    fn at(self, field: &str) -> Result<T> {
        self.map_err(|e| e.within(field))
    }

    fn at_index(self, field: &str, index: usize) -> Result<T> {
        self.map_err(|e| e.within(&format!("{field}[{index}]")))
    }
}

pub(super) fn refuse<T>(reason: impl Into<String>) -> Result<T> {
    Err(Invalid::new(reason))
}

/// Refuses what is set and cannot be obeyed.
pub(super) fn refuse_if(set: bool, field: &str, reason: &str) -> Result<()> {
    if set { Err(Invalid::new(reason).within(field)) } else { Ok(()) }
}

pub(super) fn pack<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

pub(super) fn unpack<M: Message + Name + Default>(any: &Any) -> Result<M> {
    if any.type_url != M::type_url() {
        let url: String = any.type_url.chars().take(256).collect();
        return refuse(format!("{url:?} is not supported here, only {}", M::full_name()));
    }
    M::decode(any.value.as_slice())
        .map_err(|e| Invalid::new(format!("is no valid {}: {e}", M::NAME)))
}

pub(super) fn duration(value: Duration) -> pb::Duration {
    let value = value.min(MAX_DURATION);
    pb::Duration {
        seconds: i64::try_from(value.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(value.subsec_nanos()).unwrap_or(0),
    }
}

pub(super) fn read_duration(value: &pb::Duration) -> Result<Duration> {
    let (Ok(seconds), Ok(nanos)) = (u64::try_from(value.seconds), u32::try_from(value.nanos))
    else {
        return refuse("is a negative duration");
    };
    if nanos >= 1_000_000_000 {
        return refuse("is no duration: a second or more of nanoseconds");
    }
    Ok(Duration::new(seconds, nanos).min(MAX_DURATION))
}

/// Absent stays absent.
pub(super) fn optional_duration(
    value: Option<&pb::Duration>,
    field: &str,
) -> Result<Option<Duration>> {
    value.map(read_duration).transpose().at(field)
}

/// A timeout in which 0 means "none".
pub(super) fn timeout(
    value: Option<&pb::Duration>,
    absent: Option<Duration>,
    field: &str,
) -> Result<Option<Duration>> {
    Ok(match optional_duration(value, field)? {
        Some(Duration::ZERO) => None,
        Some(value) => Some(value),
        None => absent,
    })
}

pub(super) fn u32_value(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

pub(super) fn read_u32(value: Option<&UInt32Value>) -> Option<u32> {
    value.map(|v| v.value)
}

pub(super) fn bool_value(value: bool) -> Option<BoolValue> {
    Some(BoolValue { value })
}

pub(super) fn read_bool(value: Option<&BoolValue>) -> bool {
    value.is_some_and(|v| v.value)
}

pub(super) fn address(address: SocketAddr) -> core::Address {
    core::Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: address.ip().to_string(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(address.port().into())),
            ..Default::default()
        })),
    }
}

/// Host text and port of a TCP address.
pub(super) fn read_host(address: Option<&core::Address>) -> Result<(&str, u16)> {
    let Some(address::Address::SocketAddress(socket)) = address.and_then(|a| a.address.as_ref())
    else {
        return refuse("must be a socket_address (no pipes, no internal listeners)");
    };
    if socket.protocol != socket_address::Protocol::Tcp as i32 {
        return refuse("only TCP is supported");
    }
    let Some(socket_address::PortSpecifier::PortValue(port)) = socket.port_specifier else {
        return refuse("needs a port_value");
    };
    match u16::try_from(port) {
        Ok(port) => Ok((&socket.address, port)),
        Err(_) => refuse(format!("{port} is no port")),
    }
}

pub(super) fn read_address(address: Option<&core::Address>) -> Result<SocketAddr> {
    let (host, port) = read_host(address)?;
    match host.parse::<IpAddr>() {
        Ok(ip) => Ok(SocketAddr::new(ip, port)),
        Err(_) => {
            let host: String = host.chars().take(256).collect();
            refuse(format!("{host:?} is no IP address"))
        }
    }
}

pub(super) fn file(path: &Path) -> Option<DataSource> {
    Some(DataSource {
        specifier: Some(data_source::Specifier::Filename(path.to_string_lossy().into_owned())),
        ..Default::default()
    })
}

pub(super) fn read_file(source: Option<&DataSource>) -> Result<PathBuf> {
    match source.and_then(|s| s.specifier.as_ref()) {
        Some(data_source::Specifier::Filename(name)) if !name.is_empty() => Ok(name.into()),
        _ => refuse("must be a file on the proxy's machine (filename)"),
    }
}

/// "From the same ADS stream."
pub(super) fn ads() -> Option<ConfigSource> {
    Some(ConfigSource {
        resource_api_version: ApiVersion::V3 as i32,
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..Default::default()
    })
}

/// "The server that this comes from."
pub(super) fn this_server() -> Option<ConfigSource> {
    let this = SelfConfigSource { transport_api_version: ApiVersion::V3 as i32 };
    Some(ConfigSource {
        resource_api_version: ApiVersion::V3 as i32,
        config_source_specifier: Some(ConfigSourceSpecifier::Self_(this)),
        ..Default::default()
    })
}

pub(super) fn expect_ads(source: Option<&ConfigSource>) -> Result<()> {
    match source.and_then(|s| s.config_source_specifier.as_ref()) {
        Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(_)) => Ok(()),
        _ => refuse("must be ads or self: one stream carries everything"),
    }
}

/// The longest duration protobuf can say (10,000 years).
const MAX_DURATION: Duration = Duration::from_secs(315_576_000_000);
