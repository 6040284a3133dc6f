//! The rows of the demonstration: parsed from text, cleaned, and put in one canonical form.
//!
//! A row arrives as a line of `|`-separated fields, as sloppy as real feeds are.
//! Cleaning is deterministic and idempotent:
//! - white space around a field goes, and so does a carriage return at the line's end;
//! - words of a fixed vocabulary (flags, ship modes, priorities) are matched
//!   without regard to case or repeated blanks and become the vocabulary's spelling;
//! - amounts may carry a plus sign, thousands separators and superfluous zeros;
//! - dates may be written with `-`, `/` or `.` between year, month and day.
//!
//! Anything else is an error that names the column; nothing is guessed.

use std::fmt;

/// Longest accepted line in bytes.
pub const MAX_LINE_BYTES: usize = 4096;

const FLAGS: &[&str] = &["A", "N", "R"];
const LINE_STATES: &[&str] = &["F", "O"];
const ORDER_STATES: &[&str] = &["F", "O", "P"];
const SHIP_INSTRUCTIONS: &[&str] =
    &["DELIVER IN PERSON", "COLLECT COD", "NONE", "TAKE BACK RETURN"];
const SHIP_MODES: &[&str] = &["REG AIR", "AIR", "RAIL", "SHIP", "TRUCK", "MAIL", "FOB"];
const PRIORITIES: &[&str] = &["1-URGENT", "2-HIGH", "3-MEDIUM", "4-NOT SPECIFIED", "5-LOW"];

const LINE_ITEM_COLUMNS: &[(&str, Kind)] = &[
    ("l_orderkey", Kind::Long),
    ("l_partkey", Kind::Long),
    ("l_suppkey", Kind::Long),
    ("l_linenumber", Kind::Int),
    ("l_quantity", Kind::Decimal),
    ("l_extendedprice", Kind::Decimal),
    ("l_discount", Kind::Decimal),
    ("l_tax", Kind::Decimal),
    ("l_returnflag", Kind::Text),
    ("l_linestatus", Kind::Text),
    ("l_shipdate", Kind::Date),
    ("l_commitdate", Kind::Date),
    ("l_receiptdate", Kind::Date),
    ("l_shipinstruct", Kind::Text),
    ("l_shipmode", Kind::Text),
    ("l_comment", Kind::Text),
];
const ORDER_COLUMNS: &[(&str, Kind)] = &[
    ("o_orderkey", Kind::Long),
    ("o_custkey", Kind::Long),
    ("o_orderstatus", Kind::Text),
    ("o_totalprice", Kind::Decimal),
    ("o_orderdate", Kind::Date),
    ("o_orderpriority", Kind::Text),
    ("o_clerk", Kind::Text),
    ("o_shippriority", Kind::Int),
    ("o_comment", Kind::Text),
];

/// The two tables that are carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// TPC-H `lineitem`.
    LineItem,
    /// TPC-H `orders`.
    Orders,
}

impl Table {
    /// Both, in order of size.
    pub const ALL: [Self; 2] = [Self::LineItem, Self::Orders];

    /// The name in paths, folders and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LineItem => "lineitem",
            Self::Orders => "orders",
        }
    }

    /// Its columns by TPC-H name.
    pub const fn columns(self) -> &'static [(&'static str, Kind)] {
        match self {
            Self::LineItem => LINE_ITEM_COLUMNS,
            Self::Orders => ORDER_COLUMNS,
        }
    }

    /// The table of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.name() == name)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A row of TPC-H `lineitem`. Amounts are in hundredths, dates in days since 1970-01-01.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineItem<'a> {
    /// `l_orderkey`
    pub order_key: i64,
    /// `l_partkey`
    pub part_key: i64,
    /// `l_suppkey`
    pub supplier_key: i64,
    /// `l_linenumber`, 1 to 7
    pub line_number: i32,
    /// `l_quantity`
    pub quantity: i64,
    /// `l_extendedprice`
    pub extended_price: i64,
    /// `l_discount`
    pub discount: i64,
    /// `l_tax`
    pub tax: i64,
    /// `l_returnflag`
    pub return_flag: &'a str,
    /// `l_linestatus`
    pub line_status: &'a str,
    /// `l_shipdate`
    pub ship_date: i32,
    /// `l_commitdate`
    pub commit_date: i32,
    /// `l_receiptdate`
    pub receipt_date: i32,
    /// `l_shipinstruct`
    pub ship_instructions: &'a str,
    /// `l_shipmode`
    pub ship_mode: &'a str,
    /// `l_comment`
    pub comment: &'a str,
}

/// A row of TPC-H `orders`. Amounts are in hundredths, dates in days since 1970-01-01.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order<'a> {
    /// `o_orderkey`
    pub order_key: i64,
    /// `o_custkey`
    pub customer_key: i64,
    /// `o_orderstatus`
    pub status: &'a str,
    /// `o_totalprice`
    pub total_price: i64,
    /// `o_orderdate`
    pub order_date: i32,
    /// `o_orderpriority`
    pub priority: &'a str,
    /// `o_clerk`
    pub clerk: &'a str,
    /// `o_shippriority`
    pub ship_priority: i32,
    /// `o_comment`
    pub comment: &'a str,
}

/// A row of either table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row<'a> {
    /// Of `lineitem`.
    LineItem(LineItem<'a>),
    /// Of `orders`.
    Order(Order<'a>),
}

/// A value of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// Key or amount.
    Long(i64),
    /// Small number or date.
    Int(i32),
    /// Text.
    Text(&'a str),
}

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A key.
    Long,
    /// An amount in hundredths.
    Decimal,
    /// A small number.
    Int,
    /// Days since 1970-01-01.
    Date,
    /// Text.
    Text,
}

/// A field that cannot be cleaned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{column}: {found:?} is not {expected}")]
pub struct RowError {
    /// The column, by its TPC-H name.
    pub column: &'static str,
    /// What was there, cut to 40 characters.
    pub found: String,
    /// What is accepted.
    pub expected: String,
}

impl<'a> Row<'a> {
    /// Parses and cleans one line, with or without its line end and the closing `|`.
    ///
    /// # Errors
    /// When a field is missing, superfluous or cannot be cleaned.
    pub fn parse(table: Table, line: &'a str) -> Result<Self, RowError> {
        match table {
            Table::LineItem => LineItem::parse(line).map(Self::LineItem),
            Table::Orders => Order::parse(line).map(Self::Order),
        }
    }

    /// `l_orderkey` or `o_orderkey`, and the line number (0 for an order): unique over both tables.
    pub fn key(&self) -> (i64, i32) {
        match self {
            Self::LineItem(row) => (row.order_key, row.line_number),
            Self::Order(row) => (row.order_key, 0),
        }
    }

    /// Gives every value, in the order of [`Table::columns`].
    pub fn each_value(&self, mut take: impl FnMut(Value<'a>)) {
        match self {
            Self::LineItem(row) => row.values().into_iter().for_each(&mut take),
            Self::Order(row) => row.values().into_iter().for_each(&mut take),
        }
    }

    /// Appends the one form in which equal rows are equal bytes, and unequal ones are not.
    pub fn canonical(&self, out: &mut Vec<u8>) {
        out.push(match self {
            Self::LineItem(_) => b'L',
            Self::Order(_) => b'O',
        });
        self.each_value(|value| match value {
            Value::Long(number) => out.extend_from_slice(&number.to_le_bytes()),
            Value::Int(number) => out.extend_from_slice(&number.to_le_bytes()),
            Value::Text(text) => {
                out.extend_from_slice(&(text.len() as u64).to_le_bytes());
                out.extend_from_slice(text.as_bytes());
            }
        });
    }
}

impl<'a> LineItem<'a> {
    fn parse(line: &'a str) -> Result<Self, RowError> {
        let mut fields = Fields::of(line);
        let row = Self {
            order_key: fields.integer("l_orderkey")?,
            part_key: fields.integer("l_partkey")?,
            supplier_key: fields.integer("l_suppkey")?,
            line_number: fields.integer("l_linenumber")?,
            quantity: fields.hundredths("l_quantity")?,
            extended_price: fields.hundredths("l_extendedprice")?,
            discount: fields.hundredths("l_discount")?,
            tax: fields.hundredths("l_tax")?,
            return_flag: fields.word("l_returnflag", FLAGS)?,
            line_status: fields.word("l_linestatus", LINE_STATES)?,
            ship_date: fields.date("l_shipdate")?,
            commit_date: fields.date("l_commitdate")?,
            receipt_date: fields.date("l_receiptdate")?,
            ship_instructions: fields.word("l_shipinstruct", SHIP_INSTRUCTIONS)?,
            ship_mode: fields.word("l_shipmode", SHIP_MODES)?,
            comment: fields.text("l_comment")?,
        };
        fields.end().map(|()| row)
    }

    fn values(&self) -> [Value<'a>; 16] {
        [
            Value::Long(self.order_key),
            Value::Long(self.part_key),
            Value::Long(self.supplier_key),
            Value::Int(self.line_number),
            Value::Long(self.quantity),
            Value::Long(self.extended_price),
            Value::Long(self.discount),
            Value::Long(self.tax),
            Value::Text(self.return_flag),
            Value::Text(self.line_status),
            Value::Int(self.ship_date),
            Value::Int(self.commit_date),
            Value::Int(self.receipt_date),
            Value::Text(self.ship_instructions),
            Value::Text(self.ship_mode),
            Value::Text(self.comment),
        ]
    }
}

impl<'a> Order<'a> {
    fn parse(line: &'a str) -> Result<Self, RowError> {
        let mut fields = Fields::of(line);
        let row = Self {
            order_key: fields.integer("o_orderkey")?,
            customer_key: fields.integer("o_custkey")?,
            status: fields.word("o_orderstatus", ORDER_STATES)?,
            total_price: fields.hundredths("o_totalprice")?,
            order_date: fields.date("o_orderdate")?,
            priority: fields.word("o_orderpriority", PRIORITIES)?,
            clerk: fields.text("o_clerk")?,
            ship_priority: fields.integer("o_shippriority")?,
            comment: fields.text("o_comment")?,
        };
        fields.end().map(|()| row)
    }

    fn values(&self) -> [Value<'a>; 9] {
        [
            Value::Long(self.order_key),
            Value::Long(self.customer_key),
            Value::Text(self.status),
            Value::Long(self.total_price),
            Value::Int(self.order_date),
            Value::Text(self.priority),
            Value::Text(self.clerk),
            Value::Int(self.ship_priority),
            Value::Text(self.comment),
        ]
    }
}

/// Cleans free text: only the white space around it goes.
pub fn clean_text(text: &str) -> &str {
    text.trim_ascii()
}

/// The fields of a line, taken from the left.
struct Fields<'a> {
    rest: Option<&'a str>,
}

impl<'a> Fields<'a> {
    fn of(line: &'a str) -> Self {
        let line = line.trim_ascii();
        Self { rest: Some(line.strip_suffix('|').unwrap_or(line)) }
    }

    fn text(&mut self, column: &'static str) -> Result<&'a str, RowError> {
        let rest = self.rest.ok_or_else(|| fault(column, "", "there: the line ends before it"))?;
        let (field, rest) = match rest.split_once('|') {
            Some((field, rest)) => (field, Some(rest)),
            None => (rest, None),
        };
        self.rest = rest;
        Ok(clean_text(field))
    }

    fn integer<T: std::str::FromStr>(&mut self, column: &'static str) -> Result<T, RowError> {
        let text = self.text(column)?;
        text.parse().map_err(|_| fault(column, text, "an integer"))
    }

    fn hundredths(&mut self, column: &'static str) -> Result<i64, RowError> {
        let text = self.text(column)?;
        hundredths(text).ok_or_else(|| fault(column, text, "an amount with at most two decimals"))
    }

    fn date(&mut self, column: &'static str) -> Result<i32, RowError> {
        let text = self.text(column)?;
        date(text).ok_or_else(|| fault(column, text, "a date like 1996-03-13"))
    }

    fn word(
        &mut self,
        column: &'static str,
        vocabulary: &[&'static str],
    ) -> Result<&'static str, RowError> {
        let text = self.text(column)?;
        vocabulary
            .iter()
            .find(|word| same_words(word, text))
            .copied()
            .ok_or_else(|| fault(column, text, &format!("one of {}", vocabulary.join(", "))))
    }

    fn end(&self) -> Result<(), RowError> {
        match self.rest {
            None => Ok(()),
            Some(rest) => Err(fault("end of line", rest, "expected here: too many fields")),
        }
    }
}

fn fault(column: &'static str, found: &str, expected: &str) -> RowError {
    RowError { column, found: found.chars().take(40).collect(), expected: expected.to_owned() }
}

fn same_words(a: &str, b: &str) -> bool {
    let mut left = a.split_ascii_whitespace();
    let mut right = b.split_ascii_whitespace();
    loop {
        match (left.next(), right.next()) {
            (None, None) => return true,
            (Some(x), Some(y)) if x.eq_ignore_ascii_case(y) => {}
            _ => return false,
        }
    }
}

/// `1,234.5` is 123450. Decimals beyond the second must be zero.
fn hundredths(text: &str) -> Option<i64> {
    let (sign, digits) = match text.as_bytes().first()? {
        b'-' => (-1, &text[1..]),
        b'+' => (1, &text[1..]),
        _ => (1, text),
    };
    let (whole, decimals) = digits.split_once('.').unwrap_or((digits, ""));
    let mut value: i64 = 0;
    let mut seen = false;
    for byte in whole.bytes().filter(|b| *b != b',') {
        seen = true;
        value = value.checked_mul(10)?.checked_add(i64::from(digit(byte)?))?;
    }
    let mut places = decimals.bytes();
    for _ in 0..2 {
        let place = places.next().map_or(Some(0), digit)?;
        value = value.checked_mul(10)?.checked_add(i64::from(place))?;
    }
    (seen && places.all(|b| b == b'0')).then_some(sign * value)
}

fn digit(byte: u8) -> Option<u8> {
    byte.is_ascii_digit().then(|| byte - b'0')
}

/// Days since 1970-01-01 of `YYYY-MM-DD`; `/` and `.` are taken for `-`.
fn date(text: &str) -> Option<i32> {
    let mut parts = text.split(['-', '/', '.']);
    let mut part = |len: usize| {
        let text = parts.next()?;
        (text.len() == len && text.bytes().all(|b| b.is_ascii_digit()))
            .then(|| text.parse::<i32>().ok())
            .flatten()
    };
    let (year, month, day) = (part(4)?, part(2)?, part(2)?);
    if parts.next().is_some() || !(1..=12).contains(&month) {
        return None;
    }
    (1..=days_in(year, month)).contains(&day).then(|| days_since_epoch(year, month, day))
}

fn days_in(year: i32, month: i32) -> i32 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Counts whole 400-year eras of years that begin in March, so that the leap day comes last.
fn days_since_epoch(year: i32, month: i32, day: i32) -> i32 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests;
