//! The decoder of one connection.

use super::{
    Field, HpackError, OVERHEAD, huffman,
    name::Name,
    static_table,
    table::{Entry, Table},
};

/// Decodes the header blocks of a connection, in their order.
#[derive(Debug)]
pub(crate) struct Decoder {
    table: Table,
    /// Huffman strings are decoded into this.
    scratch: Vec<u8>,
}

impl Decoder {
    /// A decoder whose table takes up to `max_table_bytes`, as `SETTINGS_HEADER_TABLE_SIZE` says.
    /// Where that is below 4096, the peer is expected to know it before its first block.
    pub(crate) fn new(max_table_bytes: usize) -> Self {
        Self { table: Table::new(max_table_bytes), scratch: Vec::new() }
    }

    /// Decodes one whole header block and hands its fields on.
    ///
    /// From the field on with which the list (RFC 9113 §6.5.2) would be larger than `list_limit`,
    /// nothing more is handed on and the answer is false; the table keeps in step with the peer's.
    /// After an error the connection cannot go on.
    pub(crate) fn decode(
        &mut self,
        block: &[u8],
        list_limit: usize,
        mut sink: impl FnMut(Field),
    ) -> Result<bool, HpackError> {
        let mut input = Input(block);
        let mut room = Some(list_limit);
        while let Some(first) = input.first()
            && first & SIZE_MASK == SIZE_UPDATE
        {
            self.table.resize(input.integer(5)?)?;
        }
        while let Some(first) = input.first() {
            if first & INDEXED != 0 {
                self.indexed(input.integer(7)?, &mut room, &mut sink)?;
            } else if first & SIZE_MASK == SIZE_UPDATE {
                return Err(HpackError::TableSize);
            } else {
                self.literal(first, &mut input, &mut room, &mut sink)?;
            }
        }
        if self.scratch.len() > MAX_KEPT_SCRATCH {
            self.scratch = Vec::new();
        }
        Ok(room.is_some())
    }

    fn indexed(
        &self,
        index: usize,
        room: &mut Option<usize>,
        sink: &mut impl FnMut(Field),
    ) -> Result<(), HpackError> {
        let (field, size) = if let Some(field) = static_table::field(index) {
            field
        } else {
            let entry = self.entry(index)?;
            (&entry.field, entry.size)
        };
        if take(room, size) {
            sink(field.clone());
        }
        Ok(())
    }

    /// RFC 7541 §6.2.
    fn literal(
        &mut self,
        first: u8,
        input: &mut Input<'_>,
        room: &mut Option<usize>,
        sink: &mut impl FnMut(Field),
    ) -> Result<(), HpackError> {
        let add = first & ADD != 0;
        let index = input.integer(if add { 6 } else { 4 })?;
        let name = if index == 0 {
            Name::read(input.string(&mut self.scratch)?)
        } else if let Some(name) = static_table::name(index) {
            name.clone()
        } else {
            self.entry(index)?.name()
        };
        let value = input.string(&mut self.scratch)?;
        let size = name.len() + value.len() + OVERHEAD;
        let fits = add && self.table.fits(size);
        if add && !fits {
            self.table.clear();
        }
        let listed = take(room, size);
        if !fits && !listed {
            return Ok(());
        }
        let (mut field, bad_name) = name.field(value);
        if !add
            && first & NEVER_INDEXED != 0
            && let Field::Header(_, value) = &mut field
        {
            value.set_sensitive(true);
        }
        if !fits {
            sink(field);
            return Ok(());
        }
        if listed {
            sink(field.clone());
        }
        self.table.add(Entry { field, size, bad_name });
        Ok(())
    }

    /// The dynamic entry that `index` means.
    fn entry(&self, index: usize) -> Result<&Entry, HpackError> {
        let place = index.checked_sub(static_table::LENGTH + 1);
        place.and_then(|place| self.table.entry(place)).ok_or(HpackError::Index)
    }
}

// The kinds of fields (RFC 7541 §6).
const INDEXED: u8 = 0x80;
const ADD: u8 = 0x40;
const SIZE_MASK: u8 = 0xe0;
const SIZE_UPDATE: u8 = 0x20;
const NEVER_INDEXED: u8 = 0x10;

/// The strings of most requests are shorter than this, in bytes.
const MAX_KEPT_SCRATCH: usize = 4096;

/// Takes `size` from what is left of the list; once that fails, nothing is left.
fn take(room: &mut Option<usize>, size: usize) -> bool {
    *room = room.and_then(|room| room.checked_sub(size));
    room.is_some()
}

/// What is left of a block.
struct Input<'b>(&'b [u8]);

impl<'b> Input<'b> {
    fn first(&self) -> Option<u8> {
        self.0.first().copied()
    }

    fn next(&mut self) -> Result<u8, HpackError> {
        let (first, rest) = self.0.split_first().ok_or(HpackError::Truncated)?;
        self.0 = rest;
        Ok(*first)
    }

    /// An integer whose first `prefix` bits are in the next byte (RFC 7541 §5.1).
    fn integer(&mut self, prefix: u32) -> Result<usize, HpackError> {
        let most = u8::MAX >> (8 - prefix);
        let first = self.next()? & most;
        if first < most { Ok(first.into()) } else { self.long_integer(most) }
    }

    #[cold]
    fn long_integer(&mut self, most: u8) -> Result<usize, HpackError> {
        let mut value = u64::from(most);
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.next()?;
            value += u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return u32::try_from(value)
                    .ok()
                    .and_then(|value| usize::try_from(value).ok())
                    .ok_or(HpackError::Integer);
            }
        }
        Err(HpackError::Integer)
    }

    /// A string, in the block or decoded into `scratch` (RFC 7541 §5.2).
    fn string<'s>(&mut self, scratch: &'s mut Vec<u8>) -> Result<&'s [u8], HpackError>
    where
        'b: 's,
    {
        let coded = self.first().is_some_and(|first| first & 0x80 != 0);
        let length = self.integer(7)?;
        let (text, rest) = self.0.split_at_checked(length).ok_or(HpackError::Truncated)?;
        self.0 = rest;
        if coded { huffman::decode(text, scratch).ok_or(HpackError::Huffman) } else { Ok(text) }
    }
}
