//! Header edits as they are applied.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use towpath_policies::model::HeaderEdit;

/// Removes, then sets, then adds.
#[derive(Debug, Default)]
pub(crate) struct Edit {
    remove: Box<[HeaderName]>,
    set: Box<[(HeaderName, HeaderValue)]>,
    add: Box<[(HeaderName, HeaderValue)]>,
}

impl Edit {
    /// Parses names and values. `host` is left out: it is a rewrite, not a header (see [`host`]).
    pub(crate) fn new(edit: &HeaderEdit) -> Result<Self, String> {
        let pairs = |pairs: &[(String, String)]| {
            pairs
                .iter()
                .filter(|(name, _)| !name.eq_ignore_ascii_case("host"))
                .map(|(name, value)| Ok((name_of(name)?, value_of(name, value)?)))
                .collect::<Result<Box<[_]>, String>>()
        };
        Ok(Self {
            remove: edit.remove.iter().map(|n| name_of(n)).collect::<Result<_, String>>()?,
            set: pairs(&edit.set)?,
            add: pairs(&edit.add)?,
        })
    }

    /// Removes from trailers, and from interim heads, what final heads may not bring in past this
    /// edit either.
    pub(crate) fn guard(&self, fields: &mut HeaderMap) {
        for name in self.remove.iter().chain(self.set.iter().map(|(name, _)| name)) {
            fields.remove(name);
        }
    }

    pub(crate) fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name.clone(), value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name.clone(), value.clone());
        }
    }
}

/// The host an edit sets, if it does.
pub(crate) fn host(edit: &HeaderEdit) -> Option<&str> {
    let set = edit.set.iter().chain(&edit.add);
    set.rev().find(|(name, _)| name.eq_ignore_ascii_case("host")).map(|(_, value)| value.as_str())
}

fn name_of(name: &str) -> Result<HeaderName, String> {
    let parsed = HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| format!("`{name}` is no header name"))?;
    let framing = [
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::CONNECTION,
        header::UPGRADE,
        header::TE,
    ];
    if framing.contains(&parsed) {
        return Err(format!("`{name}` belongs to the connection and cannot be edited"));
    }
    Ok(parsed)
}

fn value_of(name: &str, value: &str) -> Result<HeaderValue, String> {
    HeaderValue::from_str(value).map_err(|_| format!("`{value}` is no value for header `{name}`"))
}
