use linkerd2_proxy_api::destination::update;
use tonic::Code;
use towpath_policies::model::{Endpoint, Protocol, Service};

use super::*;

/// A service with an endpoint at each of these ports.
fn snapshot(ports: &[u16]) -> Arc<Snapshot> {
    let mut snapshot = Snapshot { version: "1".to_owned(), ..Snapshot::default() };
    let endpoints = ports.iter().map(|port| Endpoint::new(([10, 0, 0, 1], *port).into()));
    let set = EndpointSet::new("db".to_owned(), endpoints.collect());
    snapshot.services.insert("db".to_owned(), Arc::new(Service::new("db", Protocol::Tcp)));
    snapshot.endpoints.insert("db".to_owned(), Arc::new(set));
    Arc::new(snapshot)
}

fn serving(ports: &[u16], most: usize) -> (watch::Sender<Arc<Snapshot>>, Server) {
    let (snapshots, received) = watch::channel(snapshot(ports));
    let server = Server::bounded(received, most);
    let following = server.shared.clone();
    tokio::spawn(async move { following.follow().await });
    (snapshots, server)
}

async fn get(server: &Server) -> Result<Outbound<Update>, Status> {
    let asked = GetDestination { path: "db:80".to_owned(), ..Default::default() };
    Destination::get(server, Request::new(asked)).await.map(Response::into_inner)
}

async fn ports(stream: &mut Outbound<Update>) -> Vec<u32> {
    match stream.next().await.unwrap().unwrap().update.unwrap() {
        update::Update::Add(set) => set.addrs.iter().map(|a| a.addr.unwrap().port).collect(),
        update::Update::Remove(set) => set.addrs.iter().map(|a| a.port).collect(),
        update::Update::NoEndpoints(none) => panic!("{none:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn streams_of_all_clients_are_bounded_and_an_ended_one_makes_room() {
    let (_snapshots, server) = serving(&[1], 2);
    let (first, second) = (get(&server).await.unwrap(), get(&server).await.unwrap());
    let refused = get(&server).await.err().unwrap();
    assert_eq!((refused.code(), server.streams()), (Code::ResourceExhausted, 2));
    drop(first);
    assert!(get(&server).await.is_ok());
    // What is refused at once holds nothing.
    let asked = TrafficSpec {
        target: Some(traffic_spec::Target::Authority("nobody".to_owned())),
        ..Default::default()
    };
    assert!(server.watch(Request::new(asked)).await.is_err());
    drop(second);
    assert_eq!(server.streams(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_slow_stream_gets_the_newest_only() {
    let (snapshots, server) = serving(&[1], 1);
    let mut stream = get(&server).await.unwrap();
    assert_eq!(ports(&mut stream).await, [1]);
    for port in 2..100 {
        snapshots.send_replace(snapshot(&[port]));
        tokio::task::yield_now().await;
    }
    // The last one is taken over by the server in its own time.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((ports(&mut stream).await, ports(&mut stream).await), (vec![99], vec![1]));
}

#[tokio::test(start_paused = true)]
async fn what_did_not_change_is_not_told_again() {
    let (snapshots, server) = serving(&[1], 3);
    let mut listing = get(&server).await.unwrap();
    assert_eq!(ports(&mut listing).await, [1]);
    let asked = || GetDestination { path: "db:80".to_owned(), ..Default::default() };
    let mut profile = server.get_profile(Request::new(asked())).await.unwrap().into_inner();
    assert!(profile.next().await.unwrap().unwrap().opaque_protocol);
    let spec = TrafficSpec {
        target: Some(traffic_spec::Target::Authority("db".to_owned())),
        ..Default::default()
    };
    let mut policy = server.watch(Request::new(spec)).await.unwrap().into_inner();
    assert!(policy.next().await.unwrap().is_ok());
    // Equal, and not the same objects.
    snapshots.send_replace(snapshot(&[1]));
    let quiet = Duration::from_secs(60);
    assert!(tokio::time::timeout(quiet, listing.next()).await.is_err());
    assert!(tokio::time::timeout(quiet, profile.next()).await.is_err());
    assert!(tokio::time::timeout(quiet, policy.next()).await.is_err());
}
