//! Questions for names from inside, taken to the resolvers of this machine.
//!
//! Datagrams are passed on as they are, both ways: what they ask and answer is not looked at.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{net::UdpSocket, sync::Semaphore, time::timeout};

use super::host;

/// Questions under way; those beyond are dropped, and asked again.
const MOST_QUESTIONS: usize = 256;
/// Time a resolver has before the next is asked. All three take less than a program waits.
const PATIENCE: Duration = Duration::from_millis(1500);
/// The largest datagram there is.
const MOST_BYTES: usize = 64 * 1024;

/// Answers questions that come by this socket, for ever.
pub(in super::super) async fn serve(socket: std::net::UdpSocket) {
    serve_by(socket, host::resolvers().into()).await;
}

async fn serve_by(socket: std::net::UdpSocket, resolvers: Arc<[SocketAddr]>) {
    let socket = socket.set_nonblocking(true).and_then(|()| UdpSocket::from_std(socket));
    let socket = match socket {
        Ok(socket) => Arc::new(socket),
        Err(error) => return tracing::error!(%error, "cannot answer for names"),
    };
    let room = Arc::new(Semaphore::new(MOST_QUESTIONS));
    let mut question = vec![0; MOST_BYTES];
    loop {
        // An error is an answer that did not arrive: of no concern to the next question.
        let Ok((length, from)) = socket.recv_from(&mut question).await else { continue };
        let Ok(place) = room.clone().try_acquire_owned() else { continue };
        let (socket, resolvers) = (socket.clone(), resolvers.clone());
        let question: Box<[u8]> = question[..length].into();
        tokio::spawn(async move {
            if let Some(answer) = ask(&question, &resolvers).await {
                // Who asked may be gone.
                let _ = socket.send_to(&answer, from).await;
            }
            drop(place);
        });
    }
}

async fn ask(question: &[u8], resolvers: &[SocketAddr]) -> Option<Vec<u8>> {
    for resolver in resolvers {
        let asking = async {
            let any: SocketAddr = match resolver {
                SocketAddr::V4(_) => ([0; 4], 0).into(),
                SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
            };
            // One of its own, connected: an answer of anybody else is none.
            let socket = UdpSocket::bind(any).await?;
            socket.connect(resolver).await?;
            socket.send(question).await?;
            let mut answer = vec![0; MOST_BYTES];
            loop {
                let length = socket.recv(&mut answer).await?;
                // To this question, by its number.
                if answer.get(..2) == question.get(..2) {
                    answer.truncate(length);
                    return std::io::Result::Ok(answer);
                }
            }
        };
        match timeout(PATIENCE, asking).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => tracing::debug!(%resolver, %error, "cannot be asked for names"),
            Err(_) => tracing::debug!(%resolver, "did not answer in time"),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_resolver_that_is_gone_is_followed_by_the_next() {
        let resolver = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let gone = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let resolvers = [gone, resolver.local_addr().unwrap()];
        let inside = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = inside.local_addr().unwrap();
        let serving = tokio::spawn(serve_by(inside, resolvers.into()));
        let program = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        program.connect(address).await.unwrap();
        program.send(b"\x01\x02question").await.unwrap();
        let mut bytes = [0; 64];
        let (length, from) = resolver.recv_from(&mut bytes).await.unwrap();
        assert_eq!(&bytes[..length], b"\x01\x02question");
        resolver.send_to(b"\x09\x09of another question", from).await.unwrap();
        resolver.send_to(b"\x01\x02answer", from).await.unwrap();
        let length = program.recv(&mut bytes).await.unwrap();
        assert_eq!(&bytes[..length], b"\x01\x02answer");
        serving.abort();
    }
}
