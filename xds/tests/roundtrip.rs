//! What is encoded and decoded again is equal, and encodes to the same bytes.

#[path = "support/strategies.rs"]
mod strategies;

use proptest::prelude::*;
use towpath_policies::model::{Discovery, ResourceKind};
use towpath_xds::codec::{self, Decoded, EndpointSource};

proptest! {
    #[test]
    fn listeners_survive(listener in strategies::listener()) {
        let any = codec::encode_listener(&listener);
        prop_assert_eq!(&any, &codec::encode_listener(&listener));
        let (name, decoded) = codec::decode(ResourceKind::Listener, &any);
        prop_assert_eq!(name.as_ref(), Some(&listener.name));
        let Ok(Decoded::Listener(decoded)) = decoded else { panic!("{decoded:?}") };
        prop_assert_eq!(&*decoded.listener, &listener);
        prop_assert_eq!(decoded.inline, vec![]);
    }

    #[test]
    fn route_tables_survive(table in strategies::route_table()) {
        let any = codec::encode_route_table(&table);
        prop_assert_eq!(&any, &codec::encode_route_table(&table));
        let (_, decoded) = codec::decode(ResourceKind::RouteTable, &any);
        prop_assert_eq!(decoded, Ok(Decoded::RouteTable(table.clone())));
        let any = codec::encode_proxyless_route_table(&table);
        let (_, decoded) = codec::decode(ResourceKind::RouteTable, &any);
        prop_assert_eq!(decoded, Ok(Decoded::RouteTable(table)));
    }

    #[test]
    fn services_survive(service in strategies::service()) {
        let any = codec::encode_service(&service);
        prop_assert_eq!(&any, &codec::encode_service(&service));
        let (_, decoded) = codec::decode(ResourceKind::Service, &any);
        let Ok(Decoded::Service(decoded)) = decoded else { panic!("{decoded:?}") };
        prop_assert_eq!(&*decoded.service, &service);
        // Also what is to be looked up is looked up by the control plane.
        let expected = match service.discovery {
            Discovery::OriginalDestination => EndpointSource::Resolved,
            _ => EndpointSource::Delivered(service.name.clone()),
        };
        prop_assert_eq!(decoded.endpoints, expected);
    }

    #[test]
    fn endpoint_sets_survive(set in strategies::endpoint_set()) {
        let any = codec::encode_endpoint_set(&set);
        prop_assert_eq!(&any, &codec::encode_endpoint_set(&set));
        let (_, decoded) = codec::decode(ResourceKind::EndpointSet, &any);
        prop_assert_eq!(decoded, Ok(Decoded::EndpointSet(set)));
    }
}
