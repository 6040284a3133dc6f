//! `HTTPRoute`, `GRPCRoute`, `TCPRoute`, `TLSRoute` (gateway.networking.k8s.io).

use super::{
    read::{AtLeastOne, choice, object},
    value::{
        Count, HeaderName, HeaderValue, Hostname, Name, Percent, Port, Positive, PreciseHostname,
        Time, UrlPath, Whole,
    },
};
use crate::problem::At;

object! {
    /// What a route is attached to.
    struct ParentRef {
        /// `gateway.networking.k8s.io` (default) for a Gateway, `towpath.dev` for a Service.
        "group" => group: Option<At<String>>,
        /// `Gateway` (default), or `Service` for routes of the mesh itself.
        "kind" => kind: Option<At<String>>,
        /// Default: the route's own namespace.
        "namespace" => namespace: Option<At<Name>>,
        /// Name of the Gateway or Service.
        "name" => name: At<Name>,
        /// Name of one listener of the Gateway; left out means all that fit.
        "sectionName" => section_name: Option<At<Name>>,
        /// Only listeners of this port.
        "port" => port: Option<At<Port>>,
    }
}

object! {
    /// Which HTTP requests go where.
    struct HttpRouteSpec {
        /// The Gateways or Services this is attached to.
        "parentRefs" => parent_refs: Vec<ParentRef>,
        /// Hosts it is for; left out means all of the listener's.
        "hostnames" => hostnames: Vec<At<Hostname>>,
        /// Tried by precedence: exact path, longest prefix, method, most headers, most query parameters, order.
        "rules" => rules: Vec<HttpRule>,
    }
    unsupported {
        "useDefaultGateways" => "name the Gateway in parentRefs",
    }
}

object! {
    /// Conditions, and what happens to requests that meet one of them.
    struct HttpRule {
        /// For policies that target this rule by `sectionName`.
        "name" => name: Option<At<Name>>,
        /// Any of these; left out means every request.
        "matches" => matches: Vec<HttpMatch>,
        /// What is changed on the way.
        "filters" => filters: Vec<HttpFilter>,
        /// Where to, by weight; none answers 500.
        "backendRefs" => backend_refs: Vec<HttpBackendRef>,
        /// Time limits.
        "timeouts" => timeouts: Option<HttpTimeouts>,
        /// Further tries.
        "retry" => retry: Option<HttpRetry>,
    }
    unsupported {
        "sessionPersistence" => "balancing does not pin sessions yet; leave it out",
    }
}

object! {
    /// All given conditions must hold.
    struct HttpMatch {
        /// Condition on the path; left out means any.
        "path" => path: Option<HttpPathMatch>,
        /// Conditions on headers.
        "headers" => headers: Vec<HeaderMatch>,
        /// Conditions on query parameters.
        "queryParams" => query_params: Vec<QueryMatch>,
        /// HTTP method.
        "method" => method: Option<At<HttpMethod>>,
    }
}

object! {
    /// Condition on the path.
    struct HttpPathMatch {
        /// Default `PathPrefix`.
        "type" => kind: Option<At<PathMatchType>>,
        /// Path or pattern; default `/`.
        "value" => value: Option<At<String>>,
    }
}

choice! {
    /// How a path is compared.
    enum PathMatchType {
        /// Equal.
        "Exact" => Exact,
        /// Equal, or continued after a `/`.
        "PathPrefix" => PathPrefix,
        /// The whole path matches (RE2 syntax).
        "RegularExpression" => RegularExpression,
    }
}

choice! {
    /// How a text is compared.
    enum MatchType {
        /// Equal.
        "Exact" => Exact,
        /// The whole text matches (RE2 syntax).
        "RegularExpression" => RegularExpression,
    }
}

choice! {
    /// HTTP method (RFC 9110 section 9).
    enum HttpMethod {
        /// RFC 9110.
        "GET" => Get,
        /// RFC 9110.
        "HEAD" => Head,
        /// RFC 9110.
        "POST" => Post,
        /// RFC 9110.
        "PUT" => Put,
        /// RFC 9110.
        "DELETE" => Delete,
        /// RFC 9110.
        "CONNECT" => Connect,
        /// RFC 9110.
        "OPTIONS" => Options,
        /// RFC 9110.
        "TRACE" => Trace,
        /// RFC 5789.
        "PATCH" => Patch,
    }
}

impl HttpMethod {
    pub(crate) fn token(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
            Self::Options => "OPTIONS",
            Self::Trace => "TRACE",
            Self::Patch => "PATCH",
        }
    }
}

object! {
    /// Condition on a header.
    struct HeaderMatch {
        /// Default `Exact`.
        "type" => kind: Option<At<MatchType>>,
        /// Header name, in any case.
        "name" => name: At<HeaderName>,
        /// Value or pattern.
        "value" => value: At<String>,
    }
}

object! {
    /// Condition on a query parameter.
    struct QueryMatch {
        /// Default `Exact`.
        "type" => kind: Option<At<MatchType>>,
        /// Parameter name.
        "name" => name: At<String>,
        /// Value or pattern.
        "value" => value: At<String>,
    }
}

object! {
    /// Where requests go.
    struct HttpBackendRef {
        /// `towpath.dev`, also when left out.
        "group" => group: Option<At<String>>,
        /// `Service`, also when left out.
        "kind" => kind: Option<At<String>>,
        /// Default: the route's own namespace.
        "namespace" => namespace: Option<At<Name>>,
        /// Name of the Service.
        "name" => name: At<Name>,
        /// Without effect: a Service's endpoints carry their own ports.
        "port" => port: Option<At<Port>>,
        /// Share among its siblings; default 1, and 0 gets nothing.
        "weight" => weight: Option<At<Whole<0, 1_000_000>>>,
        /// Header changes for this backend only.
        "filters" => filters: Vec<HttpFilter>,
    }
}

object! {
    /// Where connections go.
    struct BackendRef {
        /// `towpath.dev`, also when left out.
        "group" => group: Option<At<String>>,
        /// `Service`, also when left out.
        "kind" => kind: Option<At<String>>,
        /// Default: the route's own namespace.
        "namespace" => namespace: Option<At<Name>>,
        /// Name of the Service.
        "name" => name: At<Name>,
        /// Without effect: a Service's endpoints carry their own ports.
        "port" => port: Option<At<Port>>,
        /// Share among its siblings; default 1, and 0 gets nothing.
        "weight" => weight: Option<At<Whole<0, 1_000_000>>>,
    }
}

object! {
    /// Where copies go.
    struct MirrorRef {
        /// `towpath.dev`, also when left out.
        "group" => group: Option<At<String>>,
        /// `Service`, also when left out.
        "kind" => kind: Option<At<String>>,
        /// Default: the route's own namespace.
        "namespace" => namespace: Option<At<Name>>,
        /// Name of the Service.
        "name" => name: At<Name>,
        /// Without effect: a Service's endpoints carry their own ports.
        "port" => port: Option<At<Port>>,
    }
}

object! {
    /// A change on the way; `type` says which of the others is given.
    struct HttpFilter {
        /// Which filter this is.
        "type" => kind: At<FilterType>,
        /// For `RequestHeaderModifier`.
        "requestHeaderModifier" => request_header_modifier: Option<At<HeaderModifier>>,
        /// For `ResponseHeaderModifier`.
        "responseHeaderModifier" => response_header_modifier: Option<At<HeaderModifier>>,
        /// For `RequestMirror`.
        "requestMirror" => request_mirror: Option<At<RequestMirror>>,
        /// For `RequestRedirect`.
        "requestRedirect" => request_redirect: Option<At<RequestRedirect>>,
        /// For `URLRewrite`.
        "urlRewrite" => url_rewrite: Option<At<UrlRewrite>>,
    }
    unsupported {
        "extensionRef" => "use the filters of the Gateway API",
        "cors" => "let the service answer CORS requests",
        "externalAuth" => "let the service check who calls",
    }
}

choice! {
    /// Kinds of filters.
    enum FilterType {
        /// Changes request headers.
        "RequestHeaderModifier" => RequestHeaderModifier,
        /// Changes response headers.
        "ResponseHeaderModifier" => ResponseHeaderModifier,
        /// Copies requests.
        "RequestMirror" => RequestMirror,
        /// Answers with a redirect.
        "RequestRedirect" => RequestRedirect,
        /// Changes host or path.
        "URLRewrite" => UrlRewrite,
    }
    unsupported {
        "ExtensionRef" => "use the filters of the Gateway API",
        "CORS" => "let the service answer CORS requests",
        "ExternalAuth" => "let the service check who calls",
    }
}

object! {
    /// Changes of headers.
    struct HeaderModifier {
        /// Replace or create.
        "set" => set: Vec<HeaderPair>,
        /// Append.
        "add" => add: Vec<HeaderPair>,
        /// Delete.
        "remove" => remove: Vec<At<HeaderName>>,
    }
}

object! {
    /// A header.
    struct HeaderPair {
        /// Name, in any case.
        "name" => name: At<HeaderName>,
        /// Value.
        "value" => value: At<HeaderValue>,
    }
}

object! {
    /// Copies requests to another service, whose answers are thrown away.
    struct RequestMirror {
        /// Where the copies go.
        "backendRef" => backend_ref: MirrorRef,
        /// Per cent of the requests; default 100.
        "percent" => percent: Option<At<Percent>>,
        /// A finer share of the requests.
        "fraction" => fraction: Option<Fraction>,
    }
}

object! {
    /// A share.
    struct Fraction {
        /// At most the denominator.
        "numerator" => numerator: At<Count>,
        /// Default 100.
        "denominator" => denominator: Option<At<Positive>>,
    }
}

object! {
    /// Answers with a redirect; what is left out is kept from the request.
    struct RequestRedirect {
        /// `http` or `https`.
        "scheme" => scheme: Option<At<Scheme>>,
        /// Host.
        "hostname" => hostname: Option<At<PreciseHostname>>,
        /// Path.
        "path" => path: Option<PathModifier>,
        /// Port; default: the scheme's, or the listener's.
        "port" => port: Option<At<Port>>,
        /// Default 302.
        "statusCode" => status_code: Option<At<Whole<301, 308>>>,
    }
}

choice! {
    /// URL scheme.
    enum Scheme {
        /// Cleartext.
        "http" => Http,
        /// Over TLS.
        "https" => Https,
    }
}

object! {
    /// Changes host or path before the request is forwarded.
    struct UrlRewrite {
        /// Host.
        "hostname" => hostname: Option<At<PreciseHostname>>,
        /// Path.
        "path" => path: Option<PathModifier>,
    }
}

object! {
    /// A new path.
    struct PathModifier {
        /// Which of the others is given.
        "type" => kind: At<PathModifierType>,
        /// Replaces the whole path.
        "replaceFullPath" => replace_full_path: Option<At<UrlPath>>,
        /// Replaces what the prefix matched; may be empty or `/` to cut it off.
        "replacePrefixMatch" => replace_prefix_match: Option<At<String>>,
    }
}

choice! {
    /// What of the path is replaced.
    enum PathModifierType {
        /// All of it.
        "ReplaceFullPath" => ReplaceFullPath,
        /// What the PathPrefix match matched.
        "ReplacePrefixMatch" => ReplacePrefixMatch,
    }
}

object! {
    /// Time limits of a rule.
    struct HttpTimeouts {
        /// For the whole exchange with all its tries; `0s` is unlimited.
        "request" => request: Option<At<Time>>,
        /// For one try, up to the response head; `0s` is unlimited, and at most `request`.
        "backendRequest" => backend_request: Option<At<Time>>,
    }
}

object! {
    /// Further tries after a failed one (experimental part of the Gateway API).
    struct HttpRetry {
        /// Status codes that are tried again, 400 to 599.
        "codes" => codes: Vec<At<Whole<400, 599>>>,
        /// Most further tries.
        "attempts" => attempts: Option<At<Whole<0, 100>>>,
        /// Least pause before a further try.
        "backoff" => backoff: Option<At<Time>>,
    }
}

object! {
    /// Which gRPC calls go where.
    struct GrpcRouteSpec {
        /// The Gateways or Services this is attached to.
        "parentRefs" => parent_refs: Vec<ParentRef>,
        /// Hosts it is for; left out means all of the listener's.
        "hostnames" => hostnames: Vec<At<Hostname>>,
        /// Tried by precedence.
        "rules" => rules: Vec<GrpcRule>,
    }
    unsupported {
        "useDefaultGateways" => "name the Gateway in parentRefs",
    }
}

object! {
    /// Conditions, and what happens to calls that meet one of them.
    struct GrpcRule {
        /// For policies that target this rule by `sectionName`.
        "name" => name: Option<At<Name>>,
        /// Any of these; left out means every call.
        "matches" => matches: Vec<GrpcMatch>,
        /// What is changed on the way: header modifiers and mirrors.
        "filters" => filters: Vec<HttpFilter>,
        /// Where to, by weight.
        "backendRefs" => backend_refs: Vec<HttpBackendRef>,
    }
    unsupported {
        "sessionPersistence" => "balancing does not pin sessions yet; leave it out",
        "timeouts" => "use a TransferPolicy that targets the GRPCRoute",
        "retry" => "use a TransferPolicy that targets the GRPCRoute",
    }
}

object! {
    /// All given conditions must hold.
    struct GrpcMatch {
        /// Condition on service and method.
        "method" => method: Option<GrpcMethodMatch>,
        /// Conditions on metadata.
        "headers" => headers: Vec<HeaderMatch>,
    }
}

object! {
    /// Condition on a gRPC service and method; at least one of them.
    struct GrpcMethodMatch {
        /// Default `Exact`.
        "type" => kind: Option<At<MatchType>>,
        /// Full name of the service, e.g. `etl.v1.Loader`.
        "service" => service: Option<At<String>>,
        /// Name of the method.
        "method" => method: Option<At<String>>,
    }
}

object! {
    /// Where the connections of a TCP listener go.
    struct TcpRouteSpec {
        /// The Gateways this is attached to.
        "parentRefs" => parent_refs: Vec<ParentRef>,
        /// One rule.
        "rules" => rules: AtLeastOne<TcpRule>,
    }
    unsupported {
        "useDefaultGateways" => "name the Gateway in parentRefs",
    }
}

object! {
    /// Where connections go.
    struct TcpRule {
        /// For people.
        "name" => name: Option<At<Name>>,
        /// By weight.
        "backendRefs" => backend_refs: AtLeastOne<BackendRef>,
    }
}

object! {
    /// Where TLS connections go, by server name.
    struct TlsRouteSpec {
        /// The Gateways this is attached to.
        "parentRefs" => parent_refs: Vec<ParentRef>,
        /// Server names (SNI); left out means all of the listener's.
        "hostnames" => hostnames: Vec<At<Hostname>>,
        /// One rule.
        "rules" => rules: AtLeastOne<TcpRule>,
    }
    unsupported {
        "useDefaultGateways" => "name the Gateway in parentRefs",
    }
}
