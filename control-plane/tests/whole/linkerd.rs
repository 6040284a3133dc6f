//! A client of Linkerd's proxy API.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use tokio::time::timeout;
use tonic::{Code, Streaming, transport::Channel};
use towpath_control_plane::{Config, Outcome, Resolver, Running, start};
use towpath_linkerd::{
    Server,
    api::{
        destination::{
            DestinationProfile, GetDestination, Update, destination_client::DestinationClient,
            update,
        },
        outbound::{
            OutboundPolicy, TrafficSpec, outbound_policies_client::OutboundPoliciesClient,
            proxy_protocol, traffic_spec,
        },
    },
};

use crate::{serving::http, support::*};

/// Nothing on loopback takes this long, unless it is broken.
const PATIENCE: Duration = Duration::from_secs(30);

async fn serving(text: &str) -> (Repository, Running) {
    let repository = Repository::new();
    repository.commit_policies(text);
    let running = start(with_linkerd(&repository)).await.unwrap();
    (repository, running)
}

fn with_linkerd(repository: &Repository) -> Config {
    let source = spec(repository.path().to_str().unwrap());
    Config { linkerd: Some(SocketAddr::from(([127, 0, 0, 1], 0))), ..config(source) }
}

async fn channel(running: &Running) -> Channel {
    let url = format!("http://{}", running.linkerd_addr.unwrap());
    Channel::from_shared(url).unwrap().connect().await.unwrap()
}

fn path(path: &str) -> GetDestination {
    GetDestination { path: path.to_owned(), ..GetDestination::default() }
}

fn authority(authority: &str) -> TrafficSpec {
    let target = Some(traffic_spec::Target::Authority(authority.to_owned()));
    TrafficSpec { source_workload: "default:web-1".to_owned(), target }
}

fn address(address: &str) -> TrafficSpec {
    let address: SocketAddr = address.parse().unwrap();
    let target = Some(traffic_spec::Target::Addr(address.into()));
    TrafficSpec { target, ..TrafficSpec::default() }
}

async fn next<T>(stream: &mut Streaming<T>) -> T {
    timeout(PATIENCE, stream.message()).await.expect("a message comes").unwrap().unwrap()
}

/// What an update says, in short.
fn say(update: Update) -> String {
    let address = |address| SocketAddr::try_from(address).unwrap().to_string();
    match update.update.unwrap() {
        update::Update::Add(set) => {
            let add: Vec<_> = set.addrs.into_iter().map(|a| address(a.addr.unwrap())).collect();
            format!("add {}", add.join(" "))
        }
        update::Update::Remove(set) => {
            let remove: Vec<_> = set.addrs.into_iter().map(address).collect();
            format!("remove {}", remove.join(" "))
        }
        update::Update::NoEndpoints(none) => format!("none, exists={}", none.exists),
    }
}

async fn refresh(repository: &Repository, running: &Running, text: &str) {
    repository.commit_policies(text);
    // Unchanged where it was noticed before it was asked for.
    let outcome = running.refresh().await.outcome;
    assert!(matches!(outcome, Outcome::Applied | Outcome::Unchanged), "{outcome:?}");
}

#[tokio::test]
async fn commits_reach_who_asked_for_endpoints() {
    let (repository, running) = serving(&policies(9000)).await;
    let mut client = DestinationClient::new(channel(&running).await);
    let mut get = async |name| client.get(path(name)).await.unwrap().into_inner();
    let mut etl = get("etl.default.svc.cluster.local:8080").await;
    let mut later = get("later.default.svc.cluster.local:8080").await;
    assert_eq!(say(next(&mut etl).await), "add 127.0.0.1:9000");
    assert_eq!(say(next(&mut later).await), "none, exists=false");

    refresh(&repository, &running, &policies(9001)).await;
    assert_eq!(say(next(&mut etl).await), "add 127.0.0.1:9001");
    assert_eq!(say(next(&mut etl).await), "remove 127.0.0.1:9000");

    let both = format!("{}---{}", policies(9001), policies(9002).split("---").last().unwrap())
        .replace(
            "name: etl}\nspec:\n  endpoints:\n  - {address: \"127.0.0.1:9002",
            "name: later}\nspec:\n  endpoints:\n  - {address: \"127.0.0.1:9002",
        );
    refresh(&repository, &running, &both).await;
    assert_eq!(say(next(&mut later).await), "add 127.0.0.1:9002");

    refresh(&repository, &running, &policies(9003)).await;
    assert_eq!(say(next(&mut later).await), "none, exists=false");
    assert_eq!(say(next(&mut etl).await), "add 127.0.0.1:9003");
    assert_eq!(say(next(&mut etl).await), "remove 127.0.0.1:9001");

    // A commit that is no good reaches nobody.
    repository.commit_policies(&broken_policies());
    running.nudge();
    when(&running, |status| status.rejected.is_some()).await;
    refresh(&repository, &running, &policies(9004)).await;
    assert_eq!(say(next(&mut etl).await), "add 127.0.0.1:9004");

    running.shutdown().await;
    assert_eq!(say(next(&mut etl).await), "remove 127.0.0.1:9003");
    assert_eq!(etl.message().await.unwrap_err().code(), Code::Unavailable);
}

fn first_route(policy: &OutboundPolicy) -> BTreeMap<&'static str, String> {
    let Some(proxy_protocol::Kind::Detect(detect)) =
        policy.protocol.as_ref().unwrap().kind.as_ref()
    else {
        panic!("{policy:?}")
    };
    let rule = &detect.http1.as_ref().unwrap().routes[0].rules[0];
    let timeout = rule.timeouts.unwrap().request.map(|time| time.seconds.to_string());
    BTreeMap::from([
        ("timeout", timeout.unwrap_or_default()),
        ("backends", format!("{:?}", rule.backends)),
    ])
}

#[tokio::test]
async fn policies_follow_commits_and_nothing_else() {
    let (repository, running) = serving(&policies(9000)).await;
    let channel = channel(&running).await;
    let mut client = OutboundPoliciesClient::new(channel.clone());
    let mut watch = client.watch(authority("etl.default:8080")).await.unwrap().into_inner();
    let first = next(&mut watch).await;
    assert!(first_route(&first)["backends"].contains("etl.default.svc.cluster.local:8080"));
    assert_eq!(client.get(authority("etl.default:8080")).await.unwrap().into_inner(), first);

    // Other endpoints are no other policy: the next message is that of the commit after it.
    refresh(&repository, &running, &policies(9001)).await;
    let timeouts = "---
apiVersion: towpath.dev/v1alpha1
kind: TransferPolicy
metadata: {name: etl}
spec: {targetRefs: [{kind: Service, name: etl}], timeouts: {request: 7s}}
";
    refresh(&repository, &running, &format!("{}{timeouts}", policies(9001))).await;
    assert_eq!(first_route(&next(&mut watch).await)["timeout"], "7");

    // The address of an endpoint is asked for by whoever was going there.
    let pinned = client.get(address("127.0.0.1:9001")).await.unwrap().into_inner();
    assert!(first_route(&pinned)["backends"].contains("Forward"), "{pinned:?}");
    let mut destination = DestinationClient::new(channel);
    let profile = destination.get_profile(path("127.0.0.1:9001")).await.unwrap();
    let profile: DestinationProfile = next(&mut profile.into_inner()).await;
    assert!(profile.endpoint.is_some() && !profile.opaque_protocol);
    let name = destination.get_profile(path("etl:80")).await.unwrap();
    let name = next(&mut name.into_inner()).await.fully_qualified_name;
    assert_eq!(name, "etl.default.svc.cluster.local");

    // The service goes, and its policy with it.
    let other = policies(9001).replace("name: etl}", "name: other}");
    refresh(&repository, &running, &other).await;
    let gone = timeout(PATIENCE, watch.message()).await.unwrap().unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
}

#[tokio::test]
async fn strangers_and_nonsense_are_told_apart() {
    let (_repository, running) = serving(&policies(9000)).await;
    let channel = channel(&running).await;
    let mut client = OutboundPoliciesClient::new(channel.clone());
    for (spec, code) in [
        (authority("nobody.default:80"), Code::NotFound),
        (address("192.0.2.1:80"), Code::NotFound),
        (authority("etl:0"), Code::InvalidArgument),
        (authority("etl/../x"), Code::InvalidArgument),
        (authority(&"a".repeat(10_000)), Code::InvalidArgument),
        (address("127.0.0.1:0"), Code::InvalidArgument),
        (TrafficSpec::default(), Code::InvalidArgument),
    ] {
        assert_eq!(client.get(spec.clone()).await.unwrap_err().code(), code, "{spec:?}");
        assert_eq!(client.watch(spec.clone()).await.unwrap_err().code(), code, "{spec:?}");
    }
    let mut client = DestinationClient::new(channel);
    for text in ["", "etl:", ":80", "etl:80:80", "-?-", &"a.".repeat(5_000)] {
        assert_eq!(
            client.get(path(text)).await.unwrap_err().code(),
            Code::InvalidArgument,
            "{text}"
        );
        let profile = client.get_profile(path(text)).await.unwrap_err();
        assert_eq!(profile.code(), Code::InvalidArgument, "{text}");
    }
    // More than a question can be.
    let large = GetDestination { context_token: "x".repeat(1 << 20), ..path("etl") };
    assert!(client.get(large).await.is_err());
    let mut stranger = client.get_profile(path("nobody:80")).await.unwrap().into_inner();
    assert_eq!(next(&mut stranger).await, DestinationProfile::default());
}

#[tokio::test]
async fn clients_that_come_before_the_first_policies_wait_for_them() {
    let repository = Repository::new();
    let running = start(with_linkerd(&repository)).await.unwrap();
    let channel = channel(&running).await;
    let mut client = OutboundPoliciesClient::new(channel.clone());
    let early = client.get(authority("etl")).await.unwrap_err();
    assert_eq!(early.code(), Code::Unavailable);
    let mut destination = DestinationClient::new(channel);
    let asked = tokio::spawn(async move { destination.get(path("etl")).await });
    refresh(&repository, &running, &policies(9000)).await;
    let mut stream = timeout(PATIENCE, asked).await.unwrap().unwrap().unwrap().into_inner();
    assert_eq!(say(next(&mut stream).await), "add 127.0.0.1:9000");
}

#[tokio::test]
async fn names_are_waited_for_as_by_other_proxies() {
    let text = policies(9000).replace(
        "endpoints:\n  - {address: \"127.0.0.1:9000\"}",
        "dns: {host: etl.internal, port: 9000, refresh: 1h}",
    );
    let folder = folder_of(&[("a.yaml", &text)]);
    let mut config = config(spec(folder.path().to_str().unwrap()));
    config.linkerd = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    config.resolver =
        Resolver::new(|_, port| async move { Ok(vec![SocketAddr::from(([10, 0, 0, 1], port))]) });
    let running = start(config).await.unwrap();
    let mut client = DestinationClient::new(channel(&running).await);
    let mut etl = client.get(path("etl")).await.unwrap().into_inner();
    assert_eq!(say(next(&mut etl).await), "add 10.0.0.1:9000");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_many_and_bounded() {
    let (repository, running) = serving(&policies(9000)).await;
    let mut held = Vec::new();
    // A connection has only so many: the rest is not refused but waits for its turn.
    let mut client = DestinationClient::new(channel(&running).await);
    for _ in 0..Server::MOST_STREAMS_OF_ONE {
        held.push(client.get(path("etl:80")).await.unwrap().into_inner());
    }
    let mut waiting = client.clone();
    let waiting = tokio::spawn(async move { waiting.get(path("etl:80")).await });
    for stream in &mut held {
        assert_eq!(say(next(stream).await), "add 127.0.0.1:9000");
    }
    refresh(&repository, &running, &policies(9001)).await;
    for stream in &mut held {
        assert_eq!(say(next(stream).await), "add 127.0.0.1:9001");
    }
    assert!(!waiting.is_finished());
    let (_, metrics) = http(running.admin_addr, "GET", "/metrics", "localhost").await;
    let streams = format!("linkerd_streams {}", Server::MOST_STREAMS_OF_ONE);
    assert!(metrics.contains(&streams), "{metrics}");
    held.clear();
    assert!(timeout(PATIENCE, waiting).await.unwrap().unwrap().is_ok());
}
