//! What Envoy's API has no words for, as metadata beside what it has.
//!
//! `google.protobuf.Struct` maps have no order in memory, so two encodings of
//! the same value would differ. The structs are therefore written here, with
//! sorted keys, and carried as `typed_filter_metadata` (one entry, an `Any`).
//! Reading accepts `filter_metadata` too, which is easier to write by hand.

use std::collections::HashMap;

use envoy_types::pb::{
    envoy::config::core::v3::Metadata,
    google::protobuf::{Any, Struct, Value as PbValue, value::Kind},
};
use prost::{
    Message, Name,
    encoding::{WireType, encode_key, encode_varint},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Number, Value};

use super::{
    Invalid,
    common::{At, Result, refuse},
};

/// The metadata key.
pub(super) const KEY: &str = "towpath.dev";

/// Fields to add to a message.
#[derive(Debug, Default)]
pub(super) struct Extra(Map<String, Value>);

impl Extra {
    /// Adds a field.
    pub(super) fn set<T: Serialize>(&mut self, field: &str, value: &T) {
        // Domain types always serialise; a path that is no UTF-8 does not,
        // and then the standard field has to do.
        if let Ok(value) = serde_json::to_value(value) {
            self.0.insert(field.to_owned(), value);
        }
    }

    /// Adds a field if the standard part did not carry it.
    pub(super) fn keep<T: Serialize + PartialEq>(&mut self, field: &str, value: &T, carried: &T) {
        if value != carried {
            self.set(field, value);
        }
    }

    /// The metadata, if there is any.
    pub(super) fn into_metadata(self) -> Option<Metadata> {
        if self.0.is_empty() {
            return None;
        }
        let mut value = Vec::new();
        write_struct(&self.0, &mut value);
        let any = Any { type_url: Struct::type_url(), value };
        Some(Metadata {
            filter_metadata: HashMap::new(),
            typed_filter_metadata: HashMap::from([(KEY.to_owned(), any)]),
        })
    }

    /// Reads a message's metadata; empty if there is none of ours.
    pub(super) fn read(metadata: Option<&Metadata>) -> Result<Self> {
        let Some(metadata) = metadata else { return Ok(Self::default()) };
        if let Some(any) = metadata.typed_filter_metadata.get(KEY) {
            if any.type_url != Struct::type_url() {
                return refuse("is no google.protobuf.Struct").at("metadata");
            }
            return match Struct::decode(any.value.as_slice()) {
                Ok(fields) => Ok(Self(read_struct(&fields))),
                Err(error) => refuse(format!("is no valid Struct: {error}")).at("metadata"),
            };
        }
        Ok(match metadata.filter_metadata.get(KEY) {
            Some(fields) => Self(read_struct(fields)),
            None => Self::default(),
        })
    }

    /// Replaces `target` by a field, if it is there.
    pub(super) fn restore<T: DeserializeOwned>(
        &mut self,
        field: &str,
        target: &mut T,
    ) -> Result<()> {
        if let Some(value) = self.0.remove(field) {
            *target = serde_json::from_value(value)
                .map_err(|e| Invalid::new(e.to_string()).within(field).within(KEY))?;
        }
        Ok(())
    }
}

/// An `xds.type.v3.TypedStruct` without fields: names an extension that
/// clients without it can tell to be unknown.
pub(super) fn typed_struct(type_url: &str) -> Any {
    let mut value = Vec::new();
    write_bytes(1, type_url.as_bytes(), &mut value);
    write_bytes(2, &[], &mut value);
    Any { type_url: TYPED_STRUCT.to_owned(), value }
}

/// The inner type URL of a `TypedStruct`, if it is one.
pub(super) fn typed_struct_url(any: &Any) -> Option<String> {
    /// The one field of interest.
    #[derive(Clone, PartialEq, prost::Message)]
    struct TypedStruct {
        #[prost(string, tag = "1")]
        type_url: String,
    }
    (any.type_url == TYPED_STRUCT)
        .then(|| TypedStruct::decode(any.value.as_slice()).ok())
        .flatten()
        .map(|inner| inner.type_url)
}

fn write_struct(fields: &Map<String, Value>, out: &mut Vec<u8>) {
    let mut sorted: Vec<_> = fields.iter().collect();
    sorted.sort_by_key(|(key, _)| *key);
    for (key, value) in sorted {
        let mut entry = Vec::new();
        write_bytes(1, key.as_bytes(), &mut entry);
        let mut inner = Vec::new();
        write_value(value, &mut inner);
        write_bytes(2, &inner, &mut entry);
        write_bytes(1, &entry, out);
    }
}

fn write_value(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Object(fields) => {
            let mut inner = Vec::new();
            write_struct(fields, &mut inner);
            write_bytes(5, &inner, out);
        }
        Value::Array(items) => {
            let mut list = Vec::new();
            for item in items {
                let mut inner = Vec::new();
                write_value(item, &mut inner);
                write_bytes(1, &inner, &mut list);
            }
            write_bytes(6, &list, out);
        }
        Value::Null => write_kind(Kind::NullValue(0), out),
        Value::Bool(b) => write_kind(Kind::BoolValue(*b), out),
        Value::String(s) => write_kind(Kind::StringValue(s.clone()), out),
        // Struct knows only doubles; no policy says more than 2^53 of anything.
        Value::Number(n) => write_kind(Kind::NumberValue(n.as_f64().unwrap_or(0.0)), out),
    }
}

fn write_kind(kind: Kind, out: &mut Vec<u8>) {
    // Writing to a `Vec` cannot run out of room.
    let _ = PbValue { kind: Some(kind) }.encode(out);
}

fn write_bytes(tag: u32, bytes: &[u8], out: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn read_struct(fields: &Struct) -> Map<String, Value> {
    fields.fields.iter().map(|(key, value)| (key.clone(), read_value(value))).collect()
}

fn read_value(value: &PbValue) -> Value {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(b)) => Value::Bool(*b),
        Some(Kind::StringValue(s)) => Value::String(s.clone()),
        Some(Kind::NumberValue(n)) => read_number(*n),
        Some(Kind::StructValue(fields)) => Value::Object(read_struct(fields)),
        Some(Kind::ListValue(list)) => Value::Array(list.values.iter().map(read_value).collect()),
    }
}

/// A whole number becomes an integer again, since serde tells them apart.
#[expect(clippy::cast_possible_truncation, reason = "checked to be whole and within 2^53")]
fn read_number(number: f64) -> Value {
    if number.fract() == 0.0 && number.abs() <= MAX_WHOLE {
        Value::Number(Number::from(number as i64))
    } else {
        Number::from_f64(number).map_or(Value::Null, Value::Number)
    }
}

/// 2^53: up to here doubles are exact.
const MAX_WHOLE: f64 = 9_007_199_254_740_992.0;
const TYPED_STRUCT: &str = "type.googleapis.com/xds.type.v3.TypedStruct";
