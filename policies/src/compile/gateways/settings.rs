//! What a Gateway says in annotations: who serves it and where that stands, where it binds, what it tells
//! upstreams.

use std::net::IpAddr;

use crate::{
    diagnostic::{Rule, nearest},
    document::{
        Object,
        gateway::GatewaySpec,
        read::{invalid, ticked},
        value::{PlaceName, is_token},
    },
    model::{Coordinates, ForwardedHeader, HttpOptions, Location, NodeSelector, Redirected},
    problem::{At, Problems},
};

use super::super::place::Places;

pub(crate) struct Settings {
    pub(crate) nodes: NodeSelector,
    pub(crate) bind: Option<IpAddr>,
    /// Connections come by TPROXY.
    pub(crate) transparent: bool,
    /// At these ports servers speak first, too.
    pub(crate) opaque_ports: Vec<u16>,
    pub(crate) http: HttpOptions,
    pub(crate) location: Location,
}

impl Settings {
    pub(crate) fn new(
        gateway: &Object<GatewaySpec>,
        places: &mut Places,
        problems: &mut Problems,
    ) -> Self {
        let annotation = |name: &str| gateway.metadata.annotations.get(name).map(|(_, text)| text);
        let mut http = HttpOptions::default();
        if let Some(via) = annotation("towpath.dev/via") {
            if is_token(via) {
                http.via = Some(via.value.clone());
            } else {
                let help = "a name for the Via header (RFC 9110 section 7.6.3), e.g. towpath";
                invalid(via.span, format!("{} is not a name for Via", ticked(via)), help, problems);
            }
        }
        if let Some(forwarded) = annotation("towpath.dev/forwarded") {
            http.forwarded = self::forwarded(forwarded, problems).unwrap_or(http.forwarded);
        }
        let bind = annotation("towpath.dev/bind").and_then(|written| {
            let parsed = written.parse().ok();
            if parsed.is_none() {
                let help = "an IP address without a port, e.g. 127.0.0.1 or ::";
                let message = format!("{} is not an IP address", ticked(written));
                invalid(written.span, message, help, problems);
            }
            parsed
        });
        let location = annotation("towpath.dev/place")
            .and_then(|written| location(written, places, problems))
            .unwrap_or_default();
        Self {
            nodes: annotation("towpath.dev/nodes")
                .map_or(NodeSelector::Unclaimed, |written| nodes(written, problems)),
            bind,
            transparent: annotation("towpath.dev/tproxy").is_some_and(|w| transparent(w, problems)),
            opaque_ports: annotation("towpath.dev/opaque-ports")
                .map(|written| ports(written, problems))
                .unwrap_or_default(),
            http,
            location,
        }
    }
}

fn transparent(written: &At<String>, problems: &mut Problems) -> bool {
    if !matches!(written.as_str(), "true" | "false") {
        let message = format!("{} is neither true nor false", ticked(written));
        invalid(written.span, message, "\"true\" or \"false\", in quotes", problems);
    }
    written.value == "true"
}

fn ports(written: &At<String>, problems: &mut Problems) -> Vec<u16> {
    let parsed = written.split(',').map(|port| port.trim().parse().ok().filter(|port| *port != 0));
    let Some(ports) = parsed.collect::<Option<Vec<u16>>>() else {
        let message = format!("{} is no list of ports", ticked(written));
        invalid(written.span, message, "ports separated by commas, e.g. \"3307,2525\"", problems);
        return Vec::new();
    };
    let most = Redirected::MOST_PORTS - Redirected::SERVER_FIRST.len();
    if ports.len() > most {
        let help = format!("at most {most}; or give the Service `protocol: TCP` and `addresses`");
        invalid(written.span, "these are too many ports", help, problems);
    }
    ports
}

/// A place by its name, or `latitude,longitude`.
fn location(
    written: &At<String>,
    places: &mut Places,
    problems: &mut Problems,
) -> Option<Location> {
    if let Some(point) = Coordinates::read(written) {
        return Some(Location::at(point));
    }
    let numbers = |(a, b): (&str, &str)| [a, b].iter().all(|n| n.trim().parse::<f64>().is_ok());
    if written.split_once(',').is_some_and(numbers) {
        let help = "latitude from -90 to 90, longitude from -180 to 180";
        invalid(written.span, format!("{} is not on earth", ticked(written)), help, problems);
        return None;
    }
    let name = PlaceName::checked(written, problems)?;
    Some(places.named(&name, "its proxies do not know where they stand", problems))
}

fn forwarded(written: &At<String>, problems: &mut Problems) -> Option<ForwardedHeader> {
    let words = ["none", "x-forwarded", "rfc7239"];
    match written.as_str() {
        "none" => Some(ForwardedHeader::Off),
        "off" => {
            problems
                .warning(Rule::InvalidValue, written.span, "`off` is called `none`")
                .help("kubectl takes a bare `off` for false, and no annotation may be that");
            Some(ForwardedHeader::Off)
        }
        "x-forwarded" => Some(ForwardedHeader::XForwarded),
        "rfc7239" => Some(ForwardedHeader::Rfc7239),
        other => {
            let mut help = format!("one of {}", words.join(", "));
            if let Some(near) = nearest(other, words) {
                help = format!("did you mean `{near}`? {help}");
            }
            invalid(written.span, format!("{} is not known here", ticked(other)), help, problems);
            None
        }
    }
}

fn nodes(written: &At<String>, problems: &mut Problems) -> NodeSelector {
    let patterns: Vec<String> = written.split(',').map(|p| p.trim().to_owned()).collect();
    let good = |p: &String| {
        !p.is_empty() && p.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-*/:".contains(&b))
    };
    if let Some(bad) = patterns.iter().find(|p| !good(p)) {
        let help = "names of proxies separated by commas; * stands for any run of characters";
        let message = format!("{} is not a pattern for node names", ticked(bad));
        invalid(written.span, message, help, problems);
    }
    NodeSelector::Matching(patterns)
}
