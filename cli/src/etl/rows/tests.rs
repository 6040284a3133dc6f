use super::*;

const TIDY: &str = "1|155190|7706|1|17|21168.23|0.04|0.02|N|O|1996-03-13|1996-02-12|1996-03-22|DELIVER IN PERSON|TRUCK|egular courts above the|";
const DIRTY: &str = " 1|155190 |\t7706|1|17.00|+21,168.230| 0.04|.02|n |o|1996/03/13|1996.02.12| 1996-03-22|deliver  in\tPerson| truck|  egular courts above the |\r\n";

#[test]
fn dirt_is_cleaned_to_the_tidy_row() {
    let tidy = Row::parse(Table::LineItem, TIDY);
    // a bare `.02` has no whole part and stays an error
    assert!(Row::parse(Table::LineItem, DIRTY).is_err());
    let dirty = DIRTY.replace("|.02|", "|0.020|");
    assert_eq!(tidy, Row::parse(Table::LineItem, &dirty));
    let Ok(Row::LineItem(row)) = tidy else { panic!("{tidy:?}") };
    assert_eq!((row.quantity, row.extended_price, row.ship_date), (1700, 2_116_823, 9568));
}

#[test]
fn amounts() {
    for (text, expected) in [
        ("0", Some(0)),
        ("17", Some(1700)),
        ("17.5", Some(1750)),
        ("-0.04", Some(-4)),
        ("1,234,567.89", Some(123_456_789)),
        ("1.2300", Some(123)),
        ("1.234", None),
        ("", None),
        ("-", None),
        (".5", None),
        ("1e3", None),
        ("99999999999999999999", None),
    ] {
        assert_eq!(hundredths(text), expected, "{text}");
    }
}

#[test]
fn dates_are_days_since_the_epoch() {
    for (text, expected) in [
        ("1970-01-01", Some(0)),
        ("1969-12-31", Some(-1)),
        ("1992-01-01", Some(8035)),
        ("2000/02/29", Some(11_016)),
        ("1900-02-29", None),
        ("1996-13-01", None),
        ("1996-1-01", None),
        ("1996-01-01-01", None),
        ("+996-01-01", None),
    ] {
        assert_eq!(date(text), expected, "{text}");
    }
}

#[test]
fn a_fault_names_the_column_and_what_is_allowed() {
    let fields = TIDY.matches('|').count();
    for (line, column) in [
        (TIDY.replace("TRUCK", "CART"), "l_shipmode"),
        (TIDY.replace("7706", "x"), "l_suppkey"),
        (TIDY.replace("1996-03-22", "soon"), "l_receiptdate"),
        (TIDY.splitn(fields, '|').take(3).collect::<Vec<_>>().join("|"), "l_linenumber"),
        (format!("{TIDY}extra|"), "end of line"),
        (String::new(), "l_orderkey"),
    ] {
        let error = Row::parse(Table::LineItem, &line).expect_err(&line);
        assert_eq!(error.column, column, "{error}");
    }
}
