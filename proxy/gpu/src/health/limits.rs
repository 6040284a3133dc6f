//! Where health begins to fall, and how fast.

use std::time::Duration;

/// Where health begins to fall, and how fast. The defaults are made to leave a node alone that only works hard.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// The share of VRAM from which a card has less to give. 0.9: allocators keep a tenth for fragments and workspaces,
    /// and beyond it work begins to fail or to spill. Not applied where a model server tells its KV cache.
    pub vram_from: f64,
    /// What a card has left with its VRAM full. 0.1: what runs still runs, and nothing more fits.
    pub vram_full: f64,
    /// Degrees below its limit at which a card begins to have less. 5: firmware slows down in steps just below it, and a
    /// card that is well cooled stays further away under full load.
    pub heat_margin: f64,
    /// What a card has left at its limit of temperature; it falls to 0 at the one at which it switches itself off. 0.5:
    /// the clocks that firmware has cut to by then.
    pub heat_limit: f64,
    /// What a card has left that heat holds down, when its clocks do not tell. 0.5, as at the limit.
    pub throttled: f64,
    /// What a card has left at least that heat holds down. 0.2: the lowest clock of most.
    pub throttled_least: f64,
    /// How long a card is left alone after uncorrectable memory errors, without new ones or a reset; doubled with each
    /// further time, up to [`Limits::ecc_longest`]. 10 min: the driver retires the page at once, so that one error is
    /// history and a second is a pattern.
    pub ecc_hold: Duration,
    /// The longest that a card is left alone after memory errors. A day.
    pub ecc_longest: Duration,
    /// The share of a model server's KV cache from which it has less to give. 0.9: beyond it requests are preempted and
    /// computed again.
    pub cache_from: f64,
    /// What is left with the KV cache full. 0.3: it still decodes what it holds.
    pub cache_full: f64,
    /// Requests that may wait at a model server whatever it works on. 8: less is a batch being put together.
    pub waiting_free: f64,
    /// What is left at least, however many wait. 0.3: waiting is load, which callers see for themselves.
    pub waiting_least: f64,
    /// What a card has at most of which nothing is known. 0.9: below its healthy peers, so that it draws no traffic by
    /// losing its sensors, and not so far that a node whose monitoring broke is starved.
    pub unknown: f64,
    /// How long a silent sensor is taken to say what it said. 30 s: an exporter that restarts.
    pub patience: Duration,
    /// How long a silent sensor may hold a card below [`Limits::unknown`]. 10 min: a card that was hot when its sensor
    /// vanished is not well for that, and not ill for ever.
    pub memory: Duration,
    /// How long all must be better before the factor rises. 10 s: longer than an exporter takes between two readings.
    pub rise_after: Duration,
    /// How far the factor rises at once. 0.25: from drained to whole in 40 s, time enough to fall again under the load.
    pub rise_step: f64,
    /// The most time that may pass between two observations. 30 s: a clock that jumps ends no hold.
    pub longest_step: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            vram_from: 0.9,
            vram_full: 0.1,
            heat_margin: 5.0,
            heat_limit: 0.5,
            throttled: 0.5,
            throttled_least: 0.2,
            ecc_hold: Duration::from_secs(600),
            ecc_longest: Duration::from_secs(86_400),
            cache_from: 0.9,
            cache_full: 0.3,
            waiting_free: 8.0,
            waiting_least: 0.3,
            unknown: 0.9,
            patience: Duration::from_secs(30),
            memory: Duration::from_secs(600),
            rise_after: Duration::from_secs(10),
            rise_step: 0.25,
            longest_step: Duration::from_secs(30),
        }
    }
}
