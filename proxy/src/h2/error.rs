//! Why streams and connections end before their time.

use std::fmt;

/// An error code (RFC 9113 §7).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct ErrorCode(pub(crate) u32);

/// Why a stream ended before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StreamError {
    /// The connection ended.
    #[error("connection closed")]
    Closed,
    /// The peer reset the stream.
    #[error("stream reset ({0})")]
    Reset(ErrorCode),
    /// The peer did not process the stream: it refused it, or went away before it.
    #[error("stream refused unprocessed")]
    Refused,
    /// Nobody read it while it held up others.
    #[error("given up unread")]
    Unread,
    /// The peer broke the protocol, on this stream alone.
    #[error("malformed message: {0}")]
    Malformed(&'static str),
}

/// A connection error: the code of its GOAWAY, and what a person reads there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fatal(pub(super) ErrorCode, pub(super) &'static str);

macro_rules! codes {
    ($($name:ident = $code:literal;)*) => {
        impl ErrorCode {
            $(
                #[allow(dead_code, reason = "the list is complete, to be named in logs")]
                pub(crate) const $name: Self = Self($code);
            )*

            fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($code => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

codes! {
    NO_ERROR = 0x0;
    PROTOCOL_ERROR = 0x1;
    INTERNAL_ERROR = 0x2;
    FLOW_CONTROL_ERROR = 0x3;
    SETTINGS_TIMEOUT = 0x4;
    STREAM_CLOSED = 0x5;
    FRAME_SIZE_ERROR = 0x6;
    REFUSED_STREAM = 0x7;
    CANCEL = 0x8;
    COMPRESSION_ERROR = 0x9;
    CONNECT_ERROR = 0xa;
    ENHANCE_YOUR_CALM = 0xb;
    INADEQUATE_SECURITY = 0xc;
    HTTP_1_1_REQUIRED = 0xd;
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "error {:#x}", self.0),
        }
    }
}

impl fmt::Debug for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
