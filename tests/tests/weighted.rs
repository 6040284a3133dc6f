//! Turns by what endpoints report that they can do, taken by others: a real Envoy and a real gRPC
//! client under our control plane, and our proxy under an xDS server that is not ours.

use std::net::{Ipv4Addr, SocketAddr};

use towpath_tests::{
    Origin, Peer, Repository, eventually, free_port, get, listener_port, policies, tool,
};
use towpath_xds::orca::LoadReport;

mod common;
use common::{control_plane, proxy_by_xds, proxy_called};

const WEIGHTED: &str = "---
apiVersion: towpath.dev/v1alpha1
kind: BalancerPolicy
metadata: {name: origin}
spec:
  targetRefs: [{kind: Service, name: origin}]
  policy: WeightedRoundRobin
  weighing: {blackout: 0s, updatePeriod: 100ms}
";
const OUT_OF_BAND: &str = "  loadReports: {outOfBand: 1s}\n";

/// Requests of one round.
const ROUND: u32 = 70;
/// Rounds until new reports must count.
const PATIENCE: usize = 300;
/// That they do is seen by one round, in which a share may differ by so much of all.
const ROUGHLY: f64 = 0.05;
/// Rounds that are counted then, and how much closer to what is expected they are together.
const COUNTED: usize = 10;
const BOUND: f64 = 0.01;

/// How an endpoint makes known that it is so busy and has so many errors a second.
type Tell = fn(&Origin, utilization: f64, errors: f64);

#[tokio::test(flavor = "multi_thread")]
async fn envoy_takes_turns_by_the_reports() {
    envoy_follows(WEIGHTED, |origin, utilization, errors| {
        origin.reports_to_all(&report(utilization, errors));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_takes_turns_by_reports_out_of_band() {
    envoy_follows(&format!("{WEIGHTED}{OUT_OF_BAND}"), |origin, utilization, errors| {
        origin.reports_out_of_band(report(utilization, errors));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grpc_client_takes_turns_by_the_reports() {
    grpc_follows(WEIGHTED, |origin, utilization, errors| {
        origin.reports_to_all(&report(utilization, errors));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grpc_client_takes_turns_by_reports_out_of_band() {
    grpc_follows(&format!("{WEIGHTED}{OUT_OF_BAND}"), |origin, utilization, errors| {
        origin.reports_out_of_band(report(utilization, errors));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn our_proxy_takes_turns_by_the_reports_when_go_control_plane_says_so() {
    let origins = origins().await;
    let port = free_port();
    let mut server = Peer::start(&tool("foreign-xds"), &[&port.to_string(), "weighted"], &[]);
    let xds = server.line().await.trim_start_matches("ready ").to_owned();
    server.say(&origins.each_ref().map(|o| o.address.port().to_string()).join(" ")).await;
    let _proxy = proxy_by_xds(&xds).await;
    let ask = |origin: &Origin, utilization, errors| {
        origin.reports(&format!(
            "application_utilization={utilization}, rps_fractional=100, eps={errors}"
        ));
    };
    follows(&origins, ask, round_through(port).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_takes_turns_by_what_our_sidecars_stream() {
    let port = listener_port();
    let sidecars = Sidecars::start(port).await;
    let _envoy = Peer::envoy(sidecars.plane.xds_addr, "DELTA_GRPC");
    sidecars.are_followed(round_through(port).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grpc_client_takes_turns_by_what_our_sidecars_stream() {
    let sidecars = Sidecars::start(listener_port()).await;
    let mut client = Peer::grpc_client(sidecars.plane.xds_addr, "origin", ROUND);
    client.served().await;
    let round = async || {
        client.say("again").await;
        client.served().await;
    };
    sidecars.are_followed(round).await;
}

/// Two endpoints behind sidecars of ours, of which one has eight times the slots of the other.
struct Sidecars {
    origins: [Origin; 2],
    plane: towpath_control_plane::Running,
    _repository: Repository,
    _sidecars: [towpath_proxy::Running; 2],
}

impl Sidecars {
    async fn start(port: u16) -> Self {
        let origins = [Origin::start("small").await, Origin::start("large").await];
        let mut text = policies(port, "HTTP2", &[]);
        for (origin, (node, slots)) in origins.iter().zip([("small", 1), ("large", 8)]) {
            let (at, app) = (listener_port(), origin.address);
            let sidecar = format!("sidecar: {{node: {node}, app: \"{app}\"}}");
            let place = format!("address: \"127.0.0.1:{at}\", slots: {slots}");
            text += &format!("  - {{name: {node}, {place}, {sidecar}}}\n");
        }
        let repository = Repository::new();
        repository.commit("mesh.yaml", &format!("{text}{WEIGHTED}{OUT_OF_BAND}"));
        let plane = control_plane(&repository).await;
        let address = plane.xds_addr.to_string();
        let sidecars =
            [proxy_called("small", &address).await, proxy_called("large", &address).await];
        for sidecar in &sidecars {
            sidecar.ready().await;
        }
        Self { origins, plane, _repository: repository, _sidecars: sidecars }
    }

    /// Requests take about the same time at both, so that the large one can do about eight times as many.
    async fn are_followed(&self, mut round: impl AsyncFnMut()) {
        let mut share = 0.0;
        for _ in 0..PATIENCE {
            let before = self.origins.each_ref().map(Origin::served);
            round().await;
            let [small, large] = [0, 1].map(|n: usize| self.origins[n].served() - before[n]);
            share = large as f64 / (small + large) as f64;
            if share > 0.75 {
                return;
            }
        }
        panic!("the large one gets {share:.3} after {PATIENCE} rounds");
    }
}

async fn envoy_follows(balancer: &str, tell: Tell) {
    let origins = origins().await;
    let (port, repository) = (listener_port(), Repository::new());
    let all = origins.each_ref().map(|o| o.address);
    repository.commit("mesh.yaml", &format!("{}{balancer}", policies(port, "HTTP2", &all)));
    let plane = control_plane(&repository).await;
    let _envoy = Peer::envoy(plane.xds_addr, "DELTA_GRPC");
    follows(&origins, tell, round_through(port).await).await;
}

async fn grpc_follows(balancer: &str, tell: Tell) {
    let origins = origins().await;
    let repository = Repository::new();
    let all = origins.each_ref().map(|o| o.address);
    let text = policies(listener_port(), "HTTP2", &all);
    repository.commit("mesh.yaml", &format!("{text}{balancer}"));
    let plane = control_plane(&repository).await;
    let mut client = Peer::grpc_client(plane.xds_addr, "origin", ROUND);
    client.served().await;
    let round = async || {
        client.say("again").await;
        client.served().await;
    };
    follows(&origins, tell, round).await;
}

async fn origins() -> [Origin; 3] {
    [Origin::start("first").await, Origin::start("second").await, Origin::start("third").await]
}

fn report(utilization: f64, errors: f64) -> LoadReport {
    LoadReport {
        application_utilization: utilization,
        rps_fractional: 100.0,
        eps: errors,
        ..LoadReport::default()
    }
}

/// Makes a round of requests through a listener, once it serves.
async fn round_through(port: u16) -> impl AsyncFnMut() {
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let ask = move || async move { get(at, "/", "any").await.filter(|(code, _)| *code == 200) };
    eventually("the listener serves", ask).await;
    async move || {
        for _ in 0..ROUND {
            assert!(ask().await.is_some(), "a request fails");
        }
    }
}

/// Of three that do as much with utilizations of 1 : 2 : 4, each gets its share; and errors count as
/// utilization.
async fn follows(
    origins: &[Origin; 3],
    tell: impl Fn(&Origin, f64, f64),
    mut round: impl AsyncFnMut(),
) {
    for (errors_of_first, expected) in
        [(0.0, [4.0, 2.0, 1.0]), (10.0, [2.0, 2.0, 1.0]), (0.0, [4.0, 2.0, 1.0])]
    {
        for (origin, utilization, errors) in
            [(0, 0.1, errors_of_first), (1, 0.2, 0.0), (2, 0.4, 0.0)]
        {
            tell(&origins[origin], utilization, errors);
        }
        let expected = expected.map(|part| part / expected.iter().sum::<f64>());
        let near = |shares: &[f64; 3], bound| {
            shares.iter().zip(expected).all(|(share, expected)| (share - expected).abs() <= bound)
        };
        let mut shares = [0.0; 3];
        for _ in 0..PATIENCE {
            shares = shares_of(origins, 1, &mut round).await;
            if near(&shares, ROUGHLY) {
                break;
            }
        }
        assert!(
            near(&shares, ROUGHLY),
            "{shares:.3?}, not {expected:.3?}, after {PATIENCE} rounds"
        );
        let shares = shares_of(origins, COUNTED, &mut round).await;
        assert!(near(&shares, BOUND), "{shares:.3?}, not {expected:.3?}");
    }
}

async fn shares_of(
    origins: &[Origin; 3],
    rounds: usize,
    round: &mut impl AsyncFnMut(),
) -> [f64; 3] {
    let before = origins.each_ref().map(Origin::served);
    for _ in 0..rounds {
        round().await;
    }
    let served = [0, 1, 2].map(|n: usize| (origins[n].served() - before[n]) as f64);
    served.map(|count| count / served.iter().sum::<f64>())
}
