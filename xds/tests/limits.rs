//! Nothing a peer sends makes a decoder panic, nor memory grow without bound.

#[path = "support/strategies.rs"]
mod strategies;

use std::time::{Duration, Instant};

use envoy_types::pb::{
    envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    },
    google::protobuf::Any,
};
use proptest::prelude::*;
use prost::Message;
use towpath_policies::model::{EndpointSet, ResourceKind, Snapshot};
use towpath_xds::{
    Flavour,
    client::Machine,
    codec,
    server::{Cache, Stream},
    wire::{self, Item, MAX_NAME_BYTES, MAX_NAMES, Request, Response},
};

const KINDS: [ResourceKind; 4] = [
    ResourceKind::Listener,
    ResourceKind::RouteTable,
    ResourceKind::Service,
    ResourceKind::EndpointSet,
];

fn packed(kind: ResourceKind, value: Vec<u8>) -> Any {
    Any { type_url: wire::type_url(kind).to_owned(), value }
}

/// Valid bytes of any kind, some of them changed.
fn damaged() -> impl Strategy<Value = (ResourceKind, Vec<u8>)> {
    let valid = prop_oneof![
        strategies::listener().prop_map(|l| (ResourceKind::Listener, codec::encode_listener(&l))),
        strategies::route_table()
            .prop_map(|r| (ResourceKind::RouteTable, codec::encode_route_table(&r))),
        strategies::service().prop_map(|s| (ResourceKind::Service, codec::encode_service(&s))),
        strategies::endpoint_set()
            .prop_map(|e| (ResourceKind::EndpointSet, codec::encode_endpoint_set(&e))),
    ];
    let damage = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6);
    (valid, damage, any::<prop::sample::Index>(), any::<bool>()).prop_map(
        |((kind, any), damage, end, cut)| {
            let mut value = any.value;
            for (at, byte) in damage {
                if !value.is_empty() {
                    let at = at.index(value.len());
                    value[at] = byte;
                }
            }
            if cut && !value.is_empty() {
                value.truncate(end.index(value.len()));
            }
            (kind, value)
        },
    )
}

proptest! {
    #[test]
    fn noise_does_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for kind in KINDS {
            let _ = codec::decode(kind, &packed(kind, bytes.clone()));
        }
        let requests = [
            DeltaDiscoveryRequest::decode(&bytes[..]).ok().map(Request::from_delta),
            DiscoveryRequest::decode(&bytes[..]).ok().map(Request::from_world),
        ];
        let responses = [
            DeltaDiscoveryResponse::decode(&bytes[..]).ok().map(Response::from_delta),
            DiscoveryResponse::decode(&bytes[..]).ok().map(Response::from_world),
        ];
        // Noise names no known type.
        prop_assert!(requests.into_iter().flatten().all(|r| r.is_err()));
        prop_assert!(responses.into_iter().flatten().all(|r| r.is_err()));
    }

    #[test]
    fn damaged_resources_do_not_panic((kind, bytes) in damaged()) {
        let item = Item { name: String::new(), version: String::new(), any: packed(kind, bytes) };
        let _ = codec::decode(kind, &item.any);
        let mut machine = Machine::new(Flavour::StateOfTheWorld, Duration::from_secs(1));
        machine.connected();
        let response = Response {
            kind,
            nonce: "1".to_owned(),
            version: "1".to_owned(),
            snapshot_version: None,
            resources: vec![item],
            removed: vec![],
        };
        let now = Instant::now();
        machine.handle(response, now, &mut |_| Ok(()));
        machine.tick(now + Duration::from_secs(2), &mut |_| Ok(()));
    }
}

#[test]
fn overlong_names_and_lists_are_refused() {
    let long = "n".repeat(MAX_NAME_BYTES + 1);
    let many: Vec<String> = (0..=2 * MAX_NAMES).map(|i| i.to_string()).collect();
    for names in [vec![long.clone()], many.clone()] {
        let delta = DeltaDiscoveryRequest {
            type_url: wire::type_url(ResourceKind::EndpointSet).to_owned(),
            resource_names_subscribe: names.clone(),
            ..Default::default()
        };
        assert!(Request::from_delta(delta).is_err());
        let world = DiscoveryRequest {
            type_url: wire::type_url(ResourceKind::EndpointSet).to_owned(),
            resource_names: names.clone(),
            ..Default::default()
        };
        assert!(Request::from_world(world).is_err());
        let response = DeltaDiscoveryResponse {
            type_url: wire::type_url(ResourceKind::EndpointSet).to_owned(),
            removed_resources: names,
            ..Default::default()
        };
        assert!(Response::from_delta(response).is_err());
    }
}

#[test]
fn a_client_holds_only_so_many_resources() {
    let mut machine = Machine::new(Flavour::Delta, Duration::from_secs(1));
    machine.connected();
    let service = |i: usize| {
        let name = format!("s{i}");
        let service = towpath_policies::model::Service::new(
            name.clone(),
            towpath_policies::model::Protocol::Http1,
        );
        Item { name, version: "1".to_owned(), any: codec::encode_service(&service) }
    };
    let mut nonce = 0;
    for batch in (0..MAX_NAMES + 100).collect::<Vec<_>>().chunks(20_000) {
        nonce += 1;
        let response = Response {
            kind: ResourceKind::Service,
            nonce: nonce.to_string(),
            version: nonce.to_string(),
            snapshot_version: None,
            resources: batch.iter().map(|i| service(*i)).collect(),
            removed: vec![],
        };
        machine.handle(response, Instant::now(), &mut |_| Ok(()));
        while machine.outgoing().is_some() {}
    }
    assert_eq!(machine.held(ResourceKind::Service).len(), MAX_NAMES);
    assert_eq!(machine.status().rejected.len(), 100);
}

#[test]
fn a_client_that_never_answers_is_owed_one_response_per_type() {
    let mut stream = Stream::new(Flavour::Delta, std::sync::Arc::new(Cache::default()));
    let request = DeltaDiscoveryRequest {
        type_url: wire::type_url(ResourceKind::EndpointSet).to_owned(),
        resource_names_subscribe: vec!["s".to_owned()],
        ..Default::default()
    };
    stream.handle(Request::from_delta(request).expect("well-formed")).expect("few names");
    let mut sent = 0;
    for version in 1..100 {
        let mut world = Snapshot { version: version.to_string(), ..Snapshot::default() };
        let set = EndpointSet::new("s".to_owned(), vec![]);
        world.endpoints.insert("s".to_owned(), std::sync::Arc::new(set));
        stream.update(&std::sync::Arc::new(world));
        sent += usize::from(stream.outgoing().is_some());
    }
    assert_eq!(sent, 1);
}
