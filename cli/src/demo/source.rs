//! The cargo: TPC-H rows, made sloppy on purpose and packed into batches.
//!
//! Everything is a function of scale and seed, and is made while it is sent;
//! only one parcel at a time is held. What is true of the cargo is taken from
//! the generator's typed rows in a pass of its own ([`Cargo::truth`]), never
//! from the text that was sent.

mod dirt;

use std::{fmt::Write as _, sync::LazyLock};

use bytes::Bytes;
use tpchgen::{
    distribution::Distributions,
    generators::{
        LineItem as TpchLineItem, LineItemGenerator, LineItemGeneratorIterator, Order as TpchOrder,
        OrderGenerator, OrderGeneratorIterator,
    },
    text::TextPool,
};

use self::dirt::Scribe;
use crate::etl::{
    batch::Tally,
    rows::{LineItem, Order, Row, Table, clean_text},
    store::Receipt,
};

/// The generator's output is cut into this many parts …
const PARTS: i32 = 20;
/// … of which each large upload takes so many, from the first on.
const PARTS_PER_UPLOAD: i32 = 4;
/// Large uploads. The line items of the remaining parts and all orders go in small batches.
pub(super) const UPLOADS: u32 = 3;
/// Text of a streamed upload is handed over in pieces of about this size.
const PIECE_BYTES: usize = 64 * 1024;
/// Orders at scale 1, and line items of an order on average.
const ORDERS: f64 = 1_500_000.0;
const ITEMS_PER_ORDER: f64 = 4.0;
/// Text of all rows at scale 1.
const BYTES: f64 = 0.9e9;

/// What comments are cut from. `dbgen` cuts them from 300 MiB of text, which
/// would cost that much memory and two seconds; all other columns are as its own.
static COMMENTS: LazyLock<TextPool> =
    LazyLock::new(|| TextPool::new(8 << 20, Distributions::static_default()));

/// What is to be carried.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cargo {
    pub(super) scale: f64,
    pub(super) seed: u64,
}

/// A small batch, ready to be sent.
#[derive(Clone, Debug)]
pub(super) struct Parcel {
    pub(super) table: Table,
    pub(super) id: String,
    pub(super) text: Bytes,
    /// What an honest worker must answer.
    pub(super) expected: Receipt,
}

/// What is true of all rows of the source.
#[derive(Debug, Default)]
pub(super) struct Truth {
    pub(super) line_items: Receipt,
    pub(super) orders: Receipt,
    pub(super) keys: Keys,
}

impl Default for Receipt {
    fn default() -> Self {
        Tally::default().receipt()
    }
}

/// A set of row keys: a byte for each order, a bit for each of its lines (0 is the order itself).
#[derive(Debug, Default)]
pub(super) struct Keys {
    bits: Vec<u8>,
}

impl Keys {
    /// Order keys of up to scale 100 fit; whatever lies beyond was never sent.
    const MAX: usize = 600_000_000;

    /// Puts a key in; false when it was there already, or can be no key of the source.
    pub(super) fn insert(&mut self, (order, line): (i64, i32)) -> bool {
        let (Ok(index), 0..=7) = (usize::try_from(order), line) else { return false };
        if index > Self::MAX {
            return false;
        }
        if index >= self.bits.len() {
            self.bits.resize(index + 1, 0);
        }
        let bit = 1 << line;
        let new = self.bits[index] & bit == 0;
        self.bits[index] |= bit;
        new
    }

    /// How many keys are here and not in `other`.
    pub(super) fn missing_in(&self, other: &Self) -> u64 {
        let there = other.bits.iter().chain(std::iter::repeat(&0));
        self.bits
            .iter()
            .zip(there)
            .map(|(here, there)| u64::from((here & !there).count_ones()))
            .sum()
    }
}

impl Cargo {
    /// Expected rows that go in small batches; the exact number shows only when they are made.
    pub(super) fn small_rows(&self) -> u64 {
        let small_parts = f64::from(PARTS - PARTS_PER_UPLOAD * UPLOADS as i32) / f64::from(PARTS);
        (ORDERS * self.scale * (1.0 + ITEMS_PER_ORDER * small_parts)) as u64
    }

    /// Rows of a small batch on average: some thousand batches, or some hundred of little data.
    fn mean_rows(&self) -> u64 {
        let rows = self.small_rows();
        (rows / 6500).clamp(60, 4000).min((rows / 400).max(8))
    }

    /// Expected number of small batches.
    pub(super) fn small_batches(&self) -> u64 {
        self.small_rows() / self.mean_rows()
    }

    /// Expected rows altogether.
    pub(super) fn rows(&self) -> u64 {
        (ORDERS * self.scale * (1.0 + ITEMS_PER_ORDER)) as u64
    }

    fn items(&self, part: i32, parts: i32) -> LineItemGeneratorIterator<'static> {
        let words = Distributions::static_default();
        LineItemGenerator::new_with_distributions_and_text_pool(
            self.scale, part, parts, words, &COMMENTS,
        )
        .iter()
    }

    fn orders(&self, part: i32, parts: i32) -> OrderGeneratorIterator<'static> {
        let words = Distributions::static_default();
        OrderGenerator::new_with_distributions_and_text_pool(
            self.scale, part, parts, words, &COMMENTS,
        )
        .iter()
    }

    /// Expected size of the text in bytes.
    pub(super) fn bytes(&self) -> f64 {
        BYTES * self.scale
    }

    /// Makes every row once and notes what is true of them.
    pub(super) fn truth(&self) -> Truth {
        let mut keys = Keys::default();
        let (mut items, mut orders) = (Tally::default(), Tally::default());
        for item in self.items(1, 1) {
            let row = Row::LineItem(typed_item(&item));
            keys.insert(row.key());
            items.add(&row);
        }
        let mut clerk = String::new();
        for order in self.orders(1, 1) {
            let row = Row::Order(typed_order(&order, &mut clerk));
            keys.insert(row.key());
            orders.add(&row);
        }
        Truth { line_items: items.receipt(), orders: orders.receipt(), keys }
    }

    /// Makes the small batches, until `send` says that nobody wants more.
    pub(super) fn small(&self, mut send: impl FnMut(Parcel) -> bool) {
        let first_small = PARTS_PER_UPLOAD * UPLOADS as i32 + 1;
        let mut items = (first_small..=PARTS).flat_map(|part| self.items(part, PARTS)).peekable();
        let mut orders = (1..=PARTS).flat_map(|part| self.orders(part, PARTS)).peekable();
        let mut random = fastrand::Rng::with_seed(self.seed);
        let mean = self.mean_rows() as usize;
        for number in 0_u64.. {
            let rows = random.usize(mean / 4..=mean * 7 / 4);
            let orders_now = match (items.peek(), orders.peek()) {
                (None, None) => return,
                (None, Some(_)) => true,
                (Some(_), None) => false,
                (Some(_), Some(_)) => random.u8(0..13) >= 8,
            };
            let mut packer = Packer::new(self.seed ^ number);
            let table = if orders_now {
                orders.by_ref().take(rows).for_each(|order| packer.order(&order));
                Table::Orders
            } else {
                items.by_ref().take(rows).for_each(|item| packer.item(&item));
                Table::LineItem
            };
            let Packer { tally, scribe } = packer;
            let parcel = Parcel {
                table,
                id: format!("{table}-{number:06}"),
                text: scribe.into_text().into(),
                expected: tally.receipt(),
            };
            if !send(parcel) {
                return;
            }
        }
    }

    /// Makes a large upload of line items, piece by piece, until `send` says
    /// that nobody wants more; says what an honest worker must answer.
    pub(super) fn large(&self, index: u32, mut send: impl FnMut(Bytes) -> bool) -> Receipt {
        let first = index as i32 * PARTS_PER_UPLOAD + 1;
        let mut packer = Packer::new(self.seed.rotate_left(32) ^ u64::from(index));
        for part in first..first + PARTS_PER_UPLOAD {
            for item in self.items(part, PARTS) {
                packer.item(&item);
                if packer.scribe.len() >= PIECE_BYTES && !send(packer.scribe.take().into()) {
                    return packer.tally.receipt();
                }
            }
        }
        let last = packer.scribe.take();
        if !last.is_empty() {
            send(last.into());
        }
        packer.tally.receipt()
    }
}

/// Writes rows as text and notes what they truly are.
struct Packer {
    tally: Tally,
    scribe: Scribe,
}

impl Packer {
    fn new(seed: u64) -> Self {
        Self { tally: Tally::default(), scribe: Scribe::new(seed) }
    }

    fn item(&mut self, item: &TpchLineItem<'_>) {
        self.tally.add(&Row::LineItem(typed_item(item)));
        self.scribe.line_item(item);
    }

    fn order(&mut self, order: &TpchOrder<'_>) {
        let mut clerk = String::new();
        self.tally.add(&Row::Order(typed_order(order, &mut clerk)));
        self.scribe.order(order);
    }
}

fn typed_item<'a>(item: &TpchLineItem<'a>) -> LineItem<'a> {
    LineItem {
        order_key: item.l_orderkey,
        part_key: item.l_partkey,
        supplier_key: item.l_suppkey,
        line_number: item.l_linenumber,
        quantity: item.l_quantity * 100,
        extended_price: item.l_extendedprice.into_inner(),
        discount: item.l_discount.into_inner(),
        tax: item.l_tax.into_inner(),
        return_flag: item.l_returnflag,
        line_status: item.l_linestatus,
        ship_date: item.l_shipdate.to_unix_epoch(),
        commit_date: item.l_commitdate.to_unix_epoch(),
        receipt_date: item.l_receiptdate.to_unix_epoch(),
        ship_instructions: item.l_shipinstruct,
        ship_mode: item.l_shipmode,
        comment: clean_text(item.l_comment),
    }
}

fn typed_order<'a>(order: &TpchOrder<'a>, clerk: &'a mut String) -> Order<'a> {
    clerk.clear();
    // writing to a String cannot fail
    let _ = write!(clerk, "{}", order.o_clerk);
    Order {
        order_key: order.o_orderkey,
        customer_key: order.o_custkey,
        status: order.o_orderstatus.as_str(),
        total_price: order.o_totalprice.into_inner(),
        order_date: order.o_orderdate.to_unix_epoch(),
        priority: order.o_orderpriority,
        clerk,
        ship_priority: order.o_shippriority,
        comment: clean_text(order.o_comment),
    }
}

#[cfg(test)]
mod tests;
