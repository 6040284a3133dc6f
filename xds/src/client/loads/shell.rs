//! Keeps a stream of load reports beside an ADS stream.

use std::{sync::Arc, time::Duration};

use envoy_types::pb::envoy::service::load_stats::v3::{
    LoadStatsRequest, load_reporting_service_client::LoadReportingServiceClient,
};
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time::{Instant, sleep},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, transport::Channel};
use towpath_policies::model::Node;
use tracing::debug;

use super::{Count, Reports};
use crate::{client::shell::reached, codec::loads, wire};

/// Reports for as long as it is polled and the server wants that. A server that does not know the
/// service is not asked again on this connection.
pub(in crate::client) async fn report(channel: Channel, node: Node, count: Arc<Count>) {
    let mut failures = 0;
    loop {
        let started = Instant::now();
        let ended = stream(&channel, &node, &*count).await;
        if ended.code() == Code::Unimplemented {
            debug!("the control plane takes no load reports");
            return;
        }
        failures = if started.elapsed() > LONGEST_PAUSE { 0 } else { failures + 1 };
        let ceiling = FIRST_PAUSE.saturating_mul(1 << failures.min(16)).min(LONGEST_PAUSE);
        let pause = ceiling.mul_f64(0.5 + fastrand::f64() / 2.0);
        debug!(%ended, ?pause, "load reports ended, will begin again");
        sleep(pause).await;
    }
}

/// One stream to its end; returns why it ended.
async fn stream(channel: &Channel, node: &Node, count: &Count) -> Status {
    let mut client =
        LoadReportingServiceClient::new(channel.clone()).max_decoding_message_size(MAX_TERMS_BYTES);
    let (outbound, receiver) = mpsc::channel::<LoadStatsRequest>(IN_FLIGHT);
    // Travels with the call, because some servers answer the call only with their first response.
    let _ = outbound.try_send(loads::encode_report(Some(wire::node_to_pb(node)), Vec::new()));
    let mut inbound = match client.stream_load_stats(ReceiverStream::new(receiver)).await {
        Ok(open) => open.into_inner(),
        Err(status) => return status,
    };
    let mut reports = Reports::default();
    loop {
        // Both are cancel-safe: `message` keeps partial frames in the decoder.
        tokio::select! {
            message = inbound.message() => match message {
                Ok(Some(pb)) => {
                    reports.asked(loads::decode_terms(pb), count(), Instant::now().into_std());
                }
                Ok(None) => return Status::unavailable("the server ended the stream"),
                Err(status) => return status,
            },
            () = reached(reports.deadline()) => {
                let now = Instant::now().into_std();
                match outbound.try_reserve() {
                    Ok(place) => {
                        if let Some(news) = reports.report(count(), now) {
                            place.send(loads::encode_report(None, news));
                        }
                    }
                    Err(TrySendError::Full(())) => reports.skip(now),
                    Err(TrySendError::Closed(())) => {
                        return Status::unavailable("the server ended the stream");
                    }
                }
            }
        }
    }
}

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Room for the names of many services.
const MAX_TERMS_BYTES: usize = 16 << 20;
/// Reports handed to HTTP/2 and not yet sent.
const IN_FLIGHT: usize = 2;

#[cfg(test)]
mod tests {
    use tokio::{net::TcpListener, time::timeout};
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::{
        service::Routes,
        transport::{Endpoint, Server},
    };

    use super::*;

    #[tokio::test]
    async fn a_server_that_does_not_know_the_service_is_not_asked_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap());
        let knows_nothing = Server::builder().add_routes(Routes::default());
        let serve = knows_nothing.serve_with_incoming(TcpListenerStream::new(listener));
        let server = tokio::spawn(serve);
        let channel = Endpoint::from_shared(uri).unwrap().connect_lazy();
        let node = Node { id: "proxy-1".to_owned(), cluster: String::new(), sidecar: false };
        let ends = report(channel, node, Arc::new(Vec::new));
        timeout(Duration::from_secs(20), ends).await.expect("it gives up");
        server.abort();
    }
}
