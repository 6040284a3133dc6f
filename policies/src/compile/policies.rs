//! What policies say for whom: the nearest that says something wins, field by field.

use std::{collections::HashMap, time::Duration};

use crate::{
    diagnostic::Rule,
    document::{
        Documents, Kind, Object,
        balancer::BalancerPolicySpec,
        listener::ListenerPolicySpec,
        own::{
            BreakerPolicySpec, ClassName, RetryOn, TargetRef, TenantSpec, TransferPolicySpec,
            TransferRetry,
        },
        read::invalid,
    },
    model::{Class, RetryCondition, RetryPolicy, TenantKey, Transfer},
    problem::{Problems, Span},
};

use super::{
    index::{Index, namespace_of},
    limits,
    listeners::{self, ListenerLevels},
    origin::{Origin, Origins},
    rules::PreparedRule,
    tries,
};

mod integrity;

/// What a policy is attached to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Target {
    kind: Kind,
    id: String,
    section: Option<String>,
}

type Attached<'d, S> = HashMap<Target, (&'d Object<S>, Span)>;

/// All policies by target.
pub(crate) struct Policies<'d> {
    transfer: Attached<'d, TransferPolicySpec>,
    balancer: Attached<'d, BalancerPolicySpec>,
    breaker: Attached<'d, BreakerPolicySpec>,
    listener: Attached<'d, ListenerPolicySpec>,
}

/// The terms of an exchange, and who said them.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub(crate) timeout: Option<Duration>,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) retry: RetryPolicy,
    pub(crate) transfer: Transfer,
    pub(crate) origins: Origins,
}

/// An exchange in which no byte moves for this long is ended, unless a policy says otherwise.
const DEFAULT_IDLE: Duration = Duration::from_secs(300);
/// The same for opaque connections, which may well rest between queries.
pub(crate) const DEFAULT_TCP_IDLE: Duration = Duration::from_secs(3600);

impl<'d> Policies<'d> {
    pub(crate) fn new(
        documents: &'d Documents,
        index: &Index<'_>,
        problems: &mut Problems,
    ) -> Self {
        let anywhere = [Kind::Service, Kind::HttpRoute, Kind::GrpcRoute, Kind::Gateway];
        let transfer = &documents.transfer_policies;
        let balancer = &documents.balancer_policies;
        let breaker = &documents.breaker_policies;
        let listener = &documents.listener_policies;
        listener.iter().for_each(|policy| listeners::check(policy, problems));
        for policy in transfer {
            check_transfer(policy, problems);
        }
        tries::check(transfer, problems);
        let attached = attach(transfer, |s| &s.target_refs, &anywhere, index, problems);
        for service in &documents.services {
            let policy = attached.get(&target(Kind::Service, &service.id(), None));
            if let Some((policy, _)) = policy {
                tries::check_choice(&policy.spec, &service.spec, problems);
            }
        }
        Self {
            transfer: attached,
            balancer: attach(balancer, |s| &s.target_refs, &[Kind::Service], index, problems),
            breaker: attach(breaker, |s| &s.target_refs, &[Kind::Service], index, problems),
            listener: attach(listener, |s| &s.target_refs, &[Kind::Gateway], index, problems),
        }
    }

    pub(crate) fn balancer(&self, service: &str) -> Option<&'d Object<BalancerPolicySpec>> {
        self.balancer.get(&target(Kind::Service, service, None)).map(|(policy, _)| *policy)
    }

    pub(crate) fn breaker(&self, service: &str) -> Option<&'d Object<BreakerPolicySpec>> {
        self.breaker.get(&target(Kind::Service, service, None)).map(|(policy, _)| *policy)
    }

    /// The policies of a listener of a Gateway.
    pub(crate) fn listener(&self, gateway: &str, name: &str) -> ListenerLevels<'d> {
        let targets = [Some(name), None].map(|section| target(Kind::Gateway, gateway, section));
        let attached = targets.iter().filter_map(|target| self.listener.get(target));
        ListenerLevels(attached.map(|(policy, _)| *policy).collect())
    }

    pub(crate) fn service_transfer(&self, service: &str) -> Option<&'d Object<TransferPolicySpec>> {
        self.transfer.get(&target(Kind::Service, service, None)).map(|(policy, _)| *policy)
    }

    /// The terms of a rule, on a listener of a Gateway or in the mesh. Of
    /// several backends with policies, the first that says something wins.
    pub(crate) fn terms(&self, rule: &PreparedRule<'_>, gateway: Option<(&str, &str)>) -> Terms {
        let mut targets = Vec::new();
        if let Some((kind, id)) = &rule.route {
            targets.push(target(*kind, id, rule.section.as_deref()));
            targets.push(target(*kind, id, None));
        }
        targets.extend(rule.services().map(|service| target(Kind::Service, service, None)));
        if let Some((id, listener)) = gateway {
            targets.push(target(Kind::Gateway, id, Some(listener)));
            targets.push(target(Kind::Gateway, id, None));
        }
        let levels = Levels(
            targets.iter().filter_map(|t| self.transfer.get(t).map(|(p, _)| (*p, t))).collect(),
        );
        levels.terms(rule)
    }

    /// Idle time of opaque connections to these services.
    pub(crate) fn tcp_idle(
        &self,
        services: &[&str],
        gateway: Option<(&str, &str)>,
    ) -> Option<Duration> {
        let mut targets: Vec<_> =
            services.iter().map(|service| target(Kind::Service, service, None)).collect();
        if let Some((id, listener)) = gateway {
            targets.push(target(Kind::Gateway, id, Some(listener)));
            targets.push(target(Kind::Gateway, id, None));
        }
        let said = targets.iter().filter_map(|t| self.transfer.get(t)).find_map(|(policy, _)| {
            policy.spec.timeouts.as_ref().and_then(|t| t.idle.as_ref()).map(|t| t.limit())
        });
        said.unwrap_or(Some(DEFAULT_TCP_IDLE))
    }
}

fn target(kind: Kind, id: &str, section: Option<&str>) -> Target {
    Target { kind, id: id.to_owned(), section: section.map(str::to_owned) }
}

fn attach<'d, S>(
    policies: &'d [Object<S>],
    targets: fn(&S) -> &[TargetRef],
    allowed: &[Kind],
    index: &Index<'_>,
    problems: &mut Problems,
) -> Attached<'d, S> {
    let mut attached: Attached<'d, S> = HashMap::new();
    for policy in policies {
        for reference in targets(&policy.spec) {
            let kind = Index::kind(
                reference.group.as_ref(),
                Some(&reference.kind),
                Kind::Service,
                allowed,
                problems,
            );
            let Some(kind) = kind else { continue };
            let namespace = namespace_of(reference.namespace.as_ref(), &policy.namespace);
            let Some(id) = index.follow(kind, namespace, &reference.name, problems) else {
                continue;
            };
            if let Some(section) = &reference.section_name {
                if kind == Kind::Service {
                    let message = "a Service has no sections";
                    invalid(section.span, message, "leave sectionName out", problems);
                    continue;
                }
                if !index.section(kind, &id, section, problems) {
                    continue;
                }
            }
            let key = target(kind, &id, reference.section_name.as_ref().map(|s| &***s));
            if let Some((_, first)) = attached.get(&key) {
                let message = format!("{} `{id}` has a policy of this kind already", kind.name());
                problems
                    .error(Rule::Duplicate, reference.name.span, message)
                    .related(*first, "attached here")
                    .help("merge the two policies into one");
                continue;
            }
            attached.insert(key, (policy, reference.name.span));
        }
    }
    attached
}

/// What is wrong with a policy by itself.
fn check_transfer(policy: &Object<TransferPolicySpec>, problems: &mut Problems) {
    let spec = &policy.spec;
    let on_service = spec.target_refs.iter().all(|t| t.kind.value == Kind::Service.name());
    if let Some(timeouts) = &spec.timeouts
        && let (Some(request), Some(per_try)) = (&timeouts.request, &timeouts.per_try)
        && request.limit().is_some_and(|limit| per_try.0 > limit)
    {
        problems
            .error(
                Rule::InvalidValue,
                per_try.span,
                "one try may not take longer than the whole request",
            )
            .related(request.span, "the whole request")
            .help("perTry must be at most request");
    }
    if let Some(retry) = &spec.retry {
        check_retry(retry, on_service, problems);
    }
    limits::check(spec, problems);
    if let Some(integrity) = &spec.integrity {
        integrity::check(integrity, problems);
    }
    if spec.timeouts.is_none()
        && spec.retry.is_none()
        && spec.resume.is_none()
        && spec.hedge.is_none()
        && spec.class.is_none()
        && spec.tenant.is_none()
        && spec.integrity.is_none()
        && spec.limits.is_none()
        && spec.max_request_bytes.is_none()
    {
        problems
            .warning(Rule::NoEffect, policy.span, "the policy says nothing")
            .help("give `class`, `tenant`, `limits`, `maxRequestBytes`, `timeouts`, `retry`, `resume`, `hedge` or `integrity`");
    }
}

fn check_retry(retry: &TransferRetry, on_service: bool, problems: &mut Problems) {
    let lists =
        |what| retry.conditions.as_ref().is_none_or(|on| on.iter().any(|o| o.value == what));
    if let Some(codes) = &retry.status_codes
        && !lists(RetryOn::Status)
    {
        problems
            .error(Rule::NoEffect, codes.span, "the codes are never used")
            .help("add `status` to `conditions`");
    }
    if let Some(codes) = &retry.grpc_status_codes
        && !lists(RetryOn::GrpcStatus)
    {
        problems
            .error(Rule::NoEffect, codes.span, "the codes are never used")
            .help("add `grpc-status` to `conditions`");
    }
    if let Some(backoff) = &retry.backoff
        && let (Some(base), Some(max)) = (&backoff.base, &backoff.max)
        && base.0 > max.0
    {
        problems
            .error(Rule::InvalidValue, max.span, "the longest pause is shorter than the first")
            .related(base.span, "the first");
    }
    if let (Some(mint), Some(with)) = (&retry.mint_idempotency_key, &retry.with_idempotency_key)
        && mint.value
        && !with.value
    {
        problems
            .error(Rule::NoEffect, mint.span, "a key is made that no retry heeds")
            .related(with.span, "requests with a key are not retried")
            .help("set `withIdempotencyKey: true`, or leave `mintIdempotencyKey` out");
    }
    if let (Some(disk), Some(attempts)) = (&retry.replay_disk_limit, &retry.attempts)
        && disk.0 > 0
        && ***attempts == 0
    {
        problems
            .error(Rule::NoEffect, disk.span, "bodies are kept for tries that are never made")
            .related(attempts.span, "no further try")
            .help("raise `attempts`, or leave `replayDiskLimit` out");
    }
    if let Some(budget) = &retry.budget
        && !on_service
    {
        problems
            .error(Rule::InvalidValue, budget.span, "a budget belongs to a Service")
            .help("put it into a TransferPolicy whose targetRefs are Services only");
    }
}

/// The policies that apply, nearest first.
struct Levels<'a>(Vec<(&'a Object<TransferPolicySpec>, &'a Target)>);

impl Levels<'_> {
    fn pick<T>(
        &self,
        field: impl Fn(&TransferPolicySpec) -> Option<(T, Span)>,
    ) -> Option<(T, Origin)> {
        self.0.iter().find_map(|(policy, target)| {
            let (value, span) = field(&policy.spec)?;
            let of =
                format!("TransferPolicy {} on {} {}", policy.id(), target.kind.name(), target.id);
            Some((value, Origin::Written(span, of)))
        })
    }

    fn retry<T>(&self, field: impl Fn(&TransferRetry) -> Option<(T, Span)>) -> Option<(T, Origin)> {
        self.pick(|spec| spec.retry.as_ref().and_then(&field))
    }

    fn terms(&self, rule: &PreparedRule<'_>) -> Terms {
        let inline = |span| Origin::Written(span, rule.described());
        let mut origins = Origins::new();
        let mut note = |field, origin: Option<Origin>| {
            origins.push((field, origin.unwrap_or(Origin::Default)));
        };
        let written = rule.timeouts.and_then(|t| t.request.as_ref());
        let timeout = written.map(|t| (t.limit(), inline(t.span))).or_else(|| {
            self.pick(|s| s.timeouts.as_ref()?.request.as_ref().map(|t| (t.limit(), t.span)))
        });
        let idle = self.pick(|s| s.timeouts.as_ref()?.idle.as_ref().map(|t| (t.limit(), t.span)));
        let (timeout, origin) = split(timeout);
        note("timeout", origin);
        let (idle, origin) = split(idle);
        note("idle timeout", origin);
        let retry = self.retry_policy(rule, &mut note);
        let transfer = self.transfer(&mut note);
        Terms {
            timeout: timeout.flatten(),
            idle_timeout: idle.unwrap_or(Some(DEFAULT_IDLE)),
            retry,
            transfer,
            origins,
        }
    }

    fn transfer(&self, note: &mut impl FnMut(&'static str, Option<Origin>)) -> Transfer {
        let class = self.pick(|s| s.class.as_ref().map(|c| (class(c.value), c.span)));
        let (class, origin) = split(class);
        note("class", origin);
        let tenant = self.pick(|s| s.tenant.as_ref().map(|t| (tenant(t), t.span)));
        let (tenant, origin) = split(tenant);
        note("tenant", origin);
        let integrity = integrity::terms(self, note);
        let stall = self.pick(|s| {
            let stall = s.timeouts.as_ref()?.stall.as_ref()?;
            Some((tries::stall(stall), stall.span))
        });
        let (stall, origin) = split(stall);
        note("stall timeout", origin);
        let hedge = self.pick(|s| s.hedge.as_ref().map(|h| (tries::hedge(h), h.span)));
        let (hedge, origin) = split(hedge);
        note("hedge", origin);
        let limits = self.pick(|s| s.limits.as_ref().map(|l| (limits::compile(l), l.span)));
        let (limits, origin) = split(limits);
        note("rate limits", origin);
        let body = self.pick(|s| s.max_request_bytes.as_ref().map(|b| (b.0, b.span)));
        let (max_request_bytes, origin) = split(body);
        if origin.is_some() {
            note("largest request body", origin);
        }
        let uploads = self.pick(|s| s.resume.as_ref()?.uploads.as_ref().map(|u| (u.value, u.span)));
        let (uploads, origin) = split(uploads);
        note("resume uploads", origin);
        Transfer {
            class: class.unwrap_or_default(),
            tenant,
            integrity,
            stall: stall.flatten(),
            hedge: hedge.flatten(),
            limits: limits.unwrap_or_default(),
            max_request_bytes,
            resume_uploads: uploads.unwrap_or_default(),
        }
    }

    fn retry_policy(
        &self,
        rule: &PreparedRule<'_>,
        note: &mut impl FnMut(&'static str, Option<Origin>),
    ) -> RetryPolicy {
        let default = RetryPolicy::default();
        let inline = |span| Origin::Written(span, rule.described());
        let written = rule.retry;

        let attempts = written.and_then(|r| r.attempts.as_ref());
        let attempts = attempts.map(|a| (***a, inline(a.span)));
        let attempts =
            attempts.or_else(|| self.retry(|r| r.attempts.as_ref().map(|a| (***a, a.span))));
        let (attempts, origin) = split(attempts);
        note("retry attempts", origin);

        let codes = written.filter(|r| !r.codes.is_empty());
        let on = codes.map(|r| (with_codes(&r.codes), inline(r.span)));
        let (on, origin) = split(on.or_else(|| self.conditions()));
        note("retry conditions", origin);

        let per_try = rule.timeouts.and_then(|t| t.backend_request.as_ref());
        let per_try = per_try.map(|t| (t.limit(), inline(t.span))).or_else(|| {
            self.pick(|s| s.timeouts.as_ref()?.per_try.as_ref().map(|t| (t.limit(), t.span)))
        });
        let (per_try, origin) = split(per_try);
        note("per-try timeout", origin);

        let base = written.and_then(|r| r.backoff.as_ref()).map(|b| (b.0, inline(b.span)));
        let base = base
            .or_else(|| self.retry(|r| r.backoff.as_ref()?.base.as_ref().map(|b| (b.0, b.span))));
        let (base, origin) = split(base);
        note("retry backoff", origin);
        let base = base.unwrap_or(default.backoff_base);
        let max = self.retry(|r| r.backoff.as_ref()?.max.as_ref().map(|b| (b.0, b.span)));
        let (max, origin) = split(max);
        note("longest backoff", origin);

        let replay = self.retry(|r| r.replay_limit.as_ref().map(|b| (b.0, b.span)));
        let (replay, origin) = split(replay);
        note("replay limit", origin);
        let disk = self.retry(|r| r.replay_disk_limit.as_ref().map(|b| (b.0, b.span)));
        let (disk, origin) = split(disk);
        note("replay disk limit", origin);
        let key = self.retry(|r| r.with_idempotency_key.as_ref().map(|b| (b.value, b.span)));
        let (key, origin) = split(key);
        note("with idempotency key", origin);
        let mint = self.retry(|r| r.mint_idempotency_key.as_ref().map(|b| (b.value, b.span)));
        let (mint, origin) = split(mint);
        note("mint idempotency key", origin);

        let downloads =
            self.pick(|s| s.resume.as_ref()?.downloads.as_ref().map(|d| (d.value, d.span)));
        let (downloads, origin) = split(downloads);
        note("resume downloads", origin);
        let attempts = attempts.unwrap_or(default.attempts);
        let on = on.unwrap_or(default.on);
        let by_default = RetryPolicy::resumes_by_default(attempts, &on);
        RetryPolicy {
            attempts,
            on,
            per_try_timeout: per_try.flatten(),
            backoff_base: base,
            backoff_max: max.unwrap_or_else(|| default.backoff_max.max(base * 10)).max(base),
            replay_limit_bytes: replay.unwrap_or(default.replay_limit_bytes),
            replay_disk_limit_bytes: disk.unwrap_or(default.replay_disk_limit_bytes),
            with_idempotency_key: key.unwrap_or(default.with_idempotency_key),
            mint_idempotency_key: mint.unwrap_or(default.mint_idempotency_key),
            resume_downloads: downloads.map_or(by_default, |told| told && attempts > 0),
        }
    }

    /// The failures to try again: from `conditions`, or the default ones and those whose codes are given.
    fn conditions(&self) -> Option<(Vec<RetryCondition>, Origin)> {
        let on = self.retry(|r| {
            r.conditions
                .as_ref()
                .map(|on| (on.iter().map(|o| o.value).collect::<Vec<_>>(), on.span))
        });
        let codes = self.retry(|r| {
            let codes = r.status_codes.as_ref()?;
            Some((codes.iter().map(|c| status(***c)).collect::<Vec<_>>(), codes.span))
        });
        let grpc = self.retry(|r| {
            let codes = r.grpc_status_codes.as_ref()?;
            Some((codes.iter().map(|c| ***c).collect::<Vec<u32>>(), codes.span))
        });
        let origin =
            [on.as_ref().map(|o| &o.1), codes.as_ref().map(|c| &c.1), grpc.as_ref().map(|g| &g.1)];
        let origin = origin.into_iter().flatten().next()?.clone();
        let on = on.map_or_else(
            || {
                let mut on = vec![RetryOn::ConnectFailure, RetryOn::RefusedStream, RetryOn::Reset];
                on.extend(codes.is_some().then_some(RetryOn::Status));
                on.extend(grpc.is_some().then_some(RetryOn::GrpcStatus));
                on
            },
            |(on, _)| on,
        );
        let mut conditions: Vec<RetryCondition> = Vec::new();
        for one in on {
            let condition = match one {
                RetryOn::ConnectFailure => RetryCondition::ConnectFailure,
                RetryOn::RefusedStream => RetryCondition::RefusedStream,
                RetryOn::Reset => RetryCondition::Reset,
                RetryOn::Timeout => RetryCondition::Timeout,
                RetryOn::Stall => RetryCondition::Stall,
                RetryOn::Status => RetryCondition::Status(
                    codes.as_ref().map_or_else(|| vec![502, 503, 504], |(codes, _)| codes.clone()),
                ),
                RetryOn::GrpcStatus => RetryCondition::GrpcStatus(
                    grpc.as_ref().map_or_else(|| vec![14], |(codes, _)| codes.clone()),
                ),
            };
            if !conditions.contains(&condition) {
                conditions.push(condition);
            }
        }
        Some((conditions, origin))
    }
}

fn class(written: ClassName) -> Class {
    match written {
        ClassName::Interactive => Class::Interactive,
        ClassName::Bulk => Class::Bulk,
        ClassName::Background => Class::Background,
    }
}

fn tenant(written: &TenantSpec) -> TenantKey {
    match &written.header {
        Some(header) => TenantKey::Header(header.to_ascii_lowercase()),
        None => TenantKey::ClientAddress,
    }
}

/// The Gateway API also retries what could not be sent at all.
fn with_codes(
    codes: &[crate::problem::At<crate::document::value::Whole<400, 599>>],
) -> Vec<RetryCondition> {
    vec![
        RetryCondition::ConnectFailure,
        RetryCondition::RefusedStream,
        RetryCondition::Reset,
        RetryCondition::Status(codes.iter().map(|c| status(***c)).collect()),
    ]
}

fn status(code: u32) -> u16 {
    u16::try_from(code).unwrap_or(500)
}

fn split<T>(picked: Option<(T, Origin)>) -> (Option<T>, Option<Origin>) {
    match picked {
        Some((value, origin)) => (Some(value), Some(origin)),
        None => (None, None),
    }
}
