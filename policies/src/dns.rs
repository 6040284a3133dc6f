//! Addresses that a name resolved to, as an endpoint set. Shared by the control
//! plane and by a proxy that runs without one, so that both serve the same.

use std::net::SocketAddr;

use crate::model::{Endpoint, EndpointSet};

/// Most endpoints taken of one name.
pub const MAX_ENDPOINTS: usize = 1000;

/// The endpoints of `service` at `addresses`: sorted, each once, so that the
/// order in which a resolver tells them is no change. At most [`MAX_ENDPOINTS`].
pub fn endpoint_set(service: &str, addresses: impl IntoIterator<Item = SocketAddr>) -> EndpointSet {
    let mut addresses: Vec<SocketAddr> = addresses.into_iter().collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.truncate(MAX_ENDPOINTS);
    let endpoints = addresses.into_iter().map(Endpoint::new).collect();
    EndpointSet::new(service.to_owned(), endpoints)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_answers_is_no_change() {
        let set =
            |addresses: &[&str]| endpoint_set("etl", addresses.iter().map(|a| a.parse().unwrap()));
        let told = set(&["10.0.0.2:80", "10.0.0.1:80", "10.0.0.2:80"]);
        assert_eq!(told, set(&["10.0.0.1:80", "10.0.0.2:80"]));
        assert_eq!(told.endpoints[0].name, "10.0.0.1:80");
        assert_eq!(told.service, "etl");
    }
}
