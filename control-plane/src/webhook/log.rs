//! What the log is told of what goes wrong, and how much of it: whoever reaches the door may knock as
//! often as they like, and must neither fill a disk nor hide what is said of others.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::review::Trouble;

/// Lines of each kind have bounds of their own.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// By namespace and owner of the pod.
    troubles: Bound<(String, String)>,
    requests: Bound<Option<IpAddr>>,
    handshakes: Bound<Option<IpAddr>>,
    connections: Bound<Option<IpAddr>>,
}

impl Log {
    /// A pod should have a sidecar, and cannot be given it.
    pub(super) fn trouble(&self, client: Option<SocketAddr>, pod: &Trouble) {
        let Trouble { namespace, name, owner, why, allowed } = pod;
        let sender = (namespace.clone(), owner.clone());
        let Some(unsaid) = self.troubles.admits(sender, Instant::now()) else { return };
        let what = match allowed {
            true => "a pod starts without a sidecar, since it cannot be given one",
            false => {
                "a pod is refused, since it cannot be given a sidecar (--webhook-on-problem refuse)"
            }
        };
        // As strings, which are quoted: a name could hold ` why=ok`.
        let client = client.map(tracing::field::display);
        tracing::warn!(client, namespace, name, owner, why, unsaid, "{what}");
    }

    /// A request could not be answered.
    pub(super) fn request(&self, client: Option<SocketAddr>, why: &str) {
        let Some(unsaid) = self.requests.admits(client.map(address), Instant::now()) else {
            return;
        };
        tracing::warn!(
            client = client.map(tracing::field::display),
            why = line(why),
            unsaid,
            "the webhook was sent no review that it can answer; if an API server sent it, its failurePolicy counts"
        );
    }

    /// A connection did not come to requests.
    pub(super) fn handshake(&self, client: SocketAddr, why: &str) {
        let sender = Some(address(client));
        let Some(unsaid) = self.handshakes.admits(sender, Instant::now()) else { return };
        tracing::warn!(
            %client,
            why = line(why),
            unsaid,
            "a TLS handshake with the webhook failed; if it was an API server's, see that caBundle is of the authority \
             that signs the certificate, and that the certificate has the name in clientConfig"
        );
    }

    /// A connection was closed, since its address has its share of them.
    pub(super) fn refused(&self, client: SocketAddr, share: usize) {
        let sender = Some(address(client));
        let Some(unsaid) = self.connections.admits(sender, Instant::now()) else { return };
        tracing::warn!(
            %client,
            share,
            unsaid,
            "a connection to the webhook was closed: its address holds as many as one may; if API servers come from \
             there, see who else does, and let only API servers reach the webhook"
        );
    }
}

/// Whom a connection is from, whatever its port.
fn address(client: SocketAddr) -> IpAddr {
    client.ip().to_canonical()
}

/// In each [`WINDOW`] at most [`LINES`], of these [`LINES_OF_ONE`] about one sender.
#[derive(Debug, Default)]
struct Bound<S>(Mutex<Said<S>>);

#[derive(Debug, Default)]
struct Said<S> {
    /// When the window began.
    began: Option<Instant>,
    /// Whom each line in it is about.
    lines: Vec<S>,
    /// What should have been said since the last line.
    unsaid: u64,
}

const WINDOW: Duration = Duration::from_secs(10);
const LINES: usize = 10;
const LINES_OF_ONE: usize = 2;
/// Bytes of a line that others have written.
const MAX_TEXT: usize = 512;

impl<S: PartialEq> Bound<S> {
    /// Whether one more line may be said about `sender`, and then how many were not before it.
    fn admits(&self, sender: S, now: Instant) -> Option<u64> {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if said.began.is_none_or(|began| now.saturating_duration_since(began) >= WINDOW) {
            said.began = Some(now);
            said.lines.clear();
        }
        let own = said.lines.iter().filter(|other| **other == sender).count();
        if said.lines.len() == LINES || own == LINES_OF_ONE {
            said.unsaid += 1;
            return None;
        }
        said.lines.push(sender);
        Some(std::mem::take(&mut said.unsaid))
    }
}

/// Text of others as a part of one line.
pub(super) fn line(text: &str) -> String {
    super::review::cut(text, MAX_TEXT)
}

#[cfg(test)]
pub(super) mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use tracing::subscriber::DefaultGuard;

    use super::*;

    /// What this thread logs, until dropped.
    pub(in crate::webhook) struct Heard {
        text: Arc<Mutex<Vec<u8>>>,
        _listening: DefaultGuard,
    }

    impl Heard {
        pub(in crate::webhook) fn begin() -> Self {
            struct To(Arc<Mutex<Vec<u8>>>);
            impl io::Write for To {
                fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                    self.0.lock().unwrap().write(bytes)
                }

                fn flush(&mut self) -> io::Result<()> {
                    Ok(())
                }
            }
            let text = Arc::<Mutex<Vec<u8>>>::default();
            let to = text.clone();
            let lines = tracing_subscriber::fmt()
                .with_ansi(false)
                .with_writer(move || To(to.clone()))
                .finish();
            Self { text, _listening: tracing::subscriber::set_default(lines) }
        }

        pub(in crate::webhook) fn lines(&self) -> Vec<String> {
            let text = String::from_utf8(self.text.lock().unwrap().clone()).unwrap();
            text.lines().map(str::to_owned).collect()
        }
    }

    #[test]
    fn a_flood_is_a_few_lines_and_a_number_and_later_there_are_lines_again() {
        let (bound, begin) = (Bound::default(), Instant::now());
        let said = (0..1000).filter_map(|sender| bound.admits(sender, begin)).collect::<Vec<_>>();
        assert_eq!(said, [0; LINES]);
        assert_eq!(bound.admits(1, begin + WINDOW - Duration::from_millis(1)), None);
        assert_eq!(bound.admits(1, begin + WINDOW), Some(1000 - LINES as u64 + 1));
        assert_eq!(bound.admits(2, begin + WINDOW), Some(0));
    }

    #[test]
    fn a_sender_has_a_few_of_the_lines_and_another_is_still_heard() {
        let (bound, begin) = (Bound::default(), Instant::now());
        let of_one = (0..1000).filter_map(|_| bound.admits("one", begin));
        assert_eq!(of_one.count(), LINES_OF_ONE);
        assert_eq!(bound.admits("another", begin), Some(1000 - LINES_OF_ONE as u64));
        assert_eq!(bound.admits("one", begin + WINDOW), Some(0));
    }

    #[test]
    fn a_flood_of_one_kind_hides_no_other_and_its_text_stays_on_its_line() {
        let (log, heard) = (Log::default(), Heard::begin());
        let client = SocketAddr::from(([192, 0, 2, 7], 5));
        let long = format!("two\nlines\u{1b}[1m {}", "x".repeat(10_000));
        for port in 0..100 {
            log.request(Some(SocketAddr::new(client.ip(), port)), &long);
            log.refused(SocketAddr::new(client.ip(), port), 32);
        }
        log.request(Some(SocketAddr::from(([192, 0, 2, 8], 5))), &long);
        log.handshake(client, &long);
        let lines = heard.lines();
        assert_eq!(lines.len(), 2 * LINES_OF_ONE + 2, "{lines:?}");
        assert!(lines.iter().all(|line| line.len() < 1024 && !line.contains('\u{1b}')));
        let [.., other, last] = lines.as_slice() else { panic!("{lines:?}") };
        assert!(other.contains("192.0.2.8:5") && other.contains("unsaid=98"), "{other}");
        assert!(last.contains("TLS handshake") && last.contains("192.0.2.7:5"), "{last}");
    }

    #[test]
    fn pods_of_one_owner_do_not_hide_those_of_another_and_no_name_forges_a_field() {
        let (log, heard) = (Log::default(), Heard::begin());
        let client = Some(SocketAddr::from(([192, 0, 2, 7], 5)));
        let mut pod = Trouble {
            namespace: "etl".to_owned(),
            name: "x owner=ReplicaSet/payments why=ok".to_owned(),
            owner: "ReplicaSet/many".to_owned(),
            why: "port 9901 is \"taken\"".to_owned(),
            allowed: true,
        };
        for _ in 0..200 {
            log.trouble(client, &pod);
        }
        pod.owner = "ReplicaSet/few".to_owned();
        log.trouble(client, &pod);
        let lines = heard.lines();
        assert_eq!(lines.len(), LINES_OF_ONE + 1, "{lines:?}");
        let last = lines.last().unwrap();
        for part in [
            "client=192.0.2.7:5",
            "namespace=\"etl\"",
            "name=\"x owner=ReplicaSet/payments why=ok\"",
            "owner=\"ReplicaSet/few\"",
            "why=\"port 9901 is \\\"taken\\\"\"",
            "unsaid=198",
        ] {
            assert!(last.contains(part), "{part} in {last}");
        }
    }
}
