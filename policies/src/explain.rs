//! A mesh in a person's words: what listens where, which request goes to whom
//! under which terms, and who said so.

use std::{collections::HashSet, fmt::Write as _, path::PathBuf};

use crate::{
    Checked,
    compile::Origin,
    model::{
        Action, Bind, Chain, ChainKind, Endpoint, Forward, ForwardedHeader, HeaderEdit,
        HostRewrite, Mesh, ResourceKey, ResourceKind, RouteTable, ScopedListener, Service, Source,
        Spread,
    },
    words,
};

impl Checked {
    /// What the mesh does, as text of many lines; `None` when there were errors.
    pub fn explain(&self) -> Option<String> {
        let mesh = self.mesh.as_ref()?;
        let mut page = Page { checked: self, mesh, text: String::new(), told: HashSet::new() };
        page.summary();
        for (name, scoped) in &mesh.listeners {
            if scoped.listener.bind != Bind::Api {
                page.listener(name, scoped);
            }
        }
        for (name, scoped) in &mesh.listeners {
            if scoped.listener.bind == Bind::Api {
                page.listener(name, scoped);
            }
        }
        for service in mesh.services.values() {
            page.service(service);
        }
        Some(page.text)
    }
}

struct Page<'a> {
    checked: &'a Checked,
    mesh: &'a Mesh,
    text: String,
    /// Route tables and names of routes whose terms have been written.
    told: HashSet<(String, String)>,
}

impl Page<'_> {
    fn line(&mut self, indent: usize, text: &str) {
        let _ = writeln!(self.text, "{:indent$}{text}", "", indent = indent * 2);
    }

    fn summary(&mut self) {
        let mesh = self.mesh;
        let hosts = || mesh.routes.values().flat_map(|t| &t.virtual_hosts);
        let text = format!(
            "version {}: {} listeners, {} route tables with {} hosts and {} routes, {} services, {} endpoints",
            mesh.version,
            mesh.listeners.len(),
            mesh.routes.len(),
            hosts().map(|h| h.domains.len()).sum::<usize>(),
            hosts().map(|h| h.routes.len()).sum::<usize>(),
            mesh.services.len(),
            mesh.endpoints.values().map(|set| set.endpoints.len()).sum::<usize>(),
        );
        self.line(0, &text);
    }

    fn place(&self, kind: ResourceKind, name: &str) -> String {
        let key = ResourceKey { kind, name: name.to_owned() };
        self.mesh.sources.get(&key).map(|source| format!("  ({source})")).unwrap_or_default()
    }

    fn listener(&mut self, name: &str, scoped: &ScopedListener) {
        self.line(0, "");
        let listener = &scoped.listener;
        let place = self.place(ResourceKind::Listener, name);
        if listener.bind == Bind::Api {
            self.line(0, &format!("mesh clients of xds:///{name}{place}"));
        } else {
            self.line(0, &format!("listener {name} on {}{place}", words::bind(&listener.bind)));
            let location = words::location(&listener.location);
            self.line(1, &format!("for {}{location}", words::nodes(scoped)));
            if let Some(terms) = &listener.proxy_protocol {
                self.line(1, &words::proxy_protocol(terms));
            }
        }
        for (node, own) in &scoped.own {
            self.line(1, &format!("before that for {node}"));
            for chain in own.chains.iter().filter(|chain| !listener.chains.contains(chain)) {
                self.chain(chain, false);
            }
        }
        if !scoped.own.is_empty() {
            self.line(1, "for all of them");
        }
        for chain in &listener.chains {
            self.chain(chain, listener.bind == Bind::Api);
        }
    }

    fn chain(&mut self, chain: &Chain, api: bool) {
        let mut text = words::only(&chain.only);
        if !chain.server_names.is_empty() {
            let _ = write!(text, "server name {}: ", chain.server_names.join(", "));
        }
        if let Some(tls) = &chain.tls {
            let _ = write!(text, "TLS with {}", tls.certificate_file.display());
            if let Some(second) = &tls.second {
                let _ = write!(text, " or {}", second.certificate_file.display());
            }
            text += ", then ";
        }
        match &chain.kind {
            ChainKind::Tcp(tcp) => {
                let what = if chain.tls.is_none() && !chain.server_names.is_empty() {
                    "TLS passed through"
                } else {
                    "TCP"
                };
                let backends = words::backends(&tcp.backends);
                let _ = write!(
                    text,
                    "{what} to {backends}, idle timeout {}",
                    words::limit(tcp.idle_timeout)
                );
                self.line(1, &text);
            }
            ChainKind::Http { route_table, options } => {
                if !api {
                    let _ = write!(text, "HTTP by {route_table}");
                    if let Some(via) = &options.via {
                        let _ = write!(text, ", via {via}");
                    }
                    text += match options.forwarded {
                        ForwardedHeader::Off => ", tells no client address",
                        ForwardedHeader::XForwarded => ", adds X-Forwarded-For",
                        ForwardedHeader::Rfc7239 => ", adds Forwarded",
                    };
                    self.line(1, &text);
                    let limits = words::http_limits(options);
                    if !limits.is_empty() {
                        self.line(1, &limits);
                    }
                }
                if let Some(table) = self.mesh.routes.get(route_table) {
                    self.table(&table.clone());
                }
            }
        }
    }

    fn table(&mut self, table: &RouteTable) {
        if table.virtual_hosts.is_empty() {
            self.line(2, "no routes: every request is answered 404");
        }
        for host in &table.virtual_hosts {
            self.line(1, &format!("host {}", host.domains.join(", ")));
            for (index, route) in host.routes.iter().enumerate() {
                let place = self.route_place(&table.name, &route.name);
                let matches = words::matches(&route.matches);
                self.line(2, &format!("{}. {matches}   {}{place}", index + 1, route.name));
                self.line(3, &format!("→ {}", words::action(&route.action)));
                self.edits("request headers", &route.request_headers);
                self.edits("response headers", &route.response_headers);
                if let Action::Forward(forward) = &route.action {
                    self.forward(&table.name, &route.name, forward);
                }
            }
        }
    }

    fn route_place(&self, table: &str, route: &str) -> String {
        let key = (table.to_owned(), route.to_owned());
        let note = self.checked.notes.routes.get(&key);
        note.map(|note| format!("  ({})", self.source(note.span))).unwrap_or_default()
    }

    fn source(&self, span: crate::problem::Span) -> Source {
        let file = self.checked.paths.get(span.file as usize).cloned().unwrap_or_else(PathBuf::new);
        Source { file, line: span.line }
    }

    fn edits(&mut self, what: &str, edit: &HeaderEdit) {
        if edit.is_empty() {
            return;
        }
        let mut parts = Vec::new();
        parts.extend(edit.remove.iter().map(|name| format!("remove {name}")));
        parts.extend(edit.set.iter().map(|(name, value)| format!("set {name}: {value}")));
        parts.extend(edit.add.iter().map(|(name, value)| format!("add {name}: {value}")));
        self.line(3, &format!("{what}: {}", parts.join("; ")));
    }

    fn forward(&mut self, table: &str, name: &str, forward: &Forward) {
        for backend in &forward.backends {
            self.edits(
                &format!("request headers to {}", backend.service),
                &backend.request_headers,
            );
            self.edits(
                &format!("response headers of {}", backend.service),
                &backend.response_headers,
            );
        }
        if let HostRewrite::Literal(host) = &forward.host {
            self.line(3, &format!("the host becomes {host}"));
        }
        if let Some(path) = &forward.path {
            self.line(3, &words::rewrite(path));
        }
        for mirror in &forward.mirrors {
            let share = words::percent(mirror.parts_per_million);
            self.line(3, &format!("copies {share} to {}", mirror.service));
        }
        let key = (table.to_owned(), name.to_owned());
        if !self.told.insert(key.clone()) {
            self.line(3, "under the same terms as above");
            return;
        }
        let Some(note) = self.checked.notes.routes.get(&key) else { return };
        for (field, origin) in &note.origins {
            let value = term(forward, field);
            self.setting(3, field, &value, origin);
        }
    }

    fn setting(&mut self, indent: usize, field: &str, value: &str, origin: &Origin) {
        let from = match origin {
            Origin::Default => "default".to_owned(),
            Origin::Written(span, document) => format!("{document}, {}", self.source(*span)),
        };
        self.line(indent, &format!("{field}: {value}  [{from}]"));
    }

    fn service(&mut self, service: &Service) {
        self.line(0, "");
        let place = self.place(ResourceKind::Service, &service.name);
        self.line(0, &format!("service {}{place}", service.name));
        if let crate::model::Discovery::Dns { host, port, refresh } = &service.discovery {
            let every = words::time(*refresh);
            self.line(
                1,
                &format!("endpoints: all addresses of {host}:{port}, looked up every {every}"),
            );
        }
        if service.discovery == crate::model::Discovery::OriginalDestination {
            self.line(1, "endpoints: whatever a connection was made to before it was redirected");
        }
        if let Some(set) = self.mesh.endpoints.get(&service.name) {
            let set = set.clone();
            set.endpoints.iter().for_each(|endpoint| self.endpoint(endpoint));
            for (name, region) in &set.regions {
                self.line(1, &format!("region {name}: {}", words::region(region)));
            }
            for (name, region) in &set.origins {
                self.line(1, &format!("data from {name}: {}", words::region(region)));
            }
            self.spread(&set.spread);
        }
        if let Some(tls) = &service.tls {
            self.line(1, &format!("TLS as {}", tls.server_name));
        }
        let Some(origins) = self.checked.notes.services.get(&service.name) else { return };
        for (field, origin) in origins {
            let value = service_value(service, field);
            self.setting(1, field, &value, origin);
        }
    }

    fn spread(&mut self, spread: &Spread) {
        for named in &spread.localities {
            let (locality, weight) = (words::locality(&named.locality), named.weight);
            let priority = named.priority;
            self.line(
                1,
                &format!("locality {locality:?} at priority {priority} has weight {weight}"),
            );
        }
        if let Some(percent) = spread.overprovisioning_percent {
            self.line(1, &format!("all of a share as long as usable × {percent} % is 100 %"));
        }
    }

    fn endpoint(&mut self, endpoint: &Endpoint) {
        let mut text = format!("endpoint {} at {}", endpoint.name, endpoint.address);
        let locality = words::locality(&endpoint.locality);
        if !locality.is_empty() {
            let _ = write!(text, ", {locality}");
        }
        text += &words::location(&endpoint.location());
        let _ = write!(text, ", weight {}, priority {}", endpoint.weight, endpoint.priority);
        if let Some(gpu) = &endpoint.gpu {
            let _ = write!(text, ", {} × {} {}", gpu.count, gpu.vendor, gpu.model);
        }
        if let Some(slots) = endpoint.slots {
            let _ = write!(text, ", slots: {slots}");
        }
        if endpoint.tunnel {
            text += ", through a tunnel";
        }
        self.line(1, &text);
    }
}

/// The value of a term by the name that [`crate::compile`] notes it under.
fn term(forward: &Forward, field: &str) -> String {
    let retry = &forward.retry;
    match field {
        "timeout" => words::limit(forward.timeout),
        "idle timeout" => words::limit(forward.idle_timeout),
        "hedge" if retry.attempts == 0 => "none, there are no attempts".to_owned(),
        "hedge" => words::hedge(forward.transfer.hedge.as_ref()),
        "stall timeout" => words::stall(forward.transfer.stall.as_ref()),
        "class" => forward.transfer.class.name().to_owned(),
        "tenant" => words::tenant(forward.transfer.tenant.as_ref()),
        "resume uploads" if retry.attempts == 0 => "false, there are no attempts".to_owned(),
        "resume uploads" => forward.transfer.resume_uploads.to_string(),
        "make digests" => forward.transfer.integrity.make.to_string(),
        "check digests" => forward.transfer.integrity.check.to_string(),
        "digest algorithm" => forward.transfer.integrity.algorithm.name().to_owned(),
        "rate limits" => words::rate_limits(&forward.transfer.limits),
        "largest request body" => {
            forward.transfer.max_request_bytes.map_or_else(|| "any".to_owned(), words::bytes)
        }
        "retry attempts" => retry.attempts.to_string(),
        "retry conditions" => words::conditions(&retry.on),
        "per-try timeout" => words::limit(retry.per_try_timeout),
        "retry backoff" => words::time(retry.backoff_base),
        "longest backoff" => words::time(retry.backoff_max),
        "replay limit" => words::bytes(retry.replay_limit_bytes),
        "replay disk limit" => words::bytes(retry.replay_disk_limit_bytes),
        "with idempotency key" => retry.with_idempotency_key.to_string(),
        "mint idempotency key" => retry.mint_idempotency_key.to_string(),
        "resume downloads" if retry.attempts == 0 => "false, there are no attempts".to_owned(),
        "resume downloads" => retry.resume_downloads.to_string(),
        _ => String::new(),
    }
}

fn service_value(service: &Service, field: &str) -> String {
    match field {
        "protocol" => words::protocol(service.protocol).to_owned(),
        "connect timeout" => words::time(service.connect_timeout),
        "pool idle timeout" => words::time(service.pool_idle_timeout),
        "health check" => words::health_check(service.health_check.as_ref()),
        "PROXY protocol" => words::proxy_version(service),
        "balancer" => words::balancer(service),
        "limits" => words::thresholds(&service.breaker.service),
        "limits of each endpoint" => words::thresholds(&service.breaker.endpoint),
        "bandwidth" => words::bandwidth(service.admission.bandwidth.as_ref()),
        "outlier ejection" => words::outlier(service.outlier.as_ref()),
        "recovery" => words::recovery(&service.recovery),
        "queue" => words::queue(service.admission.queue.as_ref()),
        "adaptive concurrency" => {
            words::adaptive_concurrency(service.admission.adaptive_concurrency)
        }
        "stream age" => words::stream_age(service.admission.stream_age),
        "retry budget" => {
            let budget = service.retry_budget;
            format!(
                "{} % of the requests and bytes in flight, at least {}",
                budget.percent, budget.min_concurrent
            )
        }
        _ => String::new(),
    }
}
