//! [`RouteTable`] ↔ `RouteConfiguration` (RDS).

use std::collections::{BTreeMap, HashSet};

use envoy_types::pb::envoy::config::route::v3::{self as rds, RouteConfiguration};
use towpath_policies::model::{Action, HeaderEdit, Route, RouteMatch, RouteTable, VirtualHost};

use super::{
    action,
    common::{At, Result, refuse, refuse_if},
    extension::Extra,
    headers, matching,
};

pub(super) type Pb = RouteConfiguration;

pub(super) fn encode(table: &RouteTable, proxyless: bool) -> Pb {
    Pb {
        name: table.name.clone(),
        virtual_hosts: table
            .virtual_hosts
            .iter()
            .map(|host| encode_host(host, proxyless))
            .collect(),
        // Domains are written without ports.
        ignore_port_in_host_matching: true,
        // A backend's edits come after its route's.
        most_specific_header_mutations_wins: true,
        ..Default::default()
    }
}

fn encode_host(host: &VirtualHost, proxyless: bool) -> rds::VirtualHost {
    rds::VirtualHost {
        name: host.name.clone(),
        domains: host.domains.clone(),
        routes: host.routes.iter().map(|route| encode_route(route, proxyless)).collect(),
        ..Default::default()
    }
}

fn encode_route(route: &Route, proxyless: bool) -> rds::Route {
    let (request_headers_to_add, request_headers_to_remove) =
        headers::encode(&route.request_headers);
    let (response_headers_to_add, response_headers_to_remove) =
        headers::encode(&route.response_headers);
    let mut pb = rds::Route {
        name: route.name.clone(),
        r#match: Some(matching::encode(&route.matches, proxyless)),
        action: Some(action::encode(&route.action, &route.matches.path)),
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        ..Default::default()
    };
    pb.metadata = lost(&pb, route).into_metadata();
    pb
}

/// What the standard part of an encoded route does not say.
fn lost(pb: &rds::Route, route: &Route) -> Extra {
    let mut extra = Extra::default();
    let Ok(carried) = decode_route(pb, &rds::VirtualHost::default()) else {
        // Nothing to compare with; then everything rides along.
        extra.set("match", &route.matches);
        extra.set("action", &route.action);
        return extra;
    };
    extra.keep("match", &route.matches, &carried.matches);
    extra.keep("requestHeaders", &route.request_headers, &carried.request_headers);
    extra.keep("responseHeaders", &route.response_headers, &carried.response_headers);
    match (&route.action, &carried.action) {
        (Action::Forward(route), Action::Forward(carried)) => {
            extra.keep("retry", &route.retry, &carried.retry);
            extra.keep("transfer", &route.transfer, &carried.transfer);
            extra.keep("path", &route.path, &carried.path);
            extra.keep("timeout", &route.timeout, &carried.timeout);
            extra.keep("idleTimeout", &route.idle_timeout, &carried.idle_timeout);
            extra.keep("backends", &route.backends, &carried.backends);
            extra.keep("mirrors", &route.mirrors, &carried.mirrors);
            extra.keep("host", &route.host, &carried.host);
        }
        (action, carried) => extra.keep("action", action, carried),
    }
    extra
}

pub(super) fn decode(pb: &Pb) -> Result<RouteTable> {
    refuse_if(pb.name.is_empty(), "name", "must not be empty")?;
    refuse_if(pb.vhds.is_some(), "vhds", "virtual host discovery is not supported")?;
    refuse_if(!pb.vhost_header.is_empty(), "vhost_header", "is not supported")?;
    let outer = Edits::of_table(pb)?;
    let mut domains = HashSet::new();
    let mut hosts = Vec::new();
    for (i, host) in pb.virtual_hosts.iter().enumerate() {
        let host = decode_host(host, &outer, &mut domains).at_index("virtual_hosts", i)?;
        hosts.push(host);
    }
    Ok(RouteTable { name: pb.name.clone(), virtual_hosts: hosts })
}

/// Header edits that a whole table or host makes.
struct Edits {
    request: HeaderEdit,
    response: HeaderEdit,
}

impl Edits {
    fn of_table(pb: &Pb) -> Result<Self> {
        Ok(Self {
            request: headers::decode(&pb.request_headers_to_add, &pb.request_headers_to_remove)?,
            response: headers::decode(&pb.response_headers_to_add, &pb.response_headers_to_remove)?,
        })
    }

    fn of_host(pb: &rds::VirtualHost) -> Result<Self> {
        Ok(Self {
            request: headers::decode(&pb.request_headers_to_add, &pb.request_headers_to_remove)?,
            response: headers::decode(&pb.response_headers_to_add, &pb.response_headers_to_remove)?,
        })
    }
}

fn decode_host(
    pb: &rds::VirtualHost,
    table: &Edits,
    taken: &mut HashSet<String>,
) -> Result<VirtualHost> {
    refuse_if(pb.matcher.is_some(), "matcher", "match trees are not supported")?;
    refuse_if(pb.require_tls != 0, "require_tls", "is not supported")?;
    let own = Edits::of_host(pb)?;
    let mut routes = Vec::new();
    for (i, route) in pb.routes.iter().enumerate() {
        let mut route = decode_route(route, pb).at_index("routes", i)?;
        for outer in [&own, table] {
            headers::merge(&mut route.request_headers, &outer.request);
            headers::merge(&mut route.response_headers, &outer.response);
        }
        routes.push(route);
    }
    Ok(VirtualHost { name: pb.name.clone(), domains: decode_domains(pb, taken)?, routes })
}

fn decode_domains(pb: &rds::VirtualHost, taken: &mut HashSet<String>) -> Result<Vec<String>> {
    // By name without port; `foo` and `foo:80` are one.
    let mut domains: BTreeMap<String, usize> = BTreeMap::new();
    for (i, domain) in pb.domains.iter().enumerate() {
        let domain = without_port(domain).to_ascii_lowercase();
        let inner = domain.strip_prefix('*').unwrap_or(&domain);
        if domain.is_empty() || inner.contains('*') {
            return refuse(format!("{domain:?} is no exact host, `*.suffix` or `*`"))
                .at_index("domains", i);
        }
        domains.entry(domain).or_insert(i);
    }
    if domains.is_empty() {
        return refuse("must not be empty").at("domains");
    }
    let mut ordered: Vec<(usize, String)> = domains.into_iter().map(|(d, i)| (i, d)).collect();
    ordered.sort();
    for (i, domain) in &ordered {
        if !taken.insert(domain.clone()) {
            return refuse(format!("{domain:?} is in another virtual host too"))
                .at_index("domains", *i);
        }
    }
    Ok(ordered.into_iter().map(|(_, domain)| domain).collect())
}

fn without_port(domain: &str) -> &str {
    match domain.rsplit_once(':') {
        Some((host, port)) if port == "*" || port.bytes().all(|b| b.is_ascii_digit()) => {
            // Not the tail of a bare IPv6 address.
            if host.contains(':') && !host.ends_with(']') { domain } else { host }
        }
        _ => domain,
    }
}

fn decode_route(pb: &rds::Route, host: &rds::VirtualHost) -> Result<Route> {
    let mut extra = Extra::read(pb.metadata.as_ref())?;
    let mut matches: Option<RouteMatch> = None;
    extra.restore("match", &mut matches)?;
    let matches = match (matches, &pb.r#match) {
        (Some(matches), _) => matches,
        (None, Some(pb_match)) => {
            matching::decode(pb_match, action::rewrites_prefix(pb.action.as_ref())).at("match")?
        }
        (None, None) => return refuse("is missing").at("match"),
    };
    let mut whole: Option<Action> = None;
    extra.restore("action", &mut whole)?;
    let mut action = match (whole, &pb.action) {
        (Some(action), _) => action,
        (None, Some(pb_action)) => action::decode(pb_action, &matches.path, host)?,
        (None, None) => return refuse("an action is needed"),
    };
    if let Action::Forward(forward) = &mut action {
        extra.restore("retry", &mut forward.retry)?;
        extra.restore("transfer", &mut forward.transfer)?;
        extra.restore("path", &mut forward.path)?;
        extra.restore("timeout", &mut forward.timeout)?;
        extra.restore("idleTimeout", &mut forward.idle_timeout)?;
        extra.restore("backends", &mut forward.backends)?;
        extra.restore("mirrors", &mut forward.mirrors)?;
        extra.restore("host", &mut forward.host)?;
        refuse_if(
            forward.backends.iter().all(|backend| backend.weight == 0),
            "backends",
            "the weights add up to 0",
        )?;
    }
    let mut route = Route {
        name: pb.name.clone(),
        matches,
        action,
        request_headers: headers::decode(&pb.request_headers_to_add, &pb.request_headers_to_remove)
            .at("request")?,
        response_headers: headers::decode(
            &pb.response_headers_to_add,
            &pb.response_headers_to_remove,
        )
        .at("response")?,
    };
    extra.restore("requestHeaders", &mut route.request_headers)?;
    extra.restore("responseHeaders", &mut route.response_headers)?;
    Ok(route)
}
