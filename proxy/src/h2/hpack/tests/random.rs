//! Seeded runs against a model.

use std::collections::VecDeque;

use bytes::BytesMut;
use http::{HeaderName, HeaderValue, Method, StatusCode};

use super::{
    super::{Decoder, Encoder, Field, encode},
    ADD, NEVER, PLAIN, decode, huffman, integer, lines, string,
};

const NAMES: [&str; 8] =
    ["x-a", "x-request-id", "accept", "cookie", "user-agent", "te-2", "grpc-timeout", "via"];

fn text(random: &mut fastrand::Rng) -> String {
    let most = if random.u8(..20) == 0 { 300 } else { 30 };
    (0..random.usize(..most)).map(|_| char::from(random.u8(b'!'..=b'~'))).collect()
}

#[test]
fn what_the_encoder_writes_the_decoder_reads() {
    let random = &mut fastrand::Rng::with_seed(7541);
    let (mut encoder, mut decoder) = (Encoder::default(), Decoder::new(4096));
    for _ in 0..2000 {
        let mut out = BytesMut::new();
        let mut expected = Vec::new();
        encoder.begin(&mut out);
        let path = format!("/{}", text(random).replace(['#', '"', '<', '>', '\\', '^', '`'], ""));
        for _ in 0..random.usize(..8) {
            expected.push(match random.u8(..8) {
                0 => {
                    let method = random.choice([Method::GET, Method::POST, Method::PATCH]).unwrap();
                    encode::method(&mut out, &method);
                    format!(":method: {method}")
                }
                1 => {
                    let https = random.bool();
                    encode::scheme(&mut out, https);
                    format!(":scheme: {}", if https { "https" } else { "http" })
                }
                2 => {
                    encode::authority(&mut out, "a.example:80");
                    ":authority: a.example:80".to_owned()
                }
                3 => {
                    encode::path(&mut out, &path);
                    format!(":path: {path}")
                }
                4 => {
                    let status = StatusCode::from_u16(random.u16(100..1000)).unwrap();
                    encode::status(&mut out, status);
                    format!(":status: {}", status.as_str())
                }
                _ => {
                    let (name, value) = (*random.choice(&NAMES).unwrap(), text(random));
                    let mut value = HeaderValue::from_str(&value).unwrap();
                    value.set_sensitive(random.bool());
                    encode::field(&mut out, &HeaderName::from_static(name), &value);
                    let mark = if value.is_sensitive() || name == "cookie" { "!" } else { "" };
                    format!("{mark}{name}: {}", value.as_bytes().escape_ascii())
                }
            });
        }
        assert_eq!(lines(&mut decoder, &out), expected);
    }
}

/// A peer that indexes and encodes at random.
struct Peer {
    table: VecDeque<(&'static str, String)>,
    limit: usize,
}

impl Peer {
    fn evict(&mut self, room: usize) {
        let size = |table: &VecDeque<(&str, String)>| {
            table.iter().map(|(name, value)| name.len() + value.len() + 32).sum::<usize>()
        };
        while size(&self.table) > room {
            self.table.pop_back();
        }
    }

    fn field(&mut self, block: &mut Vec<u8>, random: &mut fastrand::Rng) -> String {
        if random.bool() && !self.table.is_empty() {
            let at = random.usize(..self.table.len());
            integer(block, 0x80, 7, 62 + at);
            let (name, value) = &self.table[at];
            return format!("{name}: {}", value.as_bytes().escape_ascii());
        }
        let (name, value) = (*random.choice(&NAMES).unwrap(), text(random));
        let kind = *random.choice(&[PLAIN, NEVER, ADD, ADD]).unwrap();
        let known = self.table.iter().position(|(known, _)| *known == name);
        let index = known.map_or(0, |at| 62 + at);
        integer(block, kind, if kind == ADD { 6 } else { 4 }, index);
        for text in [Some(name).filter(|_| index == 0), Some(&value)].into_iter().flatten() {
            if random.bool() {
                let coded = huffman::encode(text.as_bytes());
                integer(block, 0x80, 7, coded.len());
                block.extend(coded);
            } else {
                string(block, text.as_bytes());
            }
        }
        let line = format!("{name}: {}", value.as_bytes().escape_ascii());
        let size = name.len() + value.len() + 32;
        if kind == ADD {
            self.evict(self.limit.saturating_sub(size));
            if size <= self.limit {
                self.table.push_front((name, value));
            }
        }
        if kind == NEVER { format!("!{line}") } else { line }
    }
}

#[test]
fn the_table_stays_in_step_with_a_peer_that_does_as_it_likes() {
    for seed in 0..40 {
        let random = &mut fastrand::Rng::with_seed(seed);
        let mut decoder = Decoder::new(4096);
        let mut peer = Peer { table: VecDeque::new(), limit: 4096 };
        for _ in 0..20 {
            let mut block = Vec::new();
            if random.u8(..8) == 0 {
                let most = if random.bool() { 4096 } else { 300 };
                peer.limit = random.usize(..=most);
                peer.evict(peer.limit);
                integer(&mut block, 0x20, 5, peer.limit);
            }
            let fields: Vec<_> =
                (0..random.usize(..12)).map(|_| peer.field(&mut block, random)).collect();
            let limit = if random.u8(..4) == 0 { random.usize(..500) } else { usize::MAX };
            let (listed, whole) = decode(&mut decoder, &block, limit).unwrap();
            assert_eq!(listed, fields[..listed.len()]);
            assert_eq!(whole, listed.len() == fields.len());
        }
    }
}

#[test]
fn garbage_neither_panics_nor_outgrows_the_list_limit() {
    let random = &mut fastrand::Rng::with_seed(1);
    for _ in 0..20_000 {
        let mut decoder = Decoder::new(4096);
        for _ in 0..3 {
            let mut block: Vec<u8> = (0..random.usize(..80)).map(|_| random.u8(..)).collect();
            if random.bool() {
                // One large entry, then as many references to it as there is room for.
                block = [&[0x40, 1, b'a', 0x7f, 0xd9, 0x0e], &[b'v'; 2008][..], &block].concat();
                block.extend([0xbe; 200]);
            }
            let (mut bytes, mut fields) = (0, 0);
            let result = decoder.decode(&block, 5000, |field| {
                fields += 1;
                if let Field::Header(name, value) = field {
                    bytes += name.as_str().len() + value.len() + 32;
                }
            });
            assert!(bytes <= 5000 && fields <= 5000 / 32, "{result:?}");
            if result.is_err() {
                break;
            }
        }
    }
}
