//! What is measured: the cases, their sizes and what they need of a proxy.

use std::fmt;

use clap::ValueEnum;

/// Bytes of a bulk transfer: one GiB.
pub const BULK_BYTES: u64 = 1 << 30;
/// Bytes of a bulk transfer with `--quick`.
pub const QUICK_BULK_BYTES: u64 = 128 << 20;

/// Bytes of a small answer's body unless asked otherwise.
pub const SMALL_BODY: usize = 1024;

/// The sizes of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Smaller counts and transfers, for a first look.
    pub quick: bool,
    /// Bytes of a small answer's body.
    pub small_body: usize,
}

/// A case of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum)]
pub enum Case {
    /// Small HTTP/1.1 requests.
    H1Small,
    /// Small HTTP/2 requests, HTTP/2 to the origin.
    H2Small,
    /// gRPC unary calls, HTTP/2 to the origin.
    GrpcUnary,
    /// Downloads of 1 GiB over HTTP/1.1.
    #[value(name = "h1-1g-down")]
    H1Down,
    /// Uploads of 1 GiB over HTTP/1.1.
    #[value(name = "h1-1g-up")]
    H1Up,
    /// Downloads of 1 GiB over HTTP/2.
    #[value(name = "h2-1g-down")]
    H2Down,
    /// Uploads of 1 GiB over HTTP/2.
    #[value(name = "h2-1g-up")]
    H2Up,
    /// 1 GiB of opaque TCP: half up, half down.
    #[value(name = "tcp-1g")]
    Tcp,
    /// 1,000 idle HTTP/1.1 keep-alive connections.
    #[value(name = "idle-1000")]
    Idle,
}

/// Which way a bulk transfer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the origin to the client.
    Down,
    /// From the client to the origin.
    Up,
}

/// The work of a case, with its concurrency or size in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Small requests, one in flight on each connection.
    SmallH1 {
        /// Connections held open.
        connections: usize,
        /// Bytes of each answer's body.
        body: usize,
    },
    /// Small requests, several in flight on each connection.
    SmallH2 {
        /// Connections held open.
        connections: usize,
        /// Requests in flight on each.
        streams: usize,
        /// Bytes of each answer's body.
        body: usize,
    },
    /// gRPC calls, several in flight on each connection.
    Grpc {
        /// Connections held open.
        connections: usize,
        /// Calls in flight on each.
        streams: usize,
    },
    /// One transfer after the other on one HTTP/1.1 connection.
    BulkH1(Direction, u64),
    /// One transfer after the other on one HTTP/2 connection.
    BulkH2(Direction, u64),
    /// One transfer after the other, each on a TCP connection of its own.
    Tcp(u64),
    /// Nothing, on many connections.
    Idle {
        /// Connections held open.
        connections: usize,
        /// Bytes of the body of the one answer each has had.
        body: usize,
    },
}

/// How a proxy must be set up for a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setup {
    /// HTTP/1.1 in and out, small messages.
    H1Small,
    /// HTTP/1.1 in and out, streamed bodies.
    H1Bulk,
    /// HTTP/2 in and out, small messages.
    H2Small,
    /// gRPC in and out.
    Grpc,
    /// HTTP/2 in and out, streamed bodies.
    H2Bulk,
    /// Opaque TCP.
    Tcp,
}

/// Numbers of requests per turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Before the measurement, on the same connections.
    pub warm_up: u64,
    /// Under the meter.
    pub measured: u64,
}

impl Case {
    /// All cases in the order they run.
    #[must_use]
    pub fn all() -> &'static [Self] {
        Self::value_variants()
    }

    /// The case's name on the command line and in the results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::H1Small => "h1-small",
            Self::H2Small => "h2-small",
            Self::GrpcUnary => "grpc-unary",
            Self::H1Down => "h1-1g-down",
            Self::H1Up => "h1-1g-up",
            Self::H2Down => "h2-1g-down",
            Self::H2Up => "h2-1g-up",
            Self::Tcp => "tcp-1g",
            Self::Idle => "idle-1000",
        }
    }

    /// The work.
    #[must_use]
    pub fn work(self, sizes: Sizes) -> Work {
        let body = sizes.small_body;
        let bytes = if sizes.quick { QUICK_BULK_BYTES } else { BULK_BYTES };
        match self {
            Self::H1Small => Work::SmallH1 { connections: 64, body },
            Self::H2Small => Work::SmallH2 { connections: 4, streams: 32, body },
            Self::GrpcUnary => Work::Grpc { connections: 4, streams: 32 },
            Self::H1Down => Work::BulkH1(Direction::Down, bytes),
            Self::H1Up => Work::BulkH1(Direction::Up, bytes),
            Self::H2Down => Work::BulkH2(Direction::Down, bytes),
            Self::H2Up => Work::BulkH2(Direction::Up, bytes),
            Self::Tcp => Work::Tcp(bytes),
            Self::Idle => Work::Idle { connections: 1000, body },
        }
    }

    /// What a proxy must be able to do for this case.
    #[must_use]
    pub fn setup(self) -> Setup {
        match self {
            Self::H1Small | Self::Idle => Setup::H1Small,
            Self::H1Down | Self::H1Up => Setup::H1Bulk,
            Self::H2Small => Setup::H2Small,
            Self::GrpcUnary => Setup::Grpc,
            Self::H2Down | Self::H2Up => Setup::H2Bulk,
            Self::Tcp => Setup::Tcp,
        }
    }

    /// How much is done in one turn. Bounded, so that a run's length is known beforehand.
    #[must_use]
    pub fn counts(self, sizes: Sizes) -> Counts {
        let (warm_up, measured) = match (self.kind(), sizes.quick) {
            (Kind::Small, false) => (5_000, 60_000),
            (Kind::Small, true) => (2_000, 20_000),
            // A bulk transfer warms itself up: the first of a turn is not measured.
            (Kind::Bulk | Kind::Idle, _) => (1, 1),
        };
        Counts { warm_up: if self == Self::Idle { 0 } else { warm_up }, measured }
    }

    /// What kind of figures matter here.
    #[must_use]
    pub fn kind(self) -> Kind {
        match self {
            Self::H1Small | Self::H2Small | Self::GrpcUnary => Kind::Small,
            Self::H1Down | Self::H1Up | Self::H2Down | Self::H2Up | Self::Tcp => Kind::Bulk,
            Self::Idle => Kind::Idle,
        }
    }
}

impl Work {
    /// Bytes that one request carries to the origin and the origin counts as uploaded.
    #[must_use]
    pub fn uploaded_bytes(self) -> u64 {
        match self {
            Self::BulkH1(Direction::Up, bytes) | Self::BulkH2(Direction::Up, bytes) => bytes,
            Self::Tcp(bytes) => bytes / 2,
            _ => 0,
        }
    }
}

/// What kind of figures matter in a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// CPU per request.
    Small,
    /// CPU per byte.
    Bulk,
    /// Memory per connection.
    Idle,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_is_called_the_same_on_the_command_line_and_in_the_results() {
        for case in Case::all() {
            assert_eq!(Case::from_str(case.name(), false), Ok(*case));
        }
        assert_eq!(Case::all().len(), 9);
    }
}
