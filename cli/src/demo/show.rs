//! Tells the story: progress bars on a terminal, plain lines elsewhere.

use std::{
    io::{IsTerminal, Write},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Plain progress lines come this often.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// Where the story is told.
#[derive(Debug)]
pub(super) struct Show {
    started: Instant,
    bar: Option<ProgressBar>,
    colour: bool,
    last_plain_ms: AtomicU64,
}

/// How a line stands out.
#[derive(Clone, Copy, Debug)]
pub(super) enum Tone {
    /// What happens.
    Plain,
    /// Something is broken on purpose.
    Trouble,
    /// What the mesh did about it.
    Answer,
    /// The good end.
    Good,
    /// The bad one.
    Bad,
}

impl Show {
    /// Looks at where the output goes.
    pub(super) fn new() -> Self {
        let terminal = std::io::stdout().is_terminal();
        let bar = terminal.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout());
            let style = ProgressStyle::with_template(
                "  {bar:32} {percent:>3}%  {human_pos} of {human_len} rows acknowledged  {msg}",
            );
            if let Ok(style) = style {
                bar.set_style(style.progress_chars("━╸─"));
            }
            bar
        });
        let colour = terminal && std::env::var_os("NO_COLOR").is_none();
        Self { started: Instant::now(), bar, colour, last_plain_ms: AtomicU64::new(0) }
    }

    /// Time since the start.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// A line of the story, with the time.
    pub(super) fn say(&self, tone: Tone, text: impl AsRef<str>) {
        let seconds = self.elapsed().as_secs_f64();
        let (colour, mark) = match tone {
            Tone::Plain => ("", " "),
            Tone::Trouble => ("\x1b[33m", "!"),
            Tone::Answer => ("\x1b[36m", " "),
            Tone::Good => ("\x1b[32m", " "),
            Tone::Bad => ("\x1b[31m", "!"),
        };
        let indent = if matches!(tone, Tone::Answer) { "  -> " } else { "" };
        let text = text.as_ref();
        if self.colour {
            self.print(&format!(
                "\x1b[2m{seconds:6.1}s\x1b[0m {colour}{mark} {indent}{text}\x1b[0m"
            ));
        } else {
            self.print(&format!("{seconds:6.1}s {mark} {indent}{text}"));
        }
    }

    /// A line as it stands.
    pub(super) fn print(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| put(line)),
            None => put(line),
        }
    }

    /// How far the freight is. Cheap to call often.
    pub(super) fn progress(&self, rows: u64, expected: u64, megabytes_per_second: f64) {
        if let Some(bar) = &self.bar {
            bar.set_length(expected.max(rows));
            bar.set_position(rows);
            bar.set_message(format!("{megabytes_per_second:.1} MB/s"));
            return;
        }
        let now = u64::try_from(self.elapsed().as_millis()).unwrap_or(u64::MAX);
        let last = self.last_plain_ms.load(Relaxed);
        if u128::from(now - last.min(now)) >= PLAIN_EVERY.as_millis() {
            self.last_plain_ms.store(now, Relaxed);
            let percent = rows * 100 / expected.max(1);
            self.say(
                Tone::Plain,
                format!("{percent} % of the rows acknowledged, {megabytes_per_second:.1} MB/s"),
            );
        }
    }

    /// From here on the bar shows bytes.
    pub(super) fn counts_bytes(&self) {
        let Some(bar) = &self.bar else { return };
        let template = "  {bar:32} {percent:>3}%  {bytes} of {total_bytes}  {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━╸─"));
        }
        bar.reset();
    }

    /// How far an upload is. Seen on a terminal only.
    pub(super) fn moving(&self, bytes: u64, total: u64, how: &'static str) {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(bytes);
            bar.set_message(how);
        }
    }

    /// Takes the bar away.
    pub(super) fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn put(line: &str) {
    // whoever closed the pipe does not want to read on; the proof counts, not the telling
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// A number with separated thousands.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 batch`, `2 batches`.
pub(super) fn many(number: u64, one: &str, more: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { more })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(number), text);
        }
        assert_eq!(many(1, "batch", "batches"), "1 batch");
        assert_eq!(many(1200, "batch", "batches"), "1,200 batches");
    }
}
