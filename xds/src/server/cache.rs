//! Encoded resources, shared by every stream of a server.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use envoy_types::pb::google::protobuf::Any;
use towpath_policies::model::{
    Bind, EndpointSet, Listener, ResourceKind, RouteTable, Service, Snapshot,
};

use crate::{codec, reach, wire::Encoded};

/// Encodes each domain object once, however many streams send it.
///
/// Entries are found by the address of the `Arc`'s object. They hold a `Weak`
/// of it, which keeps the address from being used again, so equal address
/// means same object. Entries of dead objects are swept out before the map
/// doubles, so its size stays in proportion to what is alive.
#[derive(Debug, Default)]
pub struct Cache {
    listeners: Shelf<Listener>,
    routes: Shelf<RouteTable>,
    proxyless_routes: Shelf<RouteTable>,
    services: Shelf<Service>,
    endpoints: Shelf<EndpointSet>,
}

#[derive(Debug)]
struct Shelf<T> {
    entries: Mutex<Entries<T>>,
}

#[derive(Debug)]
struct Entries<T> {
    by_address: HashMap<usize, (Weak<T>, Arc<Encoded>)>,
    sweep_at: usize,
}

impl Cache {
    /// The encoded form of one resource of a snapshot, if it is there.
    pub fn encoded(
        &self,
        snapshot: &Snapshot,
        kind: ResourceKind,
        name: &str,
    ) -> Option<Arc<Encoded>> {
        Some(match kind {
            ResourceKind::Listener => {
                self.listeners.encoded(snapshot.listeners.get(name)?, name, codec::encode_listener)
            }
            ResourceKind::RouteTable => {
                let table = snapshot.routes.get(name)?;
                if proxyless(snapshot, name) {
                    self.proxyless_routes.encoded(table, name, codec::encode_proxyless_route_table)
                } else {
                    self.routes.encoded(table, name, codec::encode_route_table)
                }
            }
            ResourceKind::Service => {
                self.services.encoded(snapshot.services.get(name)?, name, codec::encode_service)
            }
            ResourceKind::EndpointSet => self.endpoints.encoded(
                snapshot.endpoints.get(name)?,
                name,
                codec::encode_endpoint_set,
            ),
        })
    }

    /// How many encoded resources are kept.
    pub fn len(&self) -> usize {
        self.listeners.len()
            + self.routes.len()
            + self.proxyless_routes.len()
            + self.services.len()
            + self.endpoints.len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Whether a proxyless client reads this route table.
fn proxyless(snapshot: &Snapshot, table: &str) -> bool {
    snapshot
        .listeners
        .values()
        .any(|l| l.bind == Bind::Api && reach::tables(l).any(|name| name == table))
}

impl<T> Shelf<T> {
    fn encoded(&self, object: &Arc<T>, name: &str, encode: impl FnOnce(&T) -> Any) -> Arc<Encoded> {
        let address = Arc::as_ptr(object).addr();
        if let Some((_, encoded)) = self.lock().by_address.get(&address) {
            return encoded.clone();
        }
        // Encoded outside the lock: two streams may do it at once, and the
        // result is the same.
        let encoded = Arc::new(Encoded::new(name, encode(object)));
        let mut entries = self.lock();
        if entries.by_address.len() >= entries.sweep_at {
            entries.by_address.retain(|_, (object, _)| object.strong_count() > 0);
            entries.sweep_at = (2 * entries.by_address.len()).max(SWEEP_AT_LEAST);
        }
        entries.by_address.insert(address, (Arc::downgrade(object), encoded.clone()));
        encoded
    }

    fn len(&self) -> usize {
        self.lock().by_address.len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Entries<T>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self {
            entries: Mutex::new(Entries { by_address: HashMap::new(), sweep_at: SWEEP_AT_LEAST }),
        }
    }
}

/// Below this many entries, dead ones are left where they are.
const SWEEP_AT_LEAST: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use towpath_policies::model::Protocol;

    fn snapshot(name: &str) -> Snapshot {
        let mut snapshot = Snapshot::default();
        snapshot.services.insert(name.to_owned(), Arc::new(Service::new(name, Protocol::Http1)));
        snapshot
    }

    #[test]
    fn one_object_is_encoded_once() {
        let cache = Cache::default();
        let world = snapshot("a");
        let first = cache.encoded(&world, ResourceKind::Service, "a").unwrap();
        let second = cache.encoded(&world.clone(), ResourceKind::Service, "a").unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(cache.encoded(&world, ResourceKind::Service, "b").map(|e| e.name.clone()), None);
    }

    #[test]
    fn equal_content_has_an_equal_version() {
        let cache = Cache::default();
        let (one, two) = (snapshot("a"), snapshot("a"));
        let one = cache.encoded(&one, ResourceKind::Service, "a").unwrap();
        let two = cache.encoded(&two, ResourceKind::Service, "a").unwrap();
        assert!(!Arc::ptr_eq(&one, &two));
        assert_eq!(one.version, two.version);
    }

    #[test]
    fn dead_objects_are_swept() {
        let cache = Cache::default();
        for i in 0..10 * SWEEP_AT_LEAST {
            let name = i.to_string();
            cache.encoded(&snapshot(&name), ResourceKind::Service, &name);
            assert!(cache.len() <= SWEEP_AT_LEAST);
        }
    }
}
