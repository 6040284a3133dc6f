//! Which rule a Linkerd proxy takes for a request, beside which route is ours.

use std::{cell::RefCell, collections::HashMap};

use regex::Regex;
use towpath_policies::model::{
    DirectResponse, HeaderEdit, PathMatch, Pattern, RetryCondition, RetryPolicy, RouteMatch,
    ValueMatch, WeightedBackend,
};

use super::*;

#[derive(Debug)]
struct Request {
    method: &'static str,
    path: &'static str,
    headers: Vec<(&'static str, &'static str)>,
    query: Vec<(&'static str, &'static str)>,
}

/// How good a match is to a proxy; the greatest wins, and of equals the first.
type Score = (usize, usize, usize, bool);

/// Of a match that applies. As in `linkerd-http-route`.
fn score(matches: &HttpRouteMatch, request: &Request) -> Option<Score> {
    let found = |text: &str, value: &str| {
        let found = compiled(text).find(value).map(|found| found.range());
        found == Some(0..value.len())
    };
    let path = match matches.path.as_ref()?.kind.as_ref()? {
        path_match::Kind::Exact(path) => (path == request.path).then_some(path.len())?,
        path_match::Kind::Regex(text) => found(text, request.path).then_some(request.path.len())?,
        path_match::Kind::Prefix(prefix) if prefix == "/" => 1,
        path_match::Kind::Prefix(prefix) => {
            let prefix = prefix.trim_end_matches('/');
            let rest = request.path.trim_end_matches('/').strip_prefix(prefix)?;
            (rest.is_empty() || rest.starts_with('/')).then_some(prefix.len())?
        }
    };
    let headers = matches.headers.iter().all(|header| {
        request.headers.iter().any(|(name, value)| {
            *name == header.name
                && match header.value.as_ref().unwrap() {
                    header_match::Value::Exact(text) => text == value.as_bytes(),
                    header_match::Value::Regex(text) => found(text, value),
                }
        })
    });
    let query = matches.query_params.iter().all(|query| {
        request.query.iter().any(|(name, value)| {
            *name == query.name
                && match query.value.as_ref().unwrap() {
                    query_param_match::Value::Exact(text) => text == value,
                    query_param_match::Value::Regex(text) => found(text, value),
                }
        })
    });
    let method = matches.method.clone().map(|method| http::Method::try_from(method).unwrap());
    let applies = headers && query && method.as_ref().is_none_or(|m| m == request.method);
    let score = (path, matches.headers.len(), matches.query_params.len(), method.is_some());
    applies.then_some(score)
}

/// There are few, and they are slow to make.
fn compiled(text: &str) -> Regex {
    thread_local!(static KNOWN: RefCell<HashMap<String, Regex>> = RefCell::default());
    let compile = || Regex::new(text).unwrap();
    KNOWN.with_borrow_mut(|known| known.entry(text.to_owned()).or_insert_with(compile).clone())
}

/// The route and rule that a proxy takes.
fn theirs<'p>(routes: &'p [HttpRoute], request: &Request) -> Option<(usize, &'p http_route::Rule)> {
    let of_rule =
        |rule: &http_route::Rule| rule.matches.iter().filter_map(|m| score(m, request)).max();
    let all =
        routes.iter().enumerate().flat_map(|(at, route)| route.rules.iter().map(move |r| (at, r)));
    let scored = all.filter_map(|(at, rule)| Some((of_rule(rule)?, at, rule)));
    let best = scored.reduce(|first, second| if first.0 >= second.0 { first } else { second });
    best.map(|(_, at, rule)| (at, rule))
}

fn applies(matches: &RouteMatch, request: &Request) -> bool {
    let value = |wanted: &ValueMatch, value: &str| match wanted {
        ValueMatch::Exact(text) => text == value,
        ValueMatch::Regex(pattern) => pattern.is_match(value),
        ValueMatch::Present => true,
    };
    let has = |wanted: &[(String, ValueMatch)], given: &[(&str, &str)]| {
        wanted.iter().all(|(name, wanted)| given.iter().any(|(n, v)| n == name && value(wanted, v)))
    };
    let path = match &matches.path {
        PathMatch::Exact(path) => path == request.path,
        PathMatch::Prefix(prefix) if prefix == "/" => true,
        PathMatch::Prefix(prefix) => {
            let rest = request.path.strip_prefix(prefix.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
        PathMatch::Regex(pattern) => pattern.is_match(request.path),
    };
    let grpc = request
        .headers
        .iter()
        .any(|(n, v)| *n == "content-type" && v.starts_with("application/grpc"));
    path && matches.method.as_deref().is_none_or(|m| m == request.method)
        && has(&matches.headers, &request.headers)
        && has(&matches.query, &request.query)
        && (grpc || !matches.grpc)
}

/// Draws from a few words, so that things meet.
struct Chance(fastrand::Rng);

impl Chance {
    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        self.0.choice(of.iter()).unwrap().clone()
    }

    fn some<T: Clone>(&mut self, of: &[T]) -> Vec<T> {
        let Self(rng) = self;
        of.iter().filter(|_| rng.u8(..3) == 0).cloned().collect()
    }

    fn value(&mut self) -> ValueMatch {
        self.pick(&[
            ValueMatch::Exact("ab".to_owned()),
            ValueMatch::Regex(Pattern::new("a|ab").unwrap()),
            ValueMatch::Regex(Pattern::new("b?").unwrap()),
            ValueMatch::Present,
        ])
    }

    fn values(&mut self, names: &[&str]) -> Vec<(String, ValueMatch)> {
        let names = self.some(names);
        names.into_iter().map(|name| (name.to_owned(), self.value())).collect()
    }

    fn route(&mut self, nth: usize) -> Route {
        let path = self.pick(&[
            PathMatch::Prefix("/".to_owned()),
            PathMatch::Prefix("/a".to_owned()),
            PathMatch::Prefix("/a/b".to_owned()),
            PathMatch::Exact("/a".to_owned()),
            PathMatch::Exact("/a/".to_owned()),
            PathMatch::Regex(Pattern::new("/a|/a/b").unwrap()),
        ]);
        let matches = RouteMatch {
            path,
            method: self
                .pick(&[None, None, Some("GET"), Some("POST"), Some("PURGE")])
                .map(Into::into),
            headers: self.values(&["x-a", "x-b"]),
            query: self.values(&["q", "r"]),
            grpc: self.0.u8(..5) == 0,
        };
        let on = self.pick(&[vec![RetryCondition::Reset], vec![RetryCondition::Status(vec![503])]]);
        let retry = RetryPolicy { on, ..RetryPolicy::default() };
        let forward = Forward { retry, ..Forward::to(vec![WeightedBackend::new("s")]) };
        let response = DirectResponse { status: 404, body: String::new() };
        let action = self.pick(&[Action::Forward(forward), Action::Respond(response)]);
        let (request_headers, response_headers) = (HeaderEdit::default(), HeaderEdit::default());
        Route { name: nth.to_string(), matches, action, request_headers, response_headers }
    }

    fn request(&mut self) -> Request {
        let words = ["a", "ab", "b", ""];
        let given = |chance: &mut Self, names: &[&'static str]| {
            let names = chance.some(names);
            names.into_iter().map(|name| (name, chance.pick(&words))).collect::<Vec<_>>()
        };
        let mut headers = given(self, &["x-a", "x-b"]);
        headers.push(("content-type", self.pick(&["application/grpc+proto", "text/plain"])));
        Request {
            method: self.pick(&["GET", "POST", "PUT", "PURGE"]),
            path: self.pick(&["/", "/a", "/a/", "/a/b", "/a/b/c", "/ab"]),
            headers,
            query: given(self, &["q", "r"]),
        }
    }
}

/// The same rules apply; another is taken only where Linkerd's own order says so, and never one that is told less
/// carefully than its method demands.
#[test]
fn a_proxy_takes_the_route_that_ours_takes_but_for_its_own_order() {
    let (mut chance, mut same, mut other) = (Chance(fastrand::Rng::with_seed(7)), 0, 0);
    let world = World::default();
    let backends = Backends { world: &world, port: 80, pinned: None };
    for _ in 0..500 {
        let routes: Vec<Route> = (0..6).map(|nth| chance.route(nth)).collect();
        let told = http_routes(&routes, &backends);
        for _ in 0..10 {
            let request = chance.request();
            let ours = routes.iter().position(|route| applies(&route.matches, &request));
            let taken = theirs(&told, &request);
            assert_eq!(ours.is_some(), taken.is_some(), "{request:?} {routes:#?}");
            let (Some(ours), Some((theirs, rule))) = (ours, taken) else { continue };
            assert!(applies(&routes[theirs].matches, &request), "{request:?} {routes:#?}");
            if let Action::Forward(forward) = &routes[theirs].action {
                let safe = matching::IDEMPOTENT.contains(&request.method);
                assert_eq!(rule.retry, retry::encode(&forward.retry, safe), "{request:?}");
            }
            if ours == theirs {
                same += 1;
                continue;
            }
            other += 1;
            // As if no route were told by method: what tells methods apart must not change the order.
            let plain =
                |at: usize| score(&matching::encode(&routes[at].matches), &request).unwrap();
            assert!(
                plain(theirs) > plain(ours),
                "{request:?} {:#?} {:#?}",
                routes[ours],
                routes[theirs]
            );
        }
    }
    assert!(same > 1_000 && other > 100, "{same} {other}");
}
