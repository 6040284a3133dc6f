//! The names of Services, as Kubernetes and so Linkerd writes them.

use linkerd2_proxy_api::meta::{Metadata, Resource, metadata::Kind};

/// A Service's name and namespace; `None` for what is none that could be named, such as the application behind a
/// sidecar.
pub(crate) fn parts(id: &str) -> Option<(&str, &str)> {
    let (namespace, name) = id.split_once('/').unwrap_or((DEFAULT_NAMESPACE, id));
    (!name.contains('/')).then_some((namespace, name))
}

/// The authority by which a proxy asks for the Service.
pub(crate) fn authority(id: &str, port: u16) -> Option<String> {
    Some(format!("{}:{port}", host(id)?))
}

/// The Service's full name.
pub(crate) fn host(id: &str) -> Option<String> {
    let (namespace, name) = parts(id)?;
    Some(format!("{name}.{namespace}.svc.cluster.local"))
}

/// The Service that a host name would be: `name`, `name.namespace` or `name.namespace.svc` in any domain.
pub(crate) fn service(host: &str) -> Option<String> {
    let mut labels = host.split('.');
    let name = labels.next()?;
    let namespace = labels.next().unwrap_or(DEFAULT_NAMESPACE);
    if labels.next().is_some_and(|third| third != "svc") {
        return None;
    }
    let default = namespace == DEFAULT_NAMESPACE;
    Some(if default { name.to_owned() } else { format!("{namespace}/{name}") })
}

/// What metrics of a proxy call the Service.
pub(crate) fn service_metadata(id: &str, port: u16) -> Metadata {
    let Some((namespace, name)) = parts(id) else { return default_metadata(id) };
    resource("towpath.dev", "Service", namespace, name, port.into())
}

/// What metrics of a proxy call the route: the document that it comes from, where that is known.
pub(crate) fn route_metadata(name: &str) -> Metadata {
    let mut words = name.splitn(2, '/');
    let kind = match words.next() {
        Some("httproute") => "HTTPRoute",
        Some("grpcroute") => "GRPCRoute",
        _ => return default_metadata(name),
    };
    let document =
        words.next().and_then(|rest| rest.rsplit_once('/')).and_then(|(id, _)| parts(id));
    let Some((namespace, name)) = document else { return default_metadata(name) };
    resource("gateway.networking.k8s.io", kind, namespace, name, 0)
}

pub(crate) fn default_metadata(name: &str) -> Metadata {
    Metadata { kind: Some(Kind::Default(name.to_owned())) }
}

fn resource(group: &str, kind: &str, namespace: &str, name: &str, port: u32) -> Metadata {
    Metadata {
        kind: Some(Kind::Resource(Resource {
            group: group.to_owned(),
            kind: kind.to_owned(),
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            section: String::new(),
            port,
        })),
    }
}

/// Of documents that name none.
const DEFAULT_NAMESPACE: &str = "default";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_found_by_every_name_that_kubernetes_gives_them() {
        for (host, id) in [
            ("orders", Some("orders")),
            ("orders.default", Some("orders")),
            ("orders.default.svc", Some("orders")),
            ("orders.default.svc.cluster.local", Some("orders")),
            ("orders.etl", Some("etl/orders")),
            ("orders.etl.svc.other.domain", Some("etl/orders")),
            ("orders.etl.example.com", None),
            ("0.orders.etl.svc.cluster.local", None),
        ] {
            assert_eq!(service(host).as_deref(), id, "{host}");
        }
        for id in ["orders", "etl/orders"] {
            assert_eq!(service(&host(id).unwrap()).unwrap(), id);
        }
        assert_eq!(authority("inbound/orders/a", 80), None);
    }

    #[test]
    fn routes_are_called_by_their_documents() {
        let of = |name: &str| match route_metadata(name).kind {
            Some(Kind::Resource(r)) => format!("{} {}/{}", r.kind, r.namespace, r.name),
            Some(Kind::Default(name)) => name,
            None => String::new(),
        };
        assert_eq!(of("httproute/lineitem/0"), "HTTPRoute default/lineitem");
        assert_eq!(of("grpcroute/etl/lineitem/12"), "GRPCRoute etl/lineitem");
        assert_eq!(of("mesh/orders"), "mesh/orders");
        assert_eq!(of("httproute/odd"), "httproute/odd");
    }
}
