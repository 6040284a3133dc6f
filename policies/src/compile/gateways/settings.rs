//! What a Gateway says in annotations: who serves it and where that stands, where it binds, what it tells
//! upstreams.

use std::net::{IpAddr, Ipv4Addr};

use crate::{
    diagnostic::nearest,
    document::{
        Object,
        gateway::GatewaySpec,
        read::{invalid, ticked},
        value::{PlaceName, is_token},
    },
    model::{Coordinates, ForwardedHeader, HttpOptions, Location, NodeSelector},
    problem::{At, Problems},
};

use super::super::place::Places;

pub(crate) struct Settings {
    pub(crate) nodes: NodeSelector,
    pub(crate) bind: IpAddr,
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
            bind: bind.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            http,
            location,
        }
    }
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
    let words = ["off", "x-forwarded", "rfc7239"];
    match written.as_str() {
        "off" => Some(ForwardedHeader::Off),
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
