//! Reads cards on a thread that may hang.

use std::{
    path::{Path, PathBuf},
    sync::mpsc::{self, SyncSender},
    thread,
    time::Duration,
};

use tokio::{sync::mpsc as answers, time::timeout};
use towpath_gpu::{
    Fault, Problem, Reading,
    nvml::Library,
    sysfs::{self, ROOT},
};

use super::Cards;

/// The thread's other side.
pub(super) struct Reader {
    ask: SyncSender<()>,
    answers: answers::Receiver<Result<Vec<Reading>, Fault>>,
    /// It was asked and has not answered yet.
    asked: bool,
}

/// What the thread reads.
enum Source {
    Tree(PathBuf),
    /// Both vendors'.
    Machine {
        amd: bool,
        nvidia: Option<Box<Library>>,
    },
}

impl Reader {
    /// Starts the thread. It ends with this, unless it hangs, and then with the process.
    pub(super) fn start(cards: Cards) -> Option<Self> {
        let mut source = match cards {
            Cards::Off => return None,
            Cards::Auto => Source::Machine { amd: false, nvidia: None },
            Cards::Sysfs(root) => Source::Tree(root),
        };
        let (ask, asked) = mpsc::sync_channel(1);
        let (answer, answers) = answers::channel(1);
        let read = move || {
            while asked.recv().is_ok() {
                if answer.blocking_send(source.read()).is_err() {
                    return;
                }
            }
        };
        match thread::Builder::new().name("gpus".to_owned()).spawn(read) {
            Ok(_) => Some(Self { ask, answers, asked: false }),
            Err(error) => {
                tracing::error!(%error, "no thread to read the GPUs on");
                None
            }
        }
    }

    /// What the cards say now; an answer that comes later is that of the next call.
    pub(super) async fn read(&mut self, patience: Duration) -> Result<Vec<Reading>, Fault> {
        let fault = |problem| Fault::new("the GPUs' source", problem);
        if !self.asked {
            self.asked = self.ask.try_send(()).is_ok();
        }
        match timeout(patience, self.answers.recv()).await {
            Ok(Some(answer)) => {
                self.asked = false;
                answer
            }
            Ok(None) => Err(fault(Problem::Missing)),
            Err(_) => Err(fault(Problem::TooSlow)),
        }
    }
}

impl Source {
    fn read(&mut self) -> Result<Vec<Reading>, Fault> {
        match self {
            Self::Tree(root) => sysfs::read(root),
            Self::Machine { amd, nvidia } => {
                // A source that never had a card is not missed.
                let mut cards = match sysfs::read(Path::new(ROOT)) {
                    Ok(cards) => cards,
                    Err(fault) if *amd => return Err(fault),
                    Err(_) => Vec::new(),
                };
                *amd |= !cards.is_empty();
                if nvidia.is_none() && cards.is_empty() && !*amd {
                    *nvidia = Library::open().ok().map(Box::new);
                }
                if let Some(library) = nvidia {
                    cards.extend(library.read()?);
                }
                Ok(cards)
            }
        }
    }
}
