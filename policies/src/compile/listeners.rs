//! What a `ListenerPolicy` says of the listeners of a Gateway: the nearest that says something
//! wins, field by field.

use crate::{
    diagnostic::Rule,
    document::{
        Object,
        gateway::ListenerProtocol,
        listener::{
            Http10, ListenerHttpSpec, ListenerPolicySpec, ProxyProtocolMode, ProxyProtocolSpec,
        },
        read::invalid,
    },
    model::{HttpOptions, ProxyProtocol},
    problem::{At, Problems, Span},
};

use super::gateways::attach::Plan;

/// The policies of one listener, nearest first.
pub(crate) struct ListenerLevels<'d>(pub(crate) Vec<&'d Object<ListenerPolicySpec>>);

/// What is wrong with a policy by itself.
pub(super) fn check(policy: &Object<ListenerPolicySpec>, problems: &mut Problems) {
    let ListenerPolicySpec { proxy_protocol, http, .. } = &policy.spec;
    if proxy_protocol.is_none() && http.is_none() {
        problems
            .warning(Rule::NoEffect, policy.span, "the policy says nothing")
            .help("give `proxyProtocol` or `http`");
    }
    if let Some(trusted) = proxy_protocol.as_ref().map(|p| &p.trusted)
        && trusted.len() > ProxyProtocol::MOST_TRUSTED
    {
        let help = format!("at most {} networks", ProxyProtocol::MOST_TRUSTED);
        invalid(trusted.span, "too many networks", help, problems);
    }
    if let Some(bytes) = http.as_ref().and_then(|http| http.max_header_bytes.as_ref())
        && !(LEAST_HEAD..=MOST_HEAD).contains(&bytes.0)
    {
        invalid(bytes.span, "no such size of a request head", "from 1KiB to 8MiB", problems);
    }
}

/// A browser's head with a few cookies.
const LEAST_HEAD: u64 = 1 << 10;
/// Envoy's limit.
const MOST_HEAD: u64 = 8 << 20;

impl<'d> ListenerLevels<'d> {
    fn pick<T>(&self, field: impl Fn(&'d ListenerHttpSpec) -> Option<T>) -> Option<T> {
        self.0.iter().find_map(|policy| field(policy.spec.http.as_ref()?))
    }

    /// The limits of HTTP, where a policy says some.
    pub(crate) fn http(&self, base: &HttpOptions) -> HttpOptions {
        let head = self.pick(|http| http.max_header_bytes.as_ref().map(|bytes| bytes.0));
        let http10 = self.pick(|http| http.http10.as_ref().map(|told| told.value));
        HttpOptions {
            max_head_bytes: head
                .map_or(base.max_head_bytes, |bytes| u32::try_from(bytes).unwrap_or(u32::MAX)),
            max_headers: self
                .pick(|http| http.max_headers.as_ref().map(|most| ***most))
                .unwrap_or(base.max_headers),
            head_timeout: self
                .pick(|http| http.head_timeout.as_ref().map(|time| time.0))
                .unwrap_or(base.head_timeout),
            idle_timeout: self
                .pick(|http| http.idle_timeout.as_ref().map(|time| time.0))
                .unwrap_or(base.idle_timeout),
            max_concurrent_streams: self
                .pick(|http| http.max_concurrent_streams.as_ref().map(|most| ***most))
                .unwrap_or(base.max_concurrent_streams),
            http10: http10.map_or(base.http10, |told| told == Http10::Serve),
            ..base.clone()
        }
    }

    fn http_policy(&self) -> Option<(&'d Object<ListenerPolicySpec>, Span)> {
        self.0.iter().find_map(|policy| Some((*policy, policy.spec.http.as_ref()?.span)))
    }

    fn proxy_protocol(&self) -> Option<&'d At<ProxyProtocolSpec>> {
        self.0.iter().find_map(|policy| policy.spec.proxy_protocol.as_ref())
    }
}

fn proxy_protocol(written: &ProxyProtocolSpec) -> ProxyProtocol {
    let mode = written.mode.as_ref().map(|mode| mode.value);
    ProxyProtocol {
        required: mode != Some(ProxyProtocolMode::Optional),
        trusted: written.trusted.iter().map(|network| network.0).collect(),
    }
}

/// Who may say for which client a connection to this port is: the same for all that share it, since
/// it is said before a listener can be chosen.
pub(crate) fn of_port(
    group: &[(&Plan<'_>, ListenerLevels<'_>)],
    problems: &mut Problems,
) -> Option<ProxyProtocol> {
    let (first, levels) = group.first()?;
    let written = levels.proxy_protocol();
    if matches!(
        first.written.protocol.value,
        ListenerProtocol::Outbound | ListenerProtocol::Inbound
    ) {
        // A policy of the whole Gateway may well mean its other listeners.
        if let Some(written) = written.filter(|_| levels.0.iter().all(|p| of_sections(p))) {
            problems
                .error(Rule::NoEffect, written.span, "what is redirected comes without a header")
                .related(first.written.protocol.span, format!("listener `{}`", first.written.name));
        }
        return None;
    }
    let terms = written.map(|written| proxy_protocol(written));
    let told = |written: Option<&At<ProxyProtocolSpec>>, plan: &Plan<'_>| {
        written.map_or(plan.written.name.span, |written| written.span)
    };
    for (plan, levels) in &group[1..] {
        let other = levels.proxy_protocol();
        if other.map(|other| proxy_protocol(other)) != terms {
            problems
                .error(
                    Rule::Conflict,
                    told(other, plan),
                    "listeners that share a port cannot differ in proxyProtocol",
                )
                .related(told(written, first), format!("listener `{}`", first.written.name))
                .help("attach the policy to all of them, or to the Gateway");
        }
    }
    let opaque = first.written.protocol.value == ListenerProtocol::Tcp;
    if let Some(mode) = written.and_then(|written| written.mode.as_ref())
        && mode.value == ProxyProtocolMode::Optional
        && opaque
    {
        problems
            .error(
                Rule::Conflict,
                mode.span,
                "whether a TCP connection has a header cannot be told: its server may be the one to speak first",
            )
            .related(first.written.protocol.span, format!("listener `{}`", first.written.name))
            .help("use `required`, or another port for those without a header");
    }
    terms
}

/// Listeners that the `Host` field tells apart share their connections, and so the limits of HTTP; others have no HTTP
/// to limit.
pub(crate) fn check_http(group: &[(&Plan<'_>, ListenerLevels<'_>)], problems: &mut Problems) {
    let base = HttpOptions::default();
    for (plan, levels) in group {
        let Some((policy, span)) = levels.http_policy() else { continue };
        match plan.written.protocol.value {
            ListenerProtocol::Https | ListenerProtocol::Outbound => {}
            ListenerProtocol::Http => {
                let differs = |(_, other): &&(&Plan<'_>, ListenerLevels<'_>)| {
                    other.http(&base) != levels.http(&base)
                };
                let Some((other, _)) = group.iter().find(differs) else { continue };
                problems
                    .error(
                        Rule::Conflict,
                        span,
                        "HTTP listeners that share a port share its connections, and cannot differ in limits",
                    )
                    .related(other.written.name.span, format!("listener `{}`", other.written.name))
                    .help("attach the policy to all of them, or to the Gateway");
                return;
            }
            ListenerProtocol::Tcp | ListenerProtocol::Tls | ListenerProtocol::Inbound => {
                // A policy of the whole Gateway may well mean its other listeners.
                if of_sections(policy) {
                    let name = &plan.written.name;
                    problems
                        .error(Rule::NoEffect, span, "the listener carries no HTTP")
                        .related(plan.written.protocol.span, format!("listener `{name}`"));
                }
            }
        }
    }
}

fn of_sections(policy: &Object<ListenerPolicySpec>) -> bool {
    policy.spec.target_refs.iter().all(|target| target.section_name.is_some())
}
