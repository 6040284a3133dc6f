//! Writes rows as text, as sloppily as real feeds do: one row in eight has a
//! field that needs cleaning. Which one, and how, follows from the seed.

use std::fmt::{Display, Write as _};

use tpchgen::generators::{LineItem, Order};

/// One row in this many is dirty.
const DIRTY_ONE_IN: u32 = 8;

/// How a field may be dirtied without changing what it means.
#[derive(Clone, Copy)]
enum Kind {
    /// White space around it.
    Plain,
    /// Plus sign, thousands separators, superfluous zeros.
    Amount,
    /// Other separators.
    Date,
    /// Lower case, repeated blanks.
    Word,
}

/// Writes lines.
pub(super) struct Scribe {
    random: fastrand::Rng,
    text: String,
    field: String,
    /// Of the current line: the field to dirty; at or beyond the last, the line end or nothing.
    dirty: usize,
    position: usize,
}

impl Scribe {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed),
            text: String::new(),
            field: String::new(),
            dirty: usize::MAX,
            position: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.text.len()
    }

    /// What was written since the last call.
    pub(super) fn take(&mut self) -> String {
        std::mem::take(&mut self.text)
    }

    pub(super) fn into_text(self) -> String {
        self.text
    }

    pub(super) fn line_item(&mut self, row: &LineItem<'_>) {
        self.begin(16);
        for key in [row.l_orderkey, row.l_partkey, row.l_suppkey, i64::from(row.l_linenumber)] {
            self.put(Kind::Plain, key);
        }
        self.put(Kind::Amount, row.l_quantity);
        for amount in [row.l_extendedprice, row.l_discount, row.l_tax] {
            self.put(Kind::Amount, amount);
        }
        self.put(Kind::Word, row.l_returnflag);
        self.put(Kind::Word, row.l_linestatus);
        for date in [row.l_shipdate, row.l_commitdate, row.l_receiptdate] {
            self.put(Kind::Date, date);
        }
        self.put(Kind::Word, row.l_shipinstruct);
        self.put(Kind::Word, row.l_shipmode);
        self.put(Kind::Plain, row.l_comment);
        self.end(16);
    }

    pub(super) fn order(&mut self, row: &Order<'_>) {
        self.begin(9);
        self.put(Kind::Plain, row.o_orderkey);
        self.put(Kind::Plain, row.o_custkey);
        self.put(Kind::Word, row.o_orderstatus);
        self.put(Kind::Amount, row.o_totalprice);
        self.put(Kind::Date, row.o_orderdate);
        self.put(Kind::Word, row.o_orderpriority);
        self.put(Kind::Plain, row.o_clerk);
        self.put(Kind::Plain, row.o_shippriority);
        self.put(Kind::Plain, row.o_comment);
        self.end(9);
    }

    fn begin(&mut self, fields: usize) {
        self.position = 0;
        let dirty = self.random.u32(0..DIRTY_ONE_IN) == 0;
        self.dirty = if dirty { self.random.usize(0..=fields) } else { usize::MAX };
    }

    fn put(&mut self, kind: Kind, value: impl Display) {
        // writing to a String cannot fail
        if self.position == self.dirty {
            self.field.clear();
            let _ = write!(self.field, "{value}");
            self.smudge(kind);
        } else {
            let _ = write!(self.text, "{value}");
        }
        self.text.push('|');
        self.position += 1;
    }

    fn end(&mut self, fields: usize) {
        self.text.push_str(if self.dirty == fields { " \r\n" } else { "\n" });
    }

    /// Writes the field in one of the ways that mean the same.
    fn smudge(&mut self, kind: Kind) {
        let Self { random, text, field, .. } = self;
        match (kind, random.u8(0..3)) {
            (Kind::Amount, 0) => {
                text.push('+');
                text.push_str(field);
            }
            (Kind::Amount, 1) => {
                text.push_str(field);
                text.push_str(if field.contains('.') { "00" } else { ".0" });
            }
            (Kind::Amount, _) => separate_thousands(field, text),
            (Kind::Date, way) => {
                text.push_str(&field.replace('-', if way == 0 { "." } else { "/" }));
            }
            (Kind::Word, 0) => text.push_str(&field.to_ascii_lowercase()),
            (Kind::Word, 1) => text.push_str(&field.replace(' ', "  ")),
            (Kind::Word | Kind::Plain, 2) => {
                text.push_str(field);
                text.push('\t');
            }
            (Kind::Word | Kind::Plain, _) => {
                text.push_str("  ");
                text.push_str(field);
                text.push(' ');
            }
        }
    }
}

fn separate_thousands(field: &str, text: &mut String) {
    let whole = field.find('.').unwrap_or(field.len());
    for (index, digit) in field.char_indices() {
        let first = index == 0 || !field.as_bytes()[index - 1].is_ascii_digit();
        if index < whole && !first && (whole - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
}

#[cfg(test)]
mod tests {
    use super::separate_thousands;

    #[test]
    fn thousands() {
        for (field, expected) in [
            ("1234567.89", "1,234,567.89"),
            ("123", "123"),
            ("-1234.50", "-1,234.50"),
            ("-123456.00", "-123,456.00"),
        ] {
            let mut text = String::new();
            separate_thousands(field, &mut text);
            assert_eq!(text, expected);
        }
    }
}
