//! What a listener does with a connection, chosen by server name.

use std::{collections::HashMap, sync::Arc};

use crate::{explicit::Explicit, http::HttpListener, tcp::TcpChain, tls::ServerTls};

/// The chains of one listener, compiled.
#[derive(Debug)]
pub(crate) struct Chains {
    list: Vec<Arc<Chain>>,
    exact: HashMap<String, usize>,
    /// By what follows the `*`, e.g. `.example.com`.
    wildcards: HashMap<String, usize>,
    /// The chain without server names.
    any: Option<usize>,
}

/// One chain, compiled.
#[derive(Debug)]
pub(crate) struct Chain {
    pub(crate) server_names: Vec<String>,
    pub(crate) tls: Option<Arc<ServerTls>>,
    pub(crate) kind: ChainKind,
}

/// What is spoken after TLS, if any.
#[derive(Debug)]
pub(crate) enum ChainKind {
    Http(Arc<HttpListener>),
    Tcp(Arc<TcpChain>),
    /// Whatever a program asks its proxy for.
    Explicit(Arc<Explicit>),
}

/// How a connection begins.
pub(crate) enum Opening<'a> {
    /// Only one thing it can be: nothing is read to find out.
    Clear(&'a Chain),
    /// A ClientHello decides.
    Hello,
}

impl Chains {
    pub(crate) fn new(list: Vec<Arc<Chain>>) -> Self {
        let (mut exact, mut wildcards, mut any) = (HashMap::new(), HashMap::new(), None);
        for (index, chain) in list.iter().enumerate() {
            if chain.server_names.is_empty() {
                any.get_or_insert(index);
            }
            for name in &chain.server_names {
                let name = name.to_ascii_lowercase();
                match name.strip_prefix('*') {
                    Some(suffix) => wildcards.entry(suffix.to_owned()).or_insert(index),
                    None => exact.entry(name).or_insert(index),
                };
            }
        }
        Self { list, exact, wildcards, any }
    }

    pub(crate) fn list(&self) -> &[Arc<Chain>] {
        &self.list
    }

    pub(crate) fn opening(&self) -> Opening<'_> {
        match self.list.as_slice() {
            [only] if only.tls.is_none() && only.server_names.is_empty() => Opening::Clear(only),
            _ => Opening::Hello,
        }
    }

    /// The most specific chain for a server name: exact, then the longest wildcard, then any.
    pub(crate) fn by_name(&self, name: Option<&str>) -> Option<Arc<Chain>> {
        let named = name.and_then(|name| {
            self.exact.get(name).or_else(|| {
                name.match_indices('.').find_map(|(dot, _)| self.wildcards.get(&name[dot..]))
            })
        });
        named.copied().or(self.any).map(|index| self.list[index].clone())
    }

    /// The chain for connections that do not begin with TLS.
    pub(crate) fn without_tls(&self) -> Option<Arc<Chain>> {
        self.any.map(|index| self.list[index].clone()).filter(|chain| chain.tls.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::TcpMetrics;

    fn chain(names: &[&str]) -> Arc<Chain> {
        let forward = TcpChain {
            listener: "l".into(),
            backends: Vec::new(),
            idle_timeout: None,
            access_log: None,
            transfers: Arc::new(crate::transfers::Transfers::new(1)),
            metrics: TcpMetrics::new("l"),
        };
        Arc::new(Chain {
            server_names: names.iter().map(ToString::to_string).collect(),
            tls: None,
            kind: ChainKind::Tcp(Arc::new(forward)),
        })
    }

    #[test]
    fn the_most_specific_name_wins() {
        let chains = Chains::new(vec![
            chain(&["*.example.com"]),
            chain(&["a.example.com"]),
            chain(&["*.b.example.com", "other.test"]),
            chain(&[]),
        ]);
        let any = 3;
        for (name, expected) in [
            (Some("a.example.com"), 1),
            (Some("c.example.com"), 0),
            (Some("x.y.example.com"), 0),
            (Some("x.b.example.com"), 2),
            (Some("b.example.com"), 0),
            (Some("other.test"), 2),
            (Some("example.com"), any),
            (Some(""), any),
            (None, any),
        ] {
            let found = chains.by_name(name).unwrap();
            assert!(Arc::ptr_eq(&found, &chains.list[expected]), "{name:?}");
        }
        let strict = Chains::new(vec![chain(&["a.test"])]);
        assert!(strict.by_name(Some("b.test")).is_none());
        assert!(strict.without_tls().is_none());
        assert!(matches!(strict.opening(), Opening::Hello));
    }
}
