use std::sync::LazyLock;

use super::super::huffman::{LENGTHS, decode};

/// The code of each symbol as a number: canonical, counted one by one.
static CODES: LazyLock<[u32; 257]> = LazyLock::new(|| {
    let mut order: Vec<_> = (0..257).collect();
    order.sort_by_key(|symbol| (LENGTHS[*symbol], *symbol));
    let (mut codes, mut next, mut length) = ([0; 257], 0, LENGTHS[order[0]]);
    for symbol in order {
        next <<= LENGTHS[symbol] - length;
        length = LENGTHS[symbol];
        codes[symbol] = next;
        next += 1;
    }
    codes
});

/// Encodes bit by bit.
pub(super) fn encode(text: &[u8]) -> Vec<u8> {
    let mut bits = Vec::new();
    for symbol in text.iter().map(|b| usize::from(*b)) {
        bits.extend((0..LENGTHS[symbol]).rev().map(|bit| (CODES[symbol] >> bit) & 1 == 1));
    }
    bits.resize(bits.len().next_multiple_of(8), true);
    let byte = |bits: &[bool]| bits.iter().fold(0, |byte, bit| (byte << 1) | u8::from(*bit));
    bits.chunks(8).map(byte).collect()
}

#[test]
fn the_code_is_complete() {
    let kraft: u64 = LENGTHS.iter().map(|length| 1u64 << (30 - length)).sum();
    assert_eq!(kraft, 1 << 30);
    // Some codes as Appendix B has them.
    for (symbol, expected) in
        [(b'0', 0x0), (b'a', 0x3), (b' ', 0x14), (b'X', 0xfc), (b'\\', 0x7fff0), (0, 0x1ff8)]
    {
        assert_eq!(CODES[usize::from(symbol)], expected);
    }
    assert_eq!((CODES[249], CODES[10], CODES[256]), (0xffffffe, 0x3ffffffc, 0x3fffffff));
}

#[test]
fn every_byte_comes_back_wherever_it_stands() {
    let out = &mut Vec::new();
    assert_eq!(decode(&[], out), Some(&[][..]));
    let all: Vec<_> = (0..=255).collect();
    assert_eq!(decode(&encode(&all), out), Some(&all[..]));
    for byte in 0..=255 {
        for before in 0..10 {
            for after in 0..4 {
                let (before, twice) = (&b"ab0:/~|e\"c"[before..], [byte; 2]);
                let text = [before, &twice[..1 + after / 2], &b"1zX"[after..]].concat();
                assert_eq!(decode(&encode(&text), out), Some(&text[..]));
            }
        }
    }
}

#[test]
fn padding_is_less_than_a_byte_of_ones() {
    let out = &mut Vec::new();
    // Every number of padding bits, before and after the last whole word.
    for length in 0..40 {
        let text = vec![b'a'; length];
        let coded = encode(&text);
        let padding = coded.len() * 8 - length * 5;
        assert!(decode(&[&coded[..], &[0xff]].concat(), out).is_none());
        for bit in 0..padding {
            let mut broken = coded.clone();
            *broken.last_mut().unwrap() ^= 1 << bit;
            // A zero in the padding is an error, or another symbol where a code has the room.
            let decoded = decode(&broken, out);
            assert!(decoded.is_none_or(|decoded| decoded.len() == length + 1), "{length} {bit}");
        }
    }
}
