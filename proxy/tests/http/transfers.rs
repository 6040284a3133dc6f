//! What is listed as under way.

use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use towpath_policies::model::Protocol;

use crate::{
    harness::{Input, Setup, eventually, origin},
    http2::client,
};

/// An origin that answers with the first bytes of more, and then waits.
async fn begins() -> std::net::SocketAddr {
    let (address, _) = origin(|mut io, _| async move {
        Input::default().message(&mut io).await.unwrap();
        io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabcde").await.unwrap();
        let _ = io.read(&mut [0; 1]).await;
    })
    .await;
    address
}

#[tokio::test(start_paused = true)]
async fn an_exchange_that_lasts_is_listed_with_what_it_moved_until_it_ends() {
    let address = begins().await;
    let proxy = Setup::to(address).speaking(Protocol::Http1).start().await;
    let mut io = proxy.connect().await;
    io.write_all(b"POST /load HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nxyz").await.unwrap();
    let mut second = client(&proxy).await;
    let request = Request::get("http://a/").body(()).unwrap();
    let (response, _) = second.send_request(request, true).unwrap();
    let mut body = response.await.unwrap().into_body();
    assert_eq!(proxy.transfers.underway(9).0, [], "too young");
    eventually("both are listed", || proxy.transfers.underway(9).0.len() == 2).await;
    let (listed, more) = proxy.transfers.underway(9);
    let seen = listed.iter().map(|t| (t.protocol, t.request_bytes, t.response_bytes));
    assert_eq!(seen.collect::<Vec<_>>(), [("HTTP/1.1", 3, 5), ("HTTP/2", 0, 5)]);
    assert_eq!(more, 0);
    for transfer in &listed {
        assert_eq!(transfer.route.as_deref(), Some("all"));
        assert_eq!(transfer.service.as_deref(), Some("origin"));
        assert_eq!(transfer.endpoint, Some(address.to_string()));
        assert!((2000..3000).contains(&transfer.age_ms), "{}", transfer.age_ms);
    }
    assert_eq!(&body.data().await.unwrap().unwrap()[..], b"abcde");
    drop((io, body));
    eventually("none is left", || proxy.transfers.underway(9).0.is_empty()).await;
}
