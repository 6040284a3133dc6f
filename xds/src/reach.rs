//! Which route tables and services a set of listeners leads to.

use std::collections::BTreeSet;

use towpath_policies::model::{Action, ChainKind, Listener, RouteTable};

/// Names of the route tables a listener uses.
pub(crate) fn tables(listener: &Listener) -> impl Iterator<Item = &str> {
    listener.chains.iter().filter_map(|chain| match &chain.kind {
        ChainKind::Http { route_table, .. } => Some(route_table.as_str()),
        ChainKind::Tcp(_) => None,
    })
}

/// Names of the services a listener forwards to without a route table.
pub(crate) fn direct_services(listener: &Listener) -> impl Iterator<Item = &str> {
    listener
        .chains
        .iter()
        .flat_map(|chain| match &chain.kind {
            ChainKind::Http { .. } => [].iter(),
            ChainKind::Tcp(tcp) => tcp.backends.iter(),
        })
        .map(|backend| backend.service.as_str())
}

/// Names of the services a route table forwards or mirrors to.
pub(crate) fn services(table: &RouteTable) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    for route in table.virtual_hosts.iter().flat_map(|host| &host.routes) {
        if let Action::Forward(forward) = &route.action {
            names.extend(forward.backends.iter().map(|b| b.service.as_str()));
            names.extend(forward.mirrors.iter().map(|m| m.service.as_str()));
        }
    }
    names
}
