//! [`HttpOptions`] and the route table's name ↔ `HttpConnectionManager`.

use std::time::Duration;

use envoy_types::pb::envoy::{
    config::{
        common::mutation_rules::v3::{HeaderMutation as Mutation, header_mutation::Action},
        core::v3::{
            Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions,
            header_value_option::HeaderAppendAction,
        },
        route::v3::RouteConfiguration,
    },
    extensions::filters::{
        http::{
            header_mutation::v3::{HeaderMutation, Mutations},
            router::v3::Router,
        },
        network::http_connection_manager::v3::{
            HttpConnectionManager, HttpFilter, Rds, http_connection_manager::RouteSpecifier,
            http_connection_manager::UpgradeConfig, http_filter::ConfigType,
        },
    },
};
use prost::Name;
use towpath_policies::model::{ForwardedHeader, HttpOptions};

use super::{
    common::{
        At, Result, ads, bool_value, duration, expect_ads, optional_duration, pack, read_u32,
        refuse, refuse_if, u32_value,
    },
    headers,
};

/// Where an HCM takes its routes from.
pub(super) enum Routes {
    Named(String),
    Inline(Box<RouteConfiguration>),
}

/// `api` is for proxyless clients, which have no use for what concerns a
/// downstream connection and refuse filters they do not know.
pub(super) fn encode(
    listener: &str,
    route_table: &str,
    options: &HttpOptions,
    api: bool,
) -> HttpConnectionManager {
    let mut filters = Vec::new();
    if !api && options.forwarded != ForwardedHeader::XForwarded {
        filters.push(forwarded_filter(options.forwarded));
    }
    filters.push(filter("envoy.filters.http.router", pack(&Router::default())));
    let websocket = UpgradeConfig { upgrade_type: "websocket".to_owned(), ..Default::default() };
    HttpConnectionManager {
        stat_prefix: listener.to_owned(),
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: ads(),
            route_config_name: route_table.to_owned(),
        })),
        http_filters: filters,
        common_http_protocol_options: Some(HttpProtocolOptions {
            idle_timeout: Some(duration(options.idle_timeout)),
            max_headers_count: u32_value(options.max_headers.max(1)),
            ..Default::default()
        }),
        http_protocol_options: options
            .http10
            .then(|| Http1ProtocolOptions { accept_http_10: true, ..Default::default() }),
        http2_protocol_options: Some(Http2ProtocolOptions {
            max_concurrent_streams: u32_value(options.max_concurrent_streams.clamp(1, MAX_STREAMS)),
            ..Default::default()
        }),
        max_request_headers_kb: u32_value(
            options.max_head_bytes.div_ceil(1024).clamp(1, MAX_HEAD_KB),
        ),
        request_headers_timeout: Some(duration(options.head_timeout)),
        use_remote_address: (!api).then(|| bool_value(true)).flatten(),
        skip_xff_append: !api && options.forwarded != ForwardedHeader::XForwarded,
        via: options.via.as_ref().map(|name| format!("{VIA_VERSION}{name}")).unwrap_or_default(),
        upgrade_configs: if api { Vec::new() } else { vec![websocket] },
        ..Default::default()
    }
}

pub(super) fn decode(pb: &HttpConnectionManager) -> Result<(Routes, HttpOptions)> {
    check_filters(&pb.http_filters)?;
    let routes = match &pb.route_specifier {
        Some(RouteSpecifier::Rds(rds)) => {
            expect_ads(rds.config_source.as_ref()).at("rds.config_source")?;
            refuse_if(
                rds.route_config_name.is_empty(),
                "rds.route_config_name",
                "must not be empty",
            )?;
            Routes::Named(rds.route_config_name.clone())
        }
        Some(RouteSpecifier::RouteConfig(table)) => Routes::Inline(Box::new(table.clone())),
        Some(RouteSpecifier::ScopedRoutes(_)) => {
            return refuse("scoped routes are not supported").at("scoped_routes");
        }
        None => return refuse("rds or route_config is needed"),
    };
    Ok((routes, decode_options(pb)?))
}

/// Every filter before the router guards or changes requests: one that would
/// not be there must be refused, unless it says that it may be left out.
fn check_filters(filters: &[HttpFilter]) -> Result<()> {
    let Some((last, others)) = filters.split_last() else {
        return refuse("must end in the router: without it every request hangs").at("http_filters");
    };
    if !is_router(last) {
        return refuse(format!("must end in the router, not in {:?}", name(last)))
            .at("http_filters");
    }
    let harmless = |f: &HttpFilter| {
        f.disabled
            || f.is_optional
            || f.name == FORWARDED
            || f.name == "envoy.filters.http.grpc_stats"
    };
    match others.iter().position(|f| !harmless(f)) {
        Some(at) => refuse(format!("the filter {:?} is not supported", name(&others[at])))
            .at_index("http_filters", at),
        None => Ok(()),
    }
}

fn decode_options(pb: &HttpConnectionManager) -> Result<HttpOptions> {
    let mut options = HttpOptions::default();
    if let Some(common) = &pb.common_http_protocol_options {
        let idle = optional_duration(common.idle_timeout.as_ref(), "idle_timeout")?;
        options.idle_timeout = match idle {
            Some(Duration::ZERO) => NEVER,
            Some(idle) => idle,
            None => options.idle_timeout,
        };
        options.max_headers =
            read_u32(common.max_headers_count.as_ref()).unwrap_or(options.max_headers);
    }
    if let Some(kb) = read_u32(pb.max_request_headers_kb.as_ref()) {
        options.max_head_bytes = kb.min(MAX_HEAD_KB) * 1024;
    }
    options.http10 = pb.http_protocol_options.as_ref().is_some_and(|http1| http1.accept_http_10);
    // 0 is "no limit" for Envoy; every limit here is finite.
    if let Some(limit) =
        optional_duration(pb.request_headers_timeout.as_ref(), "request_headers_timeout")?
        && !limit.is_zero()
    {
        options.head_timeout = limit;
    }
    if let Some(streams) = pb
        .http2_protocol_options
        .as_ref()
        .and_then(|h2| read_u32(h2.max_concurrent_streams.as_ref()))
    {
        options.max_concurrent_streams = streams;
    }
    if !pb.via.is_empty() {
        options.via = Some(pb.via.strip_prefix(VIA_VERSION).unwrap_or(&pb.via).to_owned());
    }
    Ok(options)
}

/// Envoy has no option for this; its header mutation filter says it.
fn forwarded_filter(forwarded: ForwardedHeader) -> HttpFilter {
    let remove = |name: &str| Mutation { action: Some(Action::Remove(name.to_owned())) };
    let mut mutations = vec![remove("x-forwarded-for"), remove("x-forwarded-proto")];
    if forwarded == ForwardedHeader::Rfc7239 {
        let mut option = headers::option(
            &("forwarded".to_owned(), String::new()),
            HeaderAppendAction::AppendIfExistsOrAdd,
        );
        if let Some(header) = &mut option.header {
            header.value = "for=\"%DOWNSTREAM_REMOTE_ADDRESS%\";proto=%REQ(:SCHEME)%".to_owned();
        }
        mutations.push(Mutation { action: Some(Action::Append(option)) });
    } else {
        mutations.push(remove("forwarded"));
    }
    let config = HeaderMutation {
        mutations: Some(Mutations { request_mutations: mutations, ..Default::default() }),
        ..Default::default()
    };
    filter(FORWARDED, pack(&config))
}

fn filter(name: &str, config: envoy_types::pb::google::protobuf::Any) -> HttpFilter {
    HttpFilter {
        name: name.to_owned(),
        config_type: Some(ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}

fn is_router(filter: &HttpFilter) -> bool {
    match &filter.config_type {
        Some(ConfigType::TypedConfig(any)) => any.type_url == Router::type_url(),
        Some(_) => false,
        None => filter.name == "envoy.filters.http.router",
    }
}

fn name(filter: &HttpFilter) -> String {
    filter.name.chars().take(128).collect()
}

/// Name of the filter that stands for [`HttpOptions::forwarded`].
const FORWARDED: &str = "towpath.forwarded";
/// `Via` wants the protocol's version before the pseudonym.
const VIA_VERSION: &str = "1.1 ";
/// Envoy's ceiling.
const MAX_HEAD_KB: u32 = 8_192;
const MAX_STREAMS: u32 = (1 << 31) - 1;
/// What "never" becomes where a domain value must be finite: a year.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);
