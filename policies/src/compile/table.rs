//! Route tables: virtual hosts by domain, routes in the order they are tried.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
};

use crate::{
    diagnostic::Rule,
    model::{Route, RouteTable, VirtualHost},
    problem::{Problems, Span},
};

use super::{matches, policies::Terms, rules::PreparedRule};

/// The rules of one listener. Requests whose host a more specific section
/// covers never see it.
pub(crate) struct Section {
    /// The listener's host, `*` for any.
    pub(crate) host: String,
    pub(crate) rules: Vec<HostedRule>,
}

/// A rule on one host.
pub(crate) struct HostedRule {
    host: String,
    /// Name of the route, then place in it: how equals are ordered.
    order: (String, usize),
    routes: Vec<(Route, Span)>,
}

impl HostedRule {
    pub(crate) fn new(host: &str, rule: &PreparedRule<'_>, terms: &Terms) -> Self {
        let id = rule.route.as_ref().map(|(_, id)| id.clone()).unwrap_or_default();
        Self { host: host.to_owned(), order: (id, rule.order), routes: rule.routes(terms) }
    }
}

/// Most routes of one table. Every host repeats the routes of wider hosts, so a
/// few documents can come to very many.
const MAX_ROUTES: usize = 100_000;

/// Builds the table of all sections that share a port.
pub(crate) fn build(name: &str, sections: Vec<Section>, problems: &mut Problems) -> RouteTable {
    let mut domains = BTreeSet::new();
    for section in &sections {
        domains.insert(section.host.as_str());
        domains.extend(section.rules.iter().map(|rule| rule.host.as_str()));
    }
    let mut hosts: Vec<(Vec<usize>, VirtualHost)> = Vec::new();
    let mut told = HashSet::new();
    let mut alike: BTreeMap<(usize, Vec<(usize, usize)>), usize> = BTreeMap::new();
    let mut total = 0;
    for domain in domains {
        let owner = sections
            .iter()
            .enumerate()
            .filter(|(_, section)| covers(&section.host, domain))
            .max_by_key(|(_, section)| specificity(&section.host));
        let Some((owner, section)) = owner else { continue };
        let sorted = sort(section, domain);
        total += sorted.len();
        if total > MAX_ROUTES {
            let (index, route) = sorted[0];
            let span = section.rules[index].routes[route].1;
            problems
                .error(Rule::Limit, span, format!("{name} comes to more than {MAX_ROUTES} routes"))
                .help("every host repeats the routes of wider hosts; use fewer hosts or rules");
            break;
        }
        conflicts(section, &sorted, &mut told, problems);
        let shadows =
            sections.iter().enumerate().any(|(other, s)| other != owner && covers(&s.host, domain));
        if sorted.is_empty() && !shadows {
            continue;
        }
        let at = *alike.entry((owner, sorted.clone())).or_insert_with(|| {
            let routes =
                sorted.iter().map(|(rule, route)| section.rules[*rule].routes[*route].0.clone());
            let routes = routes.collect();
            let host = VirtualHost { name: domain.to_owned(), domains: Vec::new(), routes };
            hosts.push((Vec::new(), host));
            hosts.len() - 1
        });
        hosts[at].1.domains.push(domain.to_owned());
    }
    let virtual_hosts = hosts.into_iter().map(|(_, host)| host).collect();
    RouteTable { name: name.to_owned(), virtual_hosts }
}

/// Rule and match, in the order they are tried for `domain`.
fn sort(section: &Section, domain: &str) -> Vec<(usize, usize)> {
    let mut sorted: Vec<(usize, usize)> = section
        .rules
        .iter()
        .enumerate()
        .filter(|(_, rule)| covers(&rule.host, domain))
        .flat_map(|(index, rule)| (0..rule.routes.len()).map(move |route| (index, route)))
        .collect();
    sorted.sort_by_cached_key(|(index, route)| {
        let rule = &section.rules[*index];
        let precedence = matches::precedence(&rule.routes[*route].0.matches);
        (Reverse(specificity(&rule.host)), precedence, rule.order.clone(), *route)
    });
    // A route with a wide and a narrow host: the narrower one has come first.
    let mut seen = HashSet::new();
    sorted.retain(|(index, route)| {
        let rule = &section.rules[*index];
        seen.insert((&rule.routes[*route].0.name, *route))
    });
    sorted
}

/// Tells of routes that can never be reached because an equal one comes first.
fn conflicts(
    section: &Section,
    sorted: &[(usize, usize)],
    told: &mut HashSet<(Span, Span)>,
    problems: &mut Problems,
) {
    let mut seen: HashMap<(&str, String), (usize, usize)> = HashMap::new();
    for (index, route) in sorted {
        let rule = &section.rules[*index];
        let (compiled, span) = &rule.routes[*route];
        let key = (rule.host.as_str(), matches::identity(&compiled.matches));
        let Some((first_rule, first_route)) = seen.get(&key) else {
            seen.insert(key, (*index, *route));
            continue;
        };
        let (first, first_span) = &section.rules[*first_rule].routes[*first_route];
        if !told.insert((*first_span, *span)) {
            continue;
        }
        let on = if rule.host == "*" { String::new() } else { format!(" on {}", rule.host) };
        problems
            .error(
                Rule::Conflict,
                *span,
                format!("{} already takes these requests{on}", first.name),
            )
            .related(*first_span, "the same match")
            .help("only the first would ever be used; change or remove one");
    }
}

/// Whether requests for every host of `narrow` are requests for a host of `wide`.
pub(crate) fn covers(wide: &str, narrow: &str) -> bool {
    if wide == "*" || wide == narrow {
        return true;
    }
    // `*.example.com` covers `a.example.com`, `a.b.example.com` and `*.a.example.com`.
    let (Some(suffix), inner) =
        (wide.strip_prefix('*'), narrow.strip_prefix('*').unwrap_or(narrow))
    else {
        return false;
    };
    inner.len() > suffix.len() && inner.ends_with(suffix)
}

/// The narrower of two hosts, if one covers the other.
pub(crate) fn intersection<'a>(a: &'a str, b: &'a str) -> Option<&'a str> {
    if covers(a, b) {
        Some(b)
    } else if covers(b, a) {
        Some(a)
    } else {
        None
    }
}

/// Greater for hosts that are matched first: exact ones, then longer ones.
pub(crate) fn specificity(host: &str) -> (bool, usize) {
    (!host.starts_with('*'), host.len())
}
