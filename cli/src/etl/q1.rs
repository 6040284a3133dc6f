//! TPC-H query 1, the pricing summary report, in exact integer arithmetic.
//!
//! ```sql
//! select l_returnflag, l_linestatus, sum(l_quantity), sum(l_extendedprice),
//!        sum(l_extendedprice * (1 - l_discount)),
//!        sum(l_extendedprice * (1 - l_discount) * (1 + l_tax)),
//!        avg(l_quantity), avg(l_extendedprice), avg(l_discount), count(*)
//! from lineitem where l_shipdate <= date '1998-12-01' - interval '90' day
//! group by l_returnflag, l_linestatus order by l_returnflag, l_linestatus
//! ```

use std::{collections::BTreeMap, fmt, str::FromStr};

use super::rows::LineItem;

/// 1998-09-02 in days since 1970-01-01.
const LAST_SHIP_DATE: i32 = 10_471;

/// The answer, or a part of it: parts add up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Q1 {
    groups: BTreeMap<(u8, u8), Sums>,
}

/// One line of the answer. The powers of ten say how many decimals a sum carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Σ quantity, 10⁻².
    pub quantity: i128,
    /// Σ extended price, 10⁻².
    pub base_price: i128,
    /// Σ price after discount, 10⁻⁴.
    pub discounted_price: i128,
    /// Σ price after discount and tax, 10⁻⁶.
    pub charge: i128,
    /// Σ discount, 10⁻².
    pub discount: i128,
    /// Rows.
    pub count: i128,
}

/// A text that is no [`Q1`].
#[derive(Debug, thiserror::Error)]
#[error("not an aggregate of Q1: {0:?}")]
pub struct Q1Error(String);

impl Q1 {
    /// Takes a row in.
    pub fn add(&mut self, row: &LineItem<'_>) {
        if row.ship_date > LAST_SHIP_DATE {
            return;
        }
        let group = (initial(row.return_flag), initial(row.line_status));
        let sums = self.groups.entry(group).or_default();
        let price = i128::from(row.extended_price);
        let discounted = price * (100 - i128::from(row.discount));
        sums.quantity += i128::from(row.quantity);
        sums.base_price += price;
        sums.discounted_price += discounted;
        sums.charge += discounted * (100 + i128::from(row.tax));
        sums.discount += i128::from(row.discount);
        sums.count += 1;
    }

    /// Takes another part in.
    pub fn merge(&mut self, other: &Self) {
        for (group, from) in &other.groups {
            let sums = self.groups.entry(*group).or_default();
            sums.quantity += from.quantity;
            sums.base_price += from.base_price;
            sums.discounted_price += from.discounted_price;
            sums.charge += from.charge;
            sums.discount += from.discount;
            sums.count += from.count;
        }
    }

    /// Return flag, line status and sums, in the order of the query.
    pub fn lines(&self) -> impl Iterator<Item = (char, char, &Sums)> {
        self.groups.iter().map(|((flag, status), sums)| (*flag as char, *status as char, sums))
    }
}

impl Sums {
    /// Average of a sum with two decimals, in hundredths rounded half up.
    pub fn average(&self, sum: i128) -> i128 {
        if self.count == 0 { 0 } else { (sum * 2 + self.count).div_euclid(self.count * 2) }
    }
}

/// Writes an integer that carries `decimals` decimals.
pub fn decimal(value: i128, decimals: u32) -> String {
    let unit = 10i128.pow(decimals);
    let sign = if value < 0 { "-" } else { "" };
    let (whole, rest) = (value.abs() / unit, value.abs() % unit);
    format!("{sign}{whole}.{rest:0width$}", width = decimals as usize)
}

/// The compact text form kept beside each loaded batch: `A|F|1|2|3|4|5|6;N|O|…`.
impl fmt::Display for Q1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (flag, status, s)) in self.lines().enumerate() {
            let separator = if index == 0 { "" } else { ";" };
            write!(
                f,
                "{separator}{flag}|{status}|{}|{}|{}|{}|{}|{}",
                s.quantity, s.base_price, s.discounted_price, s.charge, s.discount, s.count
            )?;
        }
        Ok(())
    }
}

impl FromStr for Q1 {
    type Err = Q1Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let group = |line: &str| {
            let (flag, rest) = line.split_once('|')?;
            let (status, rest) = rest.split_once('|')?;
            let numbers: Vec<i128> =
                rest.split('|').map(str::parse).collect::<Result<_, _>>().ok()?;
            let [quantity, base_price, discounted_price, charge, discount, count] = numbers[..]
            else {
                return None;
            };
            let sums = Sums { quantity, base_price, discounted_price, charge, discount, count };
            (flag.len() == 1 && status.len() == 1).then(|| ((initial(flag), initial(status)), sums))
        };
        text.split_terminator(';')
            .map(group)
            .collect::<Option<BTreeMap<_, _>>>()
            .map(|groups| Self { groups })
            .ok_or_else(|| Q1Error(text.chars().take(80).collect()))
    }
}

fn initial(word: &str) -> u8 {
    word.bytes().next().unwrap_or(b'?')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(flag: &'static str, ship_date: i32) -> LineItem<'static> {
        LineItem {
            order_key: 1,
            part_key: 1,
            supplier_key: 1,
            line_number: 1,
            quantity: 300,
            extended_price: 10_000,
            discount: 10,
            tax: 5,
            return_flag: flag,
            line_status: "F",
            ship_date,
            commit_date: 0,
            receipt_date: 0,
            ship_instructions: "NONE",
            ship_mode: "AIR",
            comment: "",
        }
    }

    #[test]
    fn sums_are_exact_and_late_shipments_are_left_out() {
        let mut q1 = Q1::default();
        for row in [row("A", 9000), row("A", LAST_SHIP_DATE), row("A", LAST_SHIP_DATE + 1)] {
            q1.add(&row);
        }
        let (flag, status, sums) = q1.lines().next().expect("one group");
        assert_eq!((flag, status, sums.count), ('A', 'F', 2));
        assert_eq!(decimal(sums.quantity, 2), "6.00");
        assert_eq!(decimal(sums.base_price, 2), "200.00");
        assert_eq!(decimal(sums.discounted_price, 4), "180.0000");
        assert_eq!(decimal(sums.charge, 6), "189.000000");
        assert_eq!(decimal(sums.average(sums.discount), 2), "0.10");
    }

    #[test]
    fn parts_add_up_and_text_comes_back() {
        let (mut whole, mut left, mut right) = (Q1::default(), Q1::default(), Q1::default());
        for (index, flag) in ["A", "N", "R", "A", "N"].into_iter().enumerate() {
            whole.add(&row(flag, 9000));
            if index % 2 == 0 { &mut left } else { &mut right }.add(&row(flag, 9000));
        }
        left.merge(&right);
        assert_eq!(whole, left);
        assert_eq!(whole.to_string().parse::<Q1>().expect("text form"), whole);
        assert_eq!("".parse::<Q1>().expect("empty"), Q1::default());
        assert!("A|F|1|2".parse::<Q1>().is_err());
    }
}
