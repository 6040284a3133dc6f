use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method};
use towpath_policies::model::{
    Action as Spec, DirectResponse, HeaderEdit, PathMatch, Pattern, Route, RouteMatch, RouteTable,
    ValueMatch, VirtualHost,
};

use super::{Router, Target, action::Rewrite, path::normalise};

fn route(name: &str, matches: RouteMatch) -> Route {
    Route {
        name: name.into(),
        matches,
        action: Spec::Respond(DirectResponse { status: 200, body: String::new() }),
        request_headers: HeaderEdit::default(),
        response_headers: HeaderEdit::default(),
    }
}

fn router(hosts: Vec<(&[&str], Vec<Route>)>) -> Router {
    let virtual_hosts = hosts
        .into_iter()
        .map(|(domains, routes)| VirtualHost {
            name: domains[0].into(),
            domains: domains.iter().map(|d| (*d).into()).collect(),
            routes,
        })
        .collect();
    let table = RouteTable { name: "t".into(), virtual_hosts };
    Router::compile("l", &table, &|_| None).unwrap()
}

struct Asked<'a> {
    host: &'a str,
    path: &'a str,
    query: Option<&'a str>,
    method: Method,
    headers: HeaderMap,
}

fn ask<'a>(host: &'a str, path: &'a str) -> Asked<'a> {
    Asked { host, path, query: None, method: Method::GET, headers: HeaderMap::new() }
}

fn taken(router: &Router, asked: &Asked<'_>) -> Option<Arc<str>> {
    let Asked { host, path, query, method, headers } = asked;
    let authority = host.parse().unwrap();
    let target = Target { authority: &authority, path, query: *query, method, headers };
    router.route(&target).map(|r| r.name.clone())
}

#[test]
fn the_most_specific_host_wins_in_any_case() {
    let only = |name: &str| vec![route(name, RouteMatch::everything())];
    let router = router(vec![
        (&["*"], only("any")),
        (&["*.example.com"], only("suffix")),
        (&["*.a.example.com"], only("longer")),
        (&["b.example.com", "c.example.com"], only("exact")),
    ]);
    for (host, expected) in [
        ("b.example.com", "exact"),
        ("C.Example.COM", "exact"),
        ("x.example.com", "suffix"),
        ("x.y.example.com", "suffix"),
        ("x.a.example.com", "longer"),
        ("a.example.com", "suffix"),
        ("example.com", "any"),
    ] {
        assert_eq!(taken(&router, &ask(host, "/")).as_deref(), Some(expected), "{host}");
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table of conditions")]
fn all_conditions_must_hold_and_the_first_route_wins() {
    let with = |change: &dyn Fn(&mut RouteMatch)| {
        let mut matches = RouteMatch::everything();
        change(&mut matches);
        matches
    };
    let pattern = |text| Pattern::new(text).unwrap();
    let router = router(vec![(
        &["*"],
        vec![
            route("exact", with(&|m| m.path = PathMatch::Exact("/a".into()))),
            route(
                "put",
                with(&|m| {
                    m.path = PathMatch::Prefix("/a".into());
                    m.method = Some("PUT".into());
                }),
            ),
            route(
                "header",
                with(&|m| m.headers = vec![("x-class".into(), ValueMatch::Exact("bulk".into()))]),
            ),
            route(
                "header regex",
                with(&|m| m.headers = vec![("x-re".into(), ValueMatch::Regex(pattern("b+,c")))]),
            ),
            route(
                "query",
                with(&|m| m.query = vec![("v w".into(), ValueMatch::Exact("a&b".into()))]),
            ),
            route("grpc", with(&|m| m.grpc = true)),
            route("regex", with(&|m| m.path = PathMatch::Regex(pattern("/r/[0-9]+")))),
            route("prefix", with(&|m| m.path = PathMatch::Prefix("/p".into()))),
        ],
    )]);
    let check = |asked: &Asked<'_>, expected: Option<&str>| {
        assert_eq!(
            taken(&router, asked).as_deref(),
            expected,
            "{} {:?}",
            asked.path,
            asked.headers
        );
    };
    check(&ask("h", "/a"), Some("exact"));
    check(&ask("h", "/a/b"), None);
    check(&Asked { method: Method::PUT, ..ask("h", "/a/b") }, Some("put"));
    check(&Asked { method: Method::PUT, ..ask("h", "/ab") }, None);
    for (path, expected) in [
        ("/p", Some("prefix")),
        ("/p/", Some("prefix")),
        ("/pq", None),
        ("/r/12", Some("regex")),
        ("/r/12/", None),
        ("/x/r/1", None),
    ] {
        check(&ask("h", path), expected);
    }
    for (query, expected) in [
        ("v+w=a%26b", Some("query")),
        ("v%20w=a%26b&v+w=x", Some("query")),
        ("v+w=x&v+w=a%26b", None),
        ("v", None),
    ] {
        check(&Asked { query: Some(query), ..ask("h", "/q") }, expected);
    }
    let headers = |pairs: &[(&'static str, &'static str)]| {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    };
    for (pairs, expected) in [
        (&[("x-class", "bulk")][..], Some("header")),
        (&[("x-class", "Bulk")], None),
        (&[("x-re", "bb"), ("x-re", "c")], Some("header regex")),
        (&[("x-re", "bb")], None),
        (&[("content-type", "application/grpc")], Some("grpc")),
        (&[("content-type", "application/grpc+proto")], Some("grpc")),
        (&[("content-type", "application/grpc-web")], None),
    ] {
        check(&Asked { headers: headers(pairs), ..ask("h", "/h") }, expected);
    }
}

#[test]
fn paths_are_rewritten_as_the_gateway_api_says() {
    for (matched, with, path, expected) in [
        ("/foo", "/bar", "/foo/baz", "/bar/baz"),
        ("/foo", "/bar/", "/foo/baz", "/bar/baz"),
        ("/foo", "/bar", "/foo", "/bar"),
        ("/foo", "/", "/foo/baz", "/baz"),
        ("/foo", "/", "/foo", "/"),
        ("/foo", "", "/foo", "/"),
        ("/", "/x", "/a", "/x/a"),
    ] {
        let rewrite = Rewrite::Prefix { matched: matched.into(), with: with.into() };
        assert_eq!(rewrite.apply(path), expected, "{matched} {with} {path}");
    }
    assert_eq!(Rewrite::Full("/x".into()).apply("/a/b"), "/x");
}

#[test]
fn paths_have_one_form_or_are_refused() {
    for (path, expected) in [
        ("/", Ok("/")),
        ("/a/./b/../c", Ok("/a/c")),
        ("/..", Ok("/")),
        ("/a/..", Ok("/")),
        ("/a/.", Ok("/a/")),
        ("/a/%2E%2e/b", Ok("/b")),
        ("/a/.%2e/b", Ok("/b")),
        ("/.../b", Ok("/.../b")),
        ("/a%2Fb", Ok("/a%2Fb")),
        ("//a", Ok("//a")),
        ("/a/..//b", Ok("//b")),
        ("/a%00", Err(())),
        ("/a\\b", Err(())),
        ("/a%", Err(())),
        ("/a%2", Err(())),
        ("/a%zz", Err(())),
    ] {
        let found = normalise(path).map_err(drop);
        assert_eq!(found.as_deref(), expected.as_ref().map(|e| *e).map_err(|()| &()), "{path}");
    }
}
