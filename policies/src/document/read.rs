//! From spanned YAML to typed documents, and from the same types to JSON
//! Schema: one list of fields serves both, so that they cannot drift apart.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use crate::{
    diagnostic::{Rule, nearest},
    problem::{At, Problems, Span},
    yaml::{Node, Value, quoted},
};

/// A type that policy documents are made of.
pub(crate) trait Read: Sized {
    /// Whether a field of this type must be there.
    const REQUIRED: bool = true;

    /// Reads it, or tells why not and returns `None`.
    fn read(node: &Node, problems: &mut Problems) -> Option<Self>;

    /// What a field that is left out means; only asked when not [`Read::REQUIRED`].
    fn absent() -> Option<Self> {
        None
    }

    /// Its JSON Schema.
    fn schema(definitions: &mut Definitions) -> Json;
}

/// The schemas that others refer to, by name.
#[derive(Default)]
pub(crate) struct Definitions(BTreeMap<&'static str, Json>);

impl Definitions {
    /// A reference to the schema called `name`, made by `make` when it is new.
    pub(crate) fn refer(
        &mut self,
        name: &'static str,
        make: impl FnOnce(&mut Self) -> Json,
    ) -> Json {
        if !self.0.contains_key(name) {
            // Holds the place, so that a type that contains itself ends.
            self.0.insert(name, Json::Null);
            let schema = make(self);
            self.0.insert(name, schema);
        }
        json!({ "$ref": format!("#/$defs/{name}") })
    }

    pub(crate) fn into_json(self) -> Json {
        Json::Object(self.0.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect())
    }
}

/// The fields of an object type.
pub(crate) struct Shape {
    pub(crate) doc: &'static [&'static str],
    pub(crate) fields: &'static [Field],
    /// Fields that others know and we do not obey, and what to do instead.
    pub(crate) unsupported: &'static [(&'static str, &'static str)],
    /// Fields that had another name, and their name now.
    pub(crate) renamed: &'static [(&'static str, &'static str)],
    /// Groups of fields of which exactly one must be given.
    pub(crate) exactly_one: &'static [&'static [&'static str]],
}

/// One field of a [`Shape`].
pub(crate) struct Field {
    pub(crate) key: &'static str,
    pub(crate) doc: &'static [&'static str],
    pub(crate) required: bool,
    pub(crate) schema: fn(&mut Definitions) -> Json,
}

impl Shape {
    pub(crate) fn schema(&self, definitions: &mut Definitions) -> Json {
        let mut properties = Map::new();
        for field in self.fields {
            let mut schema = (field.schema)(definitions);
            if let Json::Object(schema) = &mut schema {
                schema.insert("description".to_owned(), join(field.doc).into());
            }
            properties.insert(field.key.to_owned(), schema);
        }
        let required: Vec<_> = self.fields.iter().filter(|f| f.required).map(|f| f.key).collect();
        let mut schema = json!({
            "type": "object",
            "description": join(self.doc),
            "properties": properties,
            "additionalProperties": false,
        });
        if !required.is_empty() {
            schema["required"] = json!(required);
        }
        if !self.exactly_one.is_empty() {
            let one_of = |group: &&[&str]| {
                let one: Vec<_> = group.iter().map(|key| json!({ "required": [key] })).collect();
                json!({ "oneOf": one })
            };
            schema["allOf"] = self.exactly_one.iter().map(one_of).collect();
        }
        schema
    }

    /// Checks that `node` is an object with these fields only.
    pub(crate) fn open<'n>(
        &'static self,
        node: &'n Node,
        problems: &mut Problems,
    ) -> Option<Entries<'n>> {
        let Entries { entries, .. } = self.open_lenient(node, problems)?;
        let mut misspelt = Vec::new();
        for (key, _) in entries {
            if !self.fields.iter().any(|f| f.key == key.value) && key.value != "<<" {
                misspelt.extend(self.unknown(key, problems));
            }
        }
        let given = |key: &&&str| {
            entries.iter().any(|(k, v)| k.value == ***key && !matches!(v.value, Value::Null))
        };
        for group in self.exactly_one {
            let choice = group.join("`, `");
            match group.iter().filter(given).collect::<Vec<_>>()[..] {
                [] if group.iter().any(|key| misspelt.contains(key)) => {}
                [] => {
                    let message = format!("one of `{choice}` is missing");
                    problems.error(Rule::MissingField, node.span, message);
                }
                [_] => {}
                [_, second, ..] => {
                    let span =
                        entries.iter().find(|(k, _)| k.value == **second).map(|(k, _)| k.span);
                    let message = format!("only one of `{choice}` may be given");
                    problems.error(Rule::Conflict, span.unwrap_or(node.span), message);
                }
            }
        }
        Some(Entries { node, entries, misspelt })
    }

    /// Only looks that `node` is an object, and not at its fields.
    pub(crate) fn open_lenient<'n>(
        &'static self,
        node: &'n Node,
        problems: &mut Problems,
    ) -> Option<Entries<'n>> {
        let Value::Map(entries) = &node.value else {
            wrong_type(node, "an object", problems).help(format!("fields: {}", self.field_list()));
            return None;
        };
        Some(Entries { node, entries, misspelt: Vec::new() })
    }

    /// Tells of an unknown field; returns the field that was probably meant.
    fn unknown(&self, key: &At<String>, problems: &mut Problems) -> Option<&'static str> {
        if let Some((_, instead)) = self.unsupported.iter().find(|(name, _)| *name == key.value) {
            problems
                .error(Rule::Unsupported, key.span, format!("`{}` is not supported yet", key.value))
                .help(*instead);
            return None;
        }
        let renamed = self.renamed.iter().find(|(name, _)| *name == key.value);
        if let Some((_, now)) = renamed {
            let message = format!("the field {} is called `{now}`", ticked(&key.value));
            problems.error(Rule::UnknownField, key.span, message).help(format!("use `{now}`"));
            return Some(now);
        }
        let near = nearest(&key.value, self.fields.iter().map(|f| f.key));
        let help = match near {
            Some(near) => format!("did you mean `{near}`? fields: {}", self.field_list()),
            None => format!("fields: {}", self.field_list()),
        };
        let message = format!("unknown field {}", ticked(&key.value));
        problems.error(Rule::UnknownField, key.span, message).help(help);
        near
    }

    fn field_list(&self) -> String {
        self.fields.iter().map(|f| f.key).collect::<Vec<_>>().join(", ")
    }
}

/// An object whose keys are known to be fields.
pub(crate) struct Entries<'n> {
    node: &'n Node,
    entries: &'n [(At<String>, Node)],
    /// Fields that were probably meant by unknown ones: missing them is no second problem.
    misspelt: Vec<&'static str>,
}

impl Entries<'_> {
    /// Reads a field.
    pub(crate) fn field<T: Read>(&self, field: &Field, problems: &mut Problems) -> Option<T> {
        let given = self.entries.iter().find(|(key, _)| key.value == field.key);
        match given {
            Some((_, node)) if !matches!(node.value, Value::Null) => T::read(node, problems),
            _ if !T::REQUIRED => T::absent(),
            None if self.misspelt.contains(&field.key) => None,
            _ => {
                let span = given.map_or(self.node.span, |(key, _)| key.span);
                let message = match given {
                    Some(_) => format!("`{}` has no value", field.key),
                    None => format!("`{}` is missing", field.key),
                };
                problems.error(Rule::MissingField, span, message).help(join(field.doc));
                None
            }
        }
    }
}

/// The lines of a doc comment as one text.
pub(crate) fn join(doc: &[&str]) -> String {
    doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
}

/// Text from a file between backticks, shortened when long.
pub(crate) fn ticked(text: &str) -> String {
    let clean = text.len() <= 60 && text.chars().all(|c| !c.is_control() && c != '`');
    if clean && !text.is_empty() { format!("`{text}`") } else { quoted(text) }
}

/// Reports a value of the wrong type.
pub(crate) fn wrong_type<'p>(
    node: &Node,
    expected: &str,
    problems: &'p mut Problems,
) -> &'p mut crate::problem::Problem {
    let message = format!("expected {expected}, found {}", node.describe());
    problems.error(Rule::WrongType, node.span, message)
}

impl<T: Read> Read for At<T> {
    const REQUIRED: bool = T::REQUIRED;

    fn read(node: &Node, problems: &mut Problems) -> Option<Self> {
        let span = node.span;
        T::read(node, problems).map(|value| Self { value, span })
    }

    fn schema(definitions: &mut Definitions) -> Json {
        T::schema(definitions)
    }
}

impl<T: Read> Read for Option<T> {
    const REQUIRED: bool = false;

    fn read(node: &Node, problems: &mut Problems) -> Option<Self> {
        T::read(node, problems).map(Some)
    }

    fn absent() -> Option<Self> {
        Some(None)
    }

    fn schema(definitions: &mut Definitions) -> Json {
        T::schema(definitions)
    }
}

impl<T: Read> Read for Vec<T> {
    const REQUIRED: bool = false;

    fn read(node: &Node, problems: &mut Problems) -> Option<Self> {
        let Value::List(items) = &node.value else {
            wrong_type(node, "a list", problems).help("start each item with `- `, or write [a, b]");
            return None;
        };
        // Every item is read even after one failed, so that all problems are told at once.
        let read: Vec<_> = items.iter().map(|item| T::read(item, problems)).collect();
        read.into_iter().collect()
    }

    fn absent() -> Option<Self> {
        Some(Self::new())
    }

    fn schema(definitions: &mut Definitions) -> Json {
        json!({ "type": "array", "items": T::schema(definitions) })
    }
}

/// A list that must have an item.
#[derive(Clone, Debug)]
pub(crate) struct AtLeastOne<T>(pub(crate) Vec<T>);

impl<T: Read> Read for AtLeastOne<T> {
    fn read(node: &Node, problems: &mut Problems) -> Option<Self> {
        let items = Vec::read(node, problems)?;
        if items.is_empty() {
            problems.error(Rule::MissingField, node.span, "the list must have an item");
            return None;
        }
        Some(Self(items))
    }

    fn schema(definitions: &mut Definitions) -> Json {
        json!({ "type": "array", "items": T::schema(definitions), "minItems": 1 })
    }
}

impl<T> std::ops::Deref for AtLeastOne<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

/// A list that must have an item, or the one item that it would have.
#[derive(Clone, Debug)]
pub(crate) struct OneOrMore<T>(pub(crate) Vec<T>);

impl<T: Read> Read for OneOrMore<T> {
    fn read(node: &Node, problems: &mut Problems) -> Option<Self> {
        match &node.value {
            Value::List(_) => AtLeastOne::read(node, problems).map(|AtLeastOne(items)| Self(items)),
            _ => T::read(node, problems).map(|item| Self(vec![item])),
        }
    }

    fn schema(definitions: &mut Definitions) -> Json {
        let (one, more) = (T::schema(definitions), AtLeastOne::<T>::schema(definitions));
        json!({ "anyOf": [one, more] })
    }
}

/// Any value; not looked at.
#[derive(Clone, Debug)]
pub(crate) struct Anything;

impl Read for Anything {
    fn read(_: &Node, _: &mut Problems) -> Option<Self> {
        Some(Self)
    }

    fn schema(_: &mut Definitions) -> Json {
        json!({})
    }
}

/// Text by text, e.g. labels; each with the place of its key.
pub(crate) type Texts = BTreeMap<String, (Span, At<String>)>;

impl Read for Texts {
    const REQUIRED: bool = false;

    fn read(node: &Node, problems: &mut Problems) -> Option<Self> {
        let Value::Map(entries) = &node.value else {
            wrong_type(node, "an object of texts", problems);
            return None;
        };
        let mut all = Some(Self::new());
        for (key, value) in entries {
            match (At::<String>::read(value, problems), &mut all) {
                (Some(text), Some(map)) => {
                    map.insert(key.value.clone(), (key.span, text));
                }
                (None, _) => all = None,
                (Some(_), None) => {}
            }
        }
        all
    }

    fn absent() -> Option<Self> {
        Some(Self::new())
    }

    fn schema(_: &mut Definitions) -> Json {
        json!({ "type": "object", "additionalProperties": { "type": "string" } })
    }
}

/// Reports a value outside of what is allowed.
pub(crate) fn invalid(
    span: Span,
    message: impl Into<String>,
    help: impl Into<String>,
    problems: &mut Problems,
) {
    problems.error(Rule::InvalidValue, span, message).help(help);
}

/// Declares an object type: its fields, their documentation, how it is read,
/// and its schema.
macro_rules! object {
    (
        $(#[doc = $doc:literal])*
        struct $name:ident {
            $( $(#[doc = $field_doc:literal])* $key:literal => $field:ident: $type:ty, )*
        }
        $( unsupported { $( $unsupported:literal => $instead:literal, )* } )?
        $( renamed { $( $former:literal => $now:literal, )* } )?
        $( exactly_one { $( [$($one:literal),*] )* } )?
    ) => {
        $(#[doc = $doc])*
        #[derive(Clone, Debug)]
        #[allow(dead_code, reason = "a field may be read only to be checked")]
        pub(crate) struct $name {
            /// Where it starts.
            pub(crate) span: $crate::problem::Span,
            $( $(#[doc = $field_doc])* pub(crate) $field: $type, )*
        }

        impl $name {
            pub(crate) const SHAPE: $crate::document::read::Shape = $crate::document::read::Shape {
                doc: &[$($doc),*],
                fields: &[$( $crate::document::read::Field {
                    key: $key,
                    doc: &[$($field_doc),*],
                    required: <$type as $crate::document::read::Read>::REQUIRED,
                    schema: <$type as $crate::document::read::Read>::schema,
                } ),*],
                unsupported: &[$( $( ($unsupported, $instead) ),* )?],
                renamed: &[$( $( ($former, $now) ),* )?],
                exactly_one: &[$( $( &[$($one),*] ),* )?],
            };
        }

        impl $crate::document::read::Read for $name {
            fn read(
                node: &$crate::yaml::Node,
                problems: &mut $crate::problem::Problems,
            ) -> Option<Self> {
                static SHAPE: $crate::document::read::Shape = $name::SHAPE;
                let before = problems.errors();
                let entries = SHAPE.open(node, problems)?;
                #[allow(unused_mut, unused_variables, reason = "an object may have no fields")]
                let mut fields = SHAPE.fields.iter();
                $( let $field = match fields.next() {
                    Some(field) => entries.field::<$type>(field, problems),
                    None => None,
                }; )*
                let _ = &entries;
                if problems.errors() > before {
                    return None;
                }
                Some(Self { span: node.span, $( $field: $field?, )* })
            }

            fn schema(
                definitions: &mut $crate::document::read::Definitions,
            ) -> serde_json::Value {
                definitions.refer(stringify!($name), |definitions| Self::SHAPE.schema(definitions))
            }
        }
    };
}

/// Declares a type that is one of some words.
macro_rules! choice {
    (
        $(#[doc = $doc:literal])*
        enum $name:ident { $( $(#[doc = $word_doc:literal])* $word:literal => $variant:ident, )* }
        $( unsupported { $( $unsupported:literal => $instead:literal, )* } )?
    ) => {
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(crate) enum $name { $( $(#[doc = $word_doc])* $variant, )* }

        impl $crate::document::read::Read for $name {
            fn read(
                node: &$crate::yaml::Node,
                problems: &mut $crate::problem::Problems,
            ) -> Option<Self> {
                let words = [$( ($word, Self::$variant) ),*];
                let unsupported: &[(&str, &str)] = &[$( $( ($unsupported, $instead) ),* )?];
                $crate::document::read::word(node, &words, unsupported, problems)
            }

            fn schema(
                definitions: &mut $crate::document::read::Definitions,
            ) -> serde_json::Value {
                definitions.refer(stringify!($name), |_| {
                    serde_json::json!({
                        "type": "string",
                        "description": $crate::document::read::join(&[$($doc),*]),
                        "enum": [$($word),*],
                        "markdownEnumDescriptions": [
                            $($crate::document::read::join(&[$($word_doc),*])),*
                        ],
                    })
                })
            }
        }
    };
}

pub(crate) use {choice, object};

/// Reads one of some words.
pub(crate) fn word<T: Copy>(
    node: &Node,
    words: &[(&'static str, T)],
    unsupported: &[(&str, &str)],
    problems: &mut Problems,
) -> Option<T> {
    let allowed = words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
    let Some(text) = node.text() else {
        wrong_type(node, "a word", problems).help(format!("one of {allowed}"));
        return None;
    };
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
        return Some(*value);
    }
    if let Some((_, instead)) = unsupported.iter().find(|(word, _)| *word == text) {
        let message = format!("`{text}` is not supported yet");
        problems.error(Rule::Unsupported, node.span, message).help(*instead);
        return None;
    }
    let help = match nearest(text, words.iter().map(|(word, _)| *word)) {
        Some(near) => format!("did you mean `{near}`? one of {allowed}"),
        None => format!("one of {allowed}"),
    };
    invalid(node.span, format!("{} is not known here", ticked(text)), help, problems);
    None
}
