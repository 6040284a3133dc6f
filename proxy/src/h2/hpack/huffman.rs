//! The Huffman code of RFC 7541 Appendix B. It is canonical: the lengths of its codes say it all.

/// Decodes `text` into the front of `out`, which grows where needed; `None` when `text` holds the
/// end-of-string code, or ends in anything but up to seven ones (§5.2).
pub(super) fn decode<'o>(text: &[u8], out: &'o mut Vec<u8>) -> Option<&'o [u8]> {
    // Every step writes two bytes, though it may count only one.
    let most = text.len() * 8 / SHORTEST + 2;
    if out.len() < most {
        out.resize(most, 0);
    }
    let mut length = 0;
    let mut at = 0; // in bits
    while let Some(word) = text.get(at / 8..).and_then(|rest| rest.first_chunk()) {
        let mut bits = u64::from_be_bytes(*word) << (at % 8);
        let mut left = 64 - at % 8;
        while left >= STEP_BITS {
            let step = &STEPS[(bits >> (64 - STEP_BITS)) as usize];
            let used = if step.count > 0 {
                out[length..length + 2].copy_from_slice(&step.symbols);
                length += usize::from(step.count);
                usize::from(step.bits)
            } else if left >= LONGEST {
                let (symbol, used) = long(bits)?;
                out[length] = symbol;
                length += 1;
                used
            } else {
                break;
            };
            bits <<= used;
            left -= used;
            at += used;
        }
    }
    length = finish(&text[at / 8..], at % 8, out, length)?;
    Some(&out[..length])
}

/// Decodes the last bytes, fewer than eight, from bit `skip` on; the length of all that is decoded.
fn finish(rest: &[u8], skip: usize, out: &mut [u8], mut length: usize) -> Option<usize> {
    // Ones behind the end: no code ends within them that did not end before.
    let word = rest.iter().rev().fold(u64::MAX, |word, b| (word >> 8) | (u64::from(*b) << 56));
    let mut bits = word << skip;
    let mut left = rest.len() * 8 - skip;
    loop {
        let step = &STEPS[(bits >> (64 - STEP_BITS)) as usize];
        let used = if step.count > 0 && usize::from(step.bits) <= left {
            out[length..length + 2].copy_from_slice(&step.symbols);
            length += usize::from(step.count);
            usize::from(step.bits)
        } else {
            let (symbol, used) = if step.count > 0 {
                (step.symbols[0], usize::from(LENGTHS[usize::from(step.symbols[0])]))
            } else if left >= STEP_BITS {
                long(bits)?
            } else {
                break;
            };
            if used > left {
                break;
            }
            out[length] = symbol;
            length += 1;
            used
        };
        bits <<= used;
        left -= used;
    }
    let padding = !(u64::MAX >> left);
    (left < 8 && bits & padding == padding).then_some(length)
}

/// Decodes one code that is longer than a step from the top of `bits`; `None` for end-of-string.
#[cold]
fn long(bits: u64) -> Option<(u8, usize)> {
    let (symbol, length) = decode_one(bits);
    Some((u8::try_from(symbol).ok()?, length))
}

/// What the top bits of a word decode to at once.
#[derive(Clone, Copy)]
struct Step {
    symbols: [u8; 2],
    /// How many of `symbols` count; 0 when not even one code fits.
    count: u8,
    /// The length of their codes together.
    bits: u8,
}

/// Two of the most frequent codes fit.
const STEP_BITS: usize = 12;
const SHORTEST: usize = 5;
const LONGEST: usize = 30;

static STEPS: [Step; 1 << STEP_BITS] = steps();

const fn steps() -> [Step; 1 << STEP_BITS] {
    let mut steps = [Step { symbols: [0; 2], count: 0, bits: 0 }; 1 << STEP_BITS];
    let mut top = 0;
    while top < steps.len() {
        let mut step = steps[top];
        while step.count < 2 && (step.bits as usize) < STEP_BITS {
            let bits = (top as u64) << (64 - STEP_BITS + step.bits as usize);
            let (symbol, length) = decode_one(bits);
            if step.bits as usize + length > STEP_BITS {
                break;
            }
            step.symbols[step.count as usize] = symbol as u8;
            step.count += 1;
            step.bits += length as u8;
        }
        steps[top] = step;
        top += 1;
    }
    steps
}

/// The symbol whose code is at the top of `bits`, 256 for end-of-string, and its length.
const fn decode_one(bits: u64) -> (u16, usize) {
    let mut length = SHORTEST;
    while length < LONGEST {
        let code = (bits >> (64 - length)) as u32;
        if code < CODES.ends[length] {
            break;
        }
        length += 1;
    }
    let code = (bits >> (64 - length)) as u32;
    (CODES.symbols[CODES.offset(length, code)], length)
}

/// The code, ordered by length.
struct Codes {
    /// All symbols, by the length of their codes, then by value.
    symbols: [u16; 257],
    /// One more than the last code of each length.
    ends: [u32; LONGEST + 1],
    /// Where in `symbols` the codes of a length end.
    places: [usize; LONGEST + 1],
}

static CODES: Codes = codes();

impl Codes {
    const fn offset(&self, length: usize, code: u32) -> usize {
        self.places[length] - (self.ends[length] - code) as usize
    }
}

const fn codes() -> Codes {
    let mut codes = Codes { symbols: [0; 257], ends: [0; LONGEST + 1], places: [0; LONGEST + 1] };
    let (mut next, mut place, mut length) = (0, 0, 1);
    while length <= LONGEST {
        next <<= 1;
        let mut symbol = 0;
        while symbol < 257 {
            if LENGTHS[symbol] as usize == length {
                codes.symbols[place] = symbol as u16;
                place += 1;
                next += 1;
            }
            symbol += 1;
        }
        codes.ends[length] = next;
        codes.places[length] = place;
        length += 1;
    }
    codes
}

/// The length of each symbol's code, in bits; the last is end-of-string.
#[rustfmt::skip]
pub(super) const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
     6, 10, 10, 12, 13,  6,  8, 11, 10, 10,  8, 11,  8,  6,  6,  6,
     5,  5,  5,  6,  6,  6,  6,  6,  6,  6,  7,  8, 15,  6, 12, 10,
    13,  6,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,
     7,  7,  7,  7,  7,  7,  7,  7,  8,  7,  8, 13, 19, 13, 14,  6,
    15,  5,  6,  5,  6,  5,  6,  6,  6,  5,  7,  7,  6,  6,  6,  5,
     6,  7,  6,  5,  5,  6,  7,  7,  7,  7,  7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];
