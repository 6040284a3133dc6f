//! Arrow Flight (gRPC, by pyarrow) through a gateway and a sidecar, both ways.
//!
//! The proxies run in this process. 1 GiB each way where this is a release build, 256 MiB where it
//! is not, or as many MiB as `TOWPATH_FLIGHT_MIB` says.

use towpath_tests::{Peer, Proxy, tool};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/flight.py");
/// Bytes of a row.
const ROW: u64 = 64;

/// A Flight server, two proxies before it, and a client that knows only the first.
struct Way {
    client: Peer,
    _server: Peer,
    _proxies: [Proxy; 2],
}

impl Way {
    async fn start() -> Self {
        let python = tool("flight/bin/python");
        let mut server = Peer::start(&python, &[SCRIPT, "serve"], &[]);
        let port: u16 = server.line().await.parse().expect("a port");
        let sidecar = Proxy::before("HTTP2", &[([127, 0, 0, 1], port).into()]).await;
        let gateway = Proxy::before("HTTP2", &[sidecar.address]).await;
        let location = format!("grpc+tcp://{}", gateway.address);
        let client = Peer::start(&python, &[SCRIPT, "client", &location], &[]);
        Self { client, _server: server, _proxies: [gateway, sidecar] }
    }

    /// Moves so many rows, and holds what one side counted against the other.
    async fn moves(&mut self, what: &str, rows: u64, per_batch: u64) {
        self.client.say(&format!("{what} {rows} {per_batch}")).await;
        let line = self.client.line_within(std::time::Duration::from_secs(600)).await;
        let words: Vec<_> = line.split(' ').collect();
        let [mine, my_sum, theirs, their_sum] = words[..] else { panic!("{what}: {line}") };
        assert_eq!((mine, theirs), (&*rows.to_string(), &*rows.to_string()), "{what}: rows");
        assert_eq!(my_sum, their_sum, "{what}: what came is what was sent");
    }
}

#[tokio::test]
async fn arrow_flight_moves_a_table_both_ways_whole() {
    let default = if cfg!(debug_assertions) { 256 } else { 1024 };
    let mebibytes = std::env::var("TOWPATH_FLIGHT_MIB");
    let mebibytes: u64 = mebibytes.map_or(default, |text| text.parse().expect("a number"));
    let mut way = Way::start().await;
    for what in ["get", "put"] {
        way.moves(what, (mebibytes << 20) / ROW, 16_384).await;
    }
}

#[tokio::test]
async fn arrow_flight_moves_two_hundred_thousand_small_messages_both_ways() {
    let mut way = Way::start().await;
    for what in ["get", "put"] {
        way.moves(what, 200_000, 1).await;
    }
}
