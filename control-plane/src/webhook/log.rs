//! What the log is told of what goes wrong, and how much of it: whoever reaches the door may knock as
//! often as they like, and must neither fill a disk nor hide what is said of others.

use std::{
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::review::Trouble;

/// Lines of each kind have bounds of their own.
#[derive(Debug, Default)]
pub(super) struct Log {
    troubles: Bound,
    requests: Bound,
    handshakes: Bound,
}

impl Log {
    /// A pod should have a sidecar, and cannot be given it.
    pub(super) fn trouble(&self, pod: &Trouble) {
        let Some(unsaid) = self.troubles.admits(Instant::now()) else { return };
        let Trouble { namespace, name, owner, why, allowed } = pod;
        let what = match allowed {
            true => "a pod starts without a sidecar, since it cannot be given one",
            false => {
                "a pod is refused, since it cannot be given a sidecar (--webhook-on-problem refuse)"
            }
        };
        tracing::warn!(%namespace, %name, %owner, %why, unsaid, "{what}");
    }

    /// A request could not be answered.
    pub(super) fn request(&self, client: Option<SocketAddr>, why: &str) {
        let Some(unsaid) = self.requests.admits(Instant::now()) else { return };
        tracing::warn!(
            client = client.map(tracing::field::display),
            why = line(why),
            unsaid,
            "the webhook was sent no review that it can answer; if an API server sent it, its failurePolicy counts"
        );
    }

    /// A connection did not come to requests.
    pub(super) fn handshake(&self, client: SocketAddr, why: &str) {
        let Some(unsaid) = self.handshakes.admits(Instant::now()) else { return };
        tracing::warn!(
            %client,
            why = line(why),
            unsaid,
            "a TLS handshake with the webhook failed; if it was an API server's, see that caBundle is of the authority \
             that signs the certificate, and that the certificate has the name in clientConfig"
        );
    }
}

/// At most [`LINES`] in each [`WINDOW`].
#[derive(Debug, Default)]
struct Bound(Mutex<Said>);

#[derive(Debug, Default)]
struct Said {
    /// When the window began.
    began: Option<Instant>,
    /// Lines in it.
    lines: u32,
    /// What should have been said since the last line.
    unsaid: u64,
}

const WINDOW: Duration = Duration::from_secs(10);
const LINES: u32 = 10;
/// Bytes of a line that others have written.
const MAX_TEXT: usize = 512;

impl Bound {
    /// Whether one more line may be said, and then how many were not before it.
    fn admits(&self, now: Instant) -> Option<u64> {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if said.began.is_none_or(|began| now.saturating_duration_since(began) >= WINDOW) {
            (said.began, said.lines) = (Some(now), 0);
        }
        if said.lines == LINES {
            said.unsaid += 1;
            return None;
        }
        said.lines += 1;
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
        let said = (0..1000).filter_map(|_| bound.admits(begin)).collect::<Vec<_>>();
        assert_eq!(said, [0; LINES as usize]);
        assert_eq!(bound.admits(begin + WINDOW - Duration::from_millis(1)), None);
        assert_eq!(bound.admits(begin + WINDOW), Some(1000 - u64::from(LINES) + 1));
        assert_eq!(bound.admits(begin + WINDOW), Some(0));
    }

    #[test]
    fn a_flood_of_one_kind_hides_no_other_and_its_text_stays_on_its_line() {
        let (log, heard) = (Log::default(), Heard::begin());
        let client = SocketAddr::from(([192, 0, 2, 7], 5));
        let long = format!("two\nlines\u{1b}[1m {}", "x".repeat(10_000));
        for _ in 0..100 {
            log.request(Some(client), &long);
        }
        log.handshake(client, &long);
        let lines = heard.lines();
        assert_eq!(lines.len(), LINES as usize + 1, "{lines:?}");
        assert!(lines.iter().all(|line| line.len() < 1024 && !line.contains('\u{1b}')));
        let last = lines.last().unwrap();
        assert!(last.contains("TLS handshake") && last.contains("192.0.2.7:5"), "{last}");
    }
}
