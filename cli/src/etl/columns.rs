//! Rows turned into columns and written as Parquet, and read back.
//!
//! Types are those any other Parquet reader expects of TPC-H: `DECIMAL(15,2)`,
//! `DATE`, `STRING`; no column is nullable.

use std::{fmt::Write as _, io::Write, sync::Arc};

use bytes::Bytes;
use parquet::{
    basic::Compression,
    column::reader::ColumnReader,
    data_type::{ByteArray, ByteArrayType, DataType, Int32Type, Int64Type},
    errors::{ParquetError, Result},
    file::{
        properties::{EnabledStatistics, WriterProperties},
        reader::RowGroupReader,
        writer::{SerializedFileWriter, SerializedRowGroupWriter},
    },
    schema::parser::parse_message_type,
};

use super::rows::{Kind, LineItem, Order, Row, Table, Value};

/// The values of some rows, column by column.
#[derive(Debug)]
pub(crate) struct Columns {
    table: Table,
    columns: Vec<Column>,
    rows: usize,
}

#[derive(Debug)]
enum Column {
    Long(Vec<i64>),
    Int(Vec<i32>),
    Text(Vec<ByteArray>),
}

impl Columns {
    pub(crate) fn new(table: Table) -> Self {
        let columns = table.columns().iter().map(|(_, kind)| Column::of(*kind)).collect();
        Self { table, columns, rows: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.rows
    }

    pub(crate) fn push(&mut self, row: &Row<'_>) {
        let mut columns = self.columns.iter_mut();
        row.each_value(|value| match (columns.next(), value) {
            (Some(Column::Long(column)), Value::Long(number)) => column.push(number),
            (Some(Column::Int(column)), Value::Int(number)) => column.push(number),
            (Some(Column::Text(column)), Value::Text(text)) => {
                column.push(Bytes::copy_from_slice(text.as_bytes()).into());
            }
            (column, value) => unreachable!("{value:?} does not belong into {column:?}"),
        });
        self.rows += 1;
    }

    /// Writes what is held as one row group and forgets it.
    pub(crate) fn flush<W: Write + Send>(
        &mut self,
        writer: &mut SerializedFileWriter<W>,
    ) -> Result<()> {
        let mut group = writer.next_row_group()?;
        for column in &mut self.columns {
            match column {
                Column::Long(values) => put::<Int64Type, W>(&mut group, values)?,
                Column::Int(values) => put::<Int32Type, W>(&mut group, values)?,
                Column::Text(values) => put::<ByteArrayType, W>(&mut group, values)?,
            }
        }
        group.close()?;
        self.rows = 0;
        Ok(())
    }

    /// Reads a whole row group.
    pub(crate) fn read(table: Table, group: &dyn RowGroupReader) -> Result<Self> {
        let rows = usize::try_from(group.metadata().num_rows())?;
        let mut read = Self::new(table);
        for (index, column) in read.columns.iter_mut().enumerate() {
            let got = match (group.get_column_reader(index)?, column) {
                (ColumnReader::Int64ColumnReader(mut reader), Column::Long(values)) => {
                    reader.read_records(rows, None, None, values)?.0
                }
                (ColumnReader::Int32ColumnReader(mut reader), Column::Int(values)) => {
                    reader.read_records(rows, None, None, values)?.0
                }
                (ColumnReader::ByteArrayColumnReader(mut reader), Column::Text(values)) => {
                    reader.read_records(rows, None, None, values)?.0
                }
                _ => return Err(unlike(table, index)),
            };
            if got != rows {
                return Err(unlike(table, index));
            }
        }
        read.rows = rows;
        Ok(read)
    }

    /// The row at `index`, which must be below [`Self::len`].
    pub(crate) fn row(&self, index: usize) -> Result<Row<'_>> {
        Ok(match self.table {
            Table::LineItem => Row::LineItem(LineItem {
                order_key: self.long(0, index)?,
                part_key: self.long(1, index)?,
                supplier_key: self.long(2, index)?,
                line_number: self.int(3, index)?,
                quantity: self.long(4, index)?,
                extended_price: self.long(5, index)?,
                discount: self.long(6, index)?,
                tax: self.long(7, index)?,
                return_flag: self.text(8, index)?,
                line_status: self.text(9, index)?,
                ship_date: self.int(10, index)?,
                commit_date: self.int(11, index)?,
                receipt_date: self.int(12, index)?,
                ship_instructions: self.text(13, index)?,
                ship_mode: self.text(14, index)?,
                comment: self.text(15, index)?,
            }),
            Table::Orders => Row::Order(Order {
                order_key: self.long(0, index)?,
                customer_key: self.long(1, index)?,
                status: self.text(2, index)?,
                total_price: self.long(3, index)?,
                order_date: self.int(4, index)?,
                priority: self.text(5, index)?,
                clerk: self.text(6, index)?,
                ship_priority: self.int(7, index)?,
                comment: self.text(8, index)?,
            }),
        })
    }

    fn long(&self, column: usize, row: usize) -> Result<i64> {
        match &self.columns[column] {
            Column::Long(values) => Ok(values[row]),
            _ => Err(unlike(self.table, column)),
        }
    }

    fn int(&self, column: usize, row: usize) -> Result<i32> {
        match &self.columns[column] {
            Column::Int(values) => Ok(values[row]),
            _ => Err(unlike(self.table, column)),
        }
    }

    fn text(&self, column: usize, row: usize) -> Result<&str> {
        match &self.columns[column] {
            Column::Text(values) => values[row].as_utf8(),
            _ => Err(unlike(self.table, column)),
        }
    }
}

impl Column {
    fn of(kind: Kind) -> Self {
        match kind {
            Kind::Long | Kind::Decimal => Self::Long(Vec::new()),
            Kind::Int | Kind::Date => Self::Int(Vec::new()),
            Kind::Text => Self::Text(Vec::new()),
        }
    }
}

/// Starts a Parquet file of the table's schema.
pub(crate) fn writer<W: Write + Send>(table: Table, to: W) -> Result<SerializedFileWriter<W>> {
    let mut message = format!("message {table} {{");
    for (name, kind) in table.columns() {
        let (physical, logical) = match kind {
            Kind::Long => ("INT64", ""),
            Kind::Decimal => ("INT64", "(DECIMAL(15,2))"),
            Kind::Int => ("INT32", ""),
            Kind::Date => ("INT32", "(DATE)"),
            Kind::Text => ("BYTE_ARRAY", "(STRING)"),
        };
        // writing to a String cannot fail
        let _ = write!(message, " REQUIRED {physical} {name} {logical};");
    }
    message.push('}');
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_created_by("towpath-etl".to_owned());
    let schema = Arc::new(parse_message_type(&message)?);
    SerializedFileWriter::new(to, schema, Arc::new(properties.build()))
}

fn put<T: DataType, W: Write + Send>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    values: &mut Vec<T::T>,
) -> Result<()> {
    let mut column = group
        .next_column()?
        .ok_or_else(|| ParquetError::General("fewer columns than the schema has".to_owned()))?;
    column.typed::<T>().write_batch(values, None, None)?;
    column.close()?;
    values.clear();
    Ok(())
}

fn unlike(table: Table, column: usize) -> ParquetError {
    ParquetError::General(format!("column {column} is not as a file of {table} has it"))
}
