//! The dynamic table (RFC 7541 §2.3.2, §4).

use std::collections::VecDeque;

use super::{Field, HpackError, OVERHEAD, name::Name};

/// The fields a peer asked to be kept, the newest first.
#[derive(Debug)]
pub(super) struct Table {
    entries: VecDeque<Entry>,
    size: usize,
    /// What `size` may be, as the peer chose.
    limit: usize,
    /// What `limit` may be, as was announced to the peer.
    most: usize,
}

/// One kept field.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) field: Field,
    /// With the overhead.
    pub(super) size: usize,
    /// The name, where `field` is malformed and does not have it.
    pub(super) bad_name: Option<Box<Name>>,
}

impl Table {
    pub(super) fn new(most: usize) -> Self {
        Self { entries: VecDeque::new(), size: 0, limit: most.min(INITIAL), most }
    }

    /// The entry that came `index` entries ago.
    pub(super) fn entry(&self, index: usize) -> Option<&Entry> {
        self.entries.get(index)
    }

    /// Whether an entry of `size` bytes can stand in the table at all.
    pub(super) fn fits(&self, size: usize) -> bool {
        size <= self.limit
    }

    /// Adds an entry that fits, at the cost of the oldest.
    pub(super) fn add(&mut self, entry: Entry) {
        self.shrink(self.limit - entry.size);
        self.size += entry.size;
        self.entries.push_front(entry);
    }

    pub(super) fn clear(&mut self) {
        self.shrink(0);
    }

    pub(super) fn resize(&mut self, limit: usize) -> Result<(), HpackError> {
        if limit > self.most {
            return Err(HpackError::TableSize);
        }
        self.limit = limit;
        self.shrink(limit);
        Ok(())
    }

    fn shrink(&mut self, size: usize) {
        while self.size > size
            && let Some(oldest) = self.entries.pop_back()
        {
            self.size -= oldest.size;
        }
    }
}

/// The size both sides begin with, until one says otherwise (RFC 9113 §6.5.2).
const INITIAL: usize = 4096;

impl Entry {
    pub(super) fn name(&self) -> Name {
        match &self.field {
            Field::Method(_) => Name::Method,
            Field::Scheme(_) => Name::Scheme,
            Field::Authority(_) => Name::Authority,
            Field::Path(_) => Name::Path,
            Field::Status(_) => Name::Status,
            Field::Protocol(_) => Name::Protocol,
            Field::Header(name, _) => Name::Header(name.clone()),
            Field::Malformed(why) => match &self.bad_name {
                Some(name) => Name::clone(name),
                None => Name::Bad(why, self.size - OVERHEAD),
            },
        }
    }
}
