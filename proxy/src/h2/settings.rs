//! What the two sides tell each other of their limits (RFC 9113 §6.5).

use bytes::{BufMut, BytesMut};

use super::{
    core::{Config, Role},
    error::{ErrorCode, Fatal},
    frame,
};

const HEADER_TABLE_SIZE: u16 = 0x1;
const ENABLE_PUSH: u16 = 0x2;
const MAX_CONCURRENT_STREAMS: u16 = 0x3;
const INITIAL_WINDOW_SIZE: u16 = 0x4;
const MAX_FRAME_SIZE: u16 = 0x5;
const MAX_HEADER_LIST_SIZE: u16 = 0x6;

/// The window every stream and connection begins with, in bytes.
pub(super) const DEFAULT_WINDOW: u32 = 65_535;
/// The smallest frame size limit, in bytes, which is also the default.
pub(super) const LEAST_FRAME: usize = 16_384;
const MOST_FRAME: usize = 0xff_ffff;
/// What a client assumes until the server's settings are here.
const STREAMS_UNTIL_TOLD: u32 = 100;

/// What the peer allows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    pub(super) window: u32,
    pub(super) frame: usize,
    pub(super) streams: u32,
    /// Most bytes of a head.
    pub(super) header_list: Option<u32>,
    pub(super) told: bool,
}

impl Default for Peer {
    fn default() -> Self {
        let streams = STREAMS_UNTIL_TOLD;
        Self { window: DEFAULT_WINDOW, frame: LEAST_FRAME, streams, header_list: None, told: false }
    }
}

impl Peer {
    /// Takes over what a SETTINGS frame says.
    pub(super) fn apply(&mut self, payload: &[u8], role: Role) -> Result<(), Fatal> {
        let (settings, []) = payload.as_chunks::<6>() else {
            return Err(Fatal(ErrorCode::FRAME_SIZE_ERROR, "SETTINGS is no multiple of 6 bytes"));
        };
        if !std::mem::replace(&mut self.told, true) {
            self.streams = u32::MAX;
        }
        for &[a, b, c, d, e, f] in settings {
            let value = u32::from_be_bytes([c, d, e, f]);
            match u16::from_be_bytes([a, b]) {
                // A server has nothing to allow (RFC 9113 §6.5.2).
                ENABLE_PUSH if value > u32::from(role == Role::Server) => {
                    return Err(Fatal(ErrorCode::PROTOCOL_ERROR, "ENABLE_PUSH is out of range"));
                }
                MAX_CONCURRENT_STREAMS => self.streams = value,
                INITIAL_WINDOW_SIZE if value > frame::MOST => {
                    let what = "INITIAL_WINDOW_SIZE is above 2^31-1";
                    return Err(Fatal(ErrorCode::FLOW_CONTROL_ERROR, what));
                }
                INITIAL_WINDOW_SIZE => self.window = value,
                MAX_FRAME_SIZE => {
                    self.frame = value as usize;
                    if !(LEAST_FRAME..=MOST_FRAME).contains(&self.frame) {
                        return Err(Fatal(ErrorCode::PROTOCOL_ERROR, "MAX_FRAME_SIZE"));
                    }
                }
                MAX_HEADER_LIST_SIZE => self.header_list = Some(value),
                // HEADER_TABLE_SIZE bounds a table that our encoder does not keep.
                _ => {}
            }
        }
        Ok(())
    }
}

/// Writes our first SETTINGS frame, and opens the connection's window.
pub(super) fn put_ours(out: &mut BytesMut, config: &Config, server: bool) {
    let mut settings = vec![
        (INITIAL_WINDOW_SIZE, config.first_window),
        (MAX_FRAME_SIZE, config.frame),
        (MAX_HEADER_LIST_SIZE, config.header_list),
        (HEADER_TABLE_SIZE, super::core::HEADER_TABLE as u32),
    ];
    settings.push(match server {
        true => (MAX_CONCURRENT_STREAMS, config.streams),
        false => (ENABLE_PUSH, 0),
    });
    frame::put_head(out, settings.len() * 6, frame::SETTINGS, 0, 0);
    for (setting, value) in settings {
        out.put_u16(setting);
        out.put_u32(value);
    }
    let more = config.connection_window.saturating_sub(DEFAULT_WINDOW);
    if more > 0 {
        frame::put_window(out, 0, more);
    }
}
