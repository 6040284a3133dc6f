//! Active health checks: every endpoint of a service that asks for them is
//! probed over its real protocol, and left out while its probes fail.
//!
//! The verdict is a pure state machine ([`Judge`]); a task per endpoint asks
//! the questions and writes the answer where picks read it.

mod probe;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
    sync::{Arc, Weak, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::task::AbortHandle;
use towpath_policies::model::HealthCheck;

use crate::{
    metrics::registry,
    upstream::{EndpointState, ServiceLive, ServiceState, now_ms},
};
use probe::Verdict;

/// Decides from answers in a row whether an endpoint is healthy.
#[derive(Debug)]
pub struct Judge {
    healthy: bool,
    /// Answers in a row that contradict `healthy`.
    against: u32,
}

impl Judge {
    /// Starts from what is held of the endpoint now.
    pub fn new(healthy: bool) -> Self {
        Self { healthy, against: 0 }
    }

    /// Takes an answer; tells the new verdict when it changes.
    pub fn handle(&mut self, passed: bool, terms: &HealthCheck) -> Option<bool> {
        if passed == self.healthy {
            self.against = 0;
            return None;
        }
        self.against += 1;
        let needed = if self.healthy { terms.unhealthy_threshold } else { terms.healthy_threshold };
        if self.against < needed {
            return None;
        }
        self.against = 0;
        self.healthy = passed;
        Some(passed)
    }
}

/// The probes that run, by service and address.
#[derive(Debug, Default)]
pub(crate) struct Probes {
    running: HashMap<(String, SocketAddr), Running>,
}

#[derive(Debug)]
struct Running {
    terms: HealthCheck,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Probes {
    /// Starts and stops probes so that they are those the services ask for.
    pub(crate) fn reconcile(&mut self, services: &BTreeMap<String, Arc<ServiceState>>) {
        let probed = services.iter().filter(|(_, service)| service.spec.health_check.is_some());
        let known: HashSet<(&str, SocketAddr)> = probed
            .flat_map(|(name, service)| {
                service.endpoints.iter().map(|e| (name.as_str(), e.spec.address))
            })
            .collect();
        self.running.retain(|(name, address), running| {
            let terms = services.get(name).and_then(|service| service.spec.health_check.as_ref());
            terms == Some(&running.terms) && known.contains(&(name, *address))
        });
        for (name, service) in services {
            for endpoint in &service.endpoints {
                let Some(terms) = &service.spec.health_check else {
                    endpoint.live.probe_healthy.store(true, Relaxed);
                    continue;
                };
                self.running.entry((name.clone(), endpoint.spec.address)).or_insert_with(|| {
                    let watching =
                        watch(Arc::downgrade(&service.live), endpoint.spec.address, terms.clone());
                    Running { terms: terms.clone(), task: tokio::spawn(watching).abort_handle() }
                });
            }
        }
    }
}

/// Probes one address for as long as its service has it.
async fn watch(service: Weak<ServiceLive>, address: SocketAddr, terms: HealthCheck) {
    let mut judge = None;
    tokio::time::sleep(first_delay(terms.interval)).await;
    loop {
        let Some(state) = service.upgrade().and_then(|live| live.current.load_full()) else {
            return;
        };
        let Some(endpoint) = state.endpoints.iter().find(|e| e.spec.address == address) else {
            return;
        };
        let judge =
            judge.get_or_insert_with(|| Judge::new(endpoint.live.probe_healthy.load(Relaxed)));
        let verdict = probe::ask(&state, endpoint, &terms).await;
        note(&state, endpoint, &verdict);
        let changed = match &verdict {
            Verdict::Passed => judge.handle(true, &terms),
            Verdict::Failed(_) => judge.handle(false, &terms),
            Verdict::Unknown => None,
        };
        if let Some(healthy) = changed {
            if healthy {
                endpoint.live.warm_from_ms.fetch_max(now_ms(), Relaxed);
                state.live.recovering.store(true, Relaxed);
            }
            endpoint.live.probe_healthy.store(healthy, Relaxed);
            tell(&state, endpoint, healthy, &verdict);
        }
        drop(state);
        tokio::time::sleep(jittered(terms.interval)).await;
    }
}

fn note(service: &ServiceState, endpoint: &EndpointState, verdict: &Verdict) {
    let result = match verdict {
        Verdict::Passed => "passed",
        Verdict::Failed(_) => "failed",
        Verdict::Unknown => "skipped",
    };
    let labels =
        [("service", &*service.spec.name), ("endpoint", &*endpoint.spec.name), ("result", result)];
    registry().counter("towpath_health_probes_total", &labels).inc();
}

fn tell(service: &ServiceState, endpoint: &EndpointState, healthy: bool, verdict: &Verdict) {
    let (service, endpoint) = (&service.spec.name, &endpoint.spec.name);
    match verdict {
        Verdict::Failed(reason) => {
            tracing::warn!(service, endpoint, reason, "endpoint is unhealthy");
        }
        _ => tracing::info!(service, endpoint, healthy, "endpoint is healthy again"),
    }
}

/// Many proxies must not probe in step.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(0.9 + 0.2 * fastrand::f64())
}

fn first_delay(interval: Duration) -> Duration {
    interval.min(Duration::from_millis(250)).mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use towpath_policies::model::HealthProbe;

    #[test]
    fn answers_in_a_row_decide_and_one_that_contradicts_starts_over() {
        let terms = HealthCheck {
            probe: HealthProbe::Tcp,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            unhealthy_threshold: 3,
            healthy_threshold: 2,
        };
        for (start, answers, expected) in [
            (true, "ffPff", "....."),
            (true, "fff", "..-"),
            (true, "ffff", "..-."),
            (true, "fffPfPP", "..-...+"),
            (false, "PP", ".+"),
            (false, "PfPf", "...."),
            (true, "PPP", "..."),
        ] {
            let mut judge = Judge::new(start);
            let told: String = answers
                .chars()
                .map(|answer| match judge.handle(answer == 'P', &terms) {
                    None => '.',
                    Some(true) => '+',
                    Some(false) => '-',
                })
                .collect();
            assert_eq!(told, expected, "{start} {answers}");
        }
    }
}
