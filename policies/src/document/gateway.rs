//! `Gateway` (gateway.networking.k8s.io/v1).

use super::{
    read::{Anything, AtLeastOne, Texts, choice, object},
    value::{FilePath, Hostname, Name, Port},
};
use crate::problem::At;

object! {
    /// Sockets that proxies open, and what may be attached to them.
    struct GatewaySpec {
        /// `towpath`; gateways of other classes are passed over.
        "gatewayClassName" => class: At<String>,
        /// The sockets. Several listeners may share a port when host names tell them apart.
        "listeners" => listeners: AtLeastOne<GatewayListener>,
    }
    unsupported {
        "addresses" => "the bind address is the annotation towpath.dev/bind",
        "infrastructure" => "proxies are started by you; leave it out",
        "backendTLS" => "TLS towards a service is `tls` of the Service",
        "tls" => "TLS is set for each listener",
        "allowedListeners" => "write all listeners into the Gateway",
        "defaultScope" => "name the Gateway in the routes' parentRefs",
    }
}

object! {
    /// One socket, or one host name of a shared one.
    struct GatewayListener {
        /// Unique within the Gateway; routes name it by `sectionName`.
        "name" => name: At<Name>,
        /// Host name that is served, e.g. `etl.example.com` or `*.example.com`; left out means any.
        "hostname" => hostname: Option<At<Hostname>>,
        /// TCP port.
        "port" => port: At<Port>,
        /// What is spoken on it.
        "protocol" => protocol: At<ListenerProtocol>,
        /// Needed for HTTPS and TLS.
        "tls" => tls: Option<ListenerTls>,
        /// Which routes may attach; left out means those of the Gateway's namespace.
        "allowedRoutes" => allowed_routes: Option<AllowedRoutes>,
    }
}

choice! {
    /// What a listener speaks.
    enum ListenerProtocol {
        /// HTTP/1.1 and HTTP/2 in cleartext.
        "HTTP" => Http,
        /// HTTP/1.1 and HTTP/2 over TLS.
        "HTTPS" => Https,
        /// TLS, passed through or terminated, routed by server name.
        "TLS" => Tls,
        /// Opaque bytes.
        "TCP" => Tcp,
        /// Connections that programs beside the proxy make, redirected to it: HTTP and TLS by routes attached here,
        /// others by the `addresses` of Services, and what nothing is known of as it is.
        "towpath.dev/Outbound" => Outbound,
        /// Connections made to programs beside the proxy, redirected to it: to endpoints whose `sidecar` is the
        /// proxy as their Services say, and to others as they are.
        "towpath.dev/Inbound" => Inbound,
    }
    unsupported {
        "UDP" => "towpath carries TCP only: HTTP, HTTPS, TLS or TCP",
    }
}

object! {
    /// TLS of a listener.
    struct ListenerTls {
        /// `Terminate` (default) or `Passthrough`.
        "mode" => mode: Option<At<TlsMode>>,
        /// Where the certificate lies.
        "options" => options: Option<TlsOptions>,
    }
    unsupported {
        "certificateRefs" => "there is no cluster to read Secrets from; use options: {towpath.dev/certificate-file: …, towpath.dev/private-key-file: …}",
        "frontendValidation" => "client certificates are not verified yet",
    }
}

choice! {
    /// Who ends the TLS session.
    enum TlsMode {
        /// The proxy.
        "Terminate" => Terminate,
        /// The backend; the proxy only reads the server name.
        "Passthrough" => Passthrough,
    }
}

object! {
    /// Files with key material, on the proxy's machine.
    struct TlsOptions {
        /// PEM file with the certificate chain, leaf first.
        "towpath.dev/certificate-file" => certificate_file: At<FilePath>,
        /// PEM file with the private key.
        "towpath.dev/private-key-file" => private_key_file: At<FilePath>,
        /// A second certificate of another kind of key (RSA beside ECDSA), for clients that do not take the first.
        "towpath.dev/second-certificate-file" => second_certificate_file: Option<At<FilePath>>,
        /// Its private key.
        "towpath.dev/second-private-key-file" => second_private_key_file: Option<At<FilePath>>,
    }
}

object! {
    /// Which routes may attach to a listener.
    struct AllowedRoutes {
        /// By namespace; default `Same`.
        "namespaces" => namespaces: Option<RouteNamespaces>,
        /// By kind; left out means every kind that fits the protocol.
        "kinds" => kinds: Vec<RouteKindRef>,
    }
}

object! {
    /// Namespaces of routes.
    struct RouteNamespaces {
        /// `Same` (default) or `All`.
        "from" => from: Option<At<FromNamespaces>>,
    }
    unsupported {
        "selector" => "use from: Same or from: All",
    }
}

choice! {
    /// Namespaces that routes may come from.
    enum FromNamespaces {
        /// Any.
        "All" => All,
        /// The Gateway's own.
        "Same" => Same,
    }
    unsupported {
        "Selector" => "use Same or All",
        "None" => "use Same or All",
    }
}

object! {
    /// A kind of route.
    struct RouteKindRef {
        /// `gateway.networking.k8s.io`, also when left out.
        "group" => group: Option<At<String>>,
        /// E.g. `HTTPRoute`.
        "kind" => kind: At<String>,
    }
}

object! {
    /// Name and notes of a document.
    struct Metadata {
        /// Unique among documents of the kind and namespace.
        "name" => name: At<Name>,
        /// Default `default`.
        "namespace" => namespace: Option<At<Name>>,
        /// Notes for tools; those that start with `towpath.dev/` are read here.
        "annotations" => annotations: Texts,
        /// Not used.
        "labels" => labels: Texts,
        /// Not used; there so that what a cluster returns can be read.
        "creationTimestamp" => creation_timestamp: Option<Anything>,
        /// Not used.
        "finalizers" => finalizers: Option<Anything>,
        /// Not used.
        "generation" => generation: Option<Anything>,
        /// Not used.
        "managedFields" => managed_fields: Option<Anything>,
        /// Not used.
        "ownerReferences" => owner_references: Option<Anything>,
        /// Not used.
        "resourceVersion" => resource_version: Option<Anything>,
        /// Not used.
        "uid" => uid: Option<Anything>,
    }
    unsupported {
        "generateName" => "write a name",
    }
}
