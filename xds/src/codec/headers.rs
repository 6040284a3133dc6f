//! [`HeaderEdit`] ↔ `…_headers_to_add`, `…_headers_to_remove`.

use envoy_types::pb::envoy::config::core::v3::{
    HeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction,
};
use towpath_policies::model::HeaderEdit;

use super::common::{At, Result, refuse};

/// What is to add (and set), and what is to remove.
pub(super) fn encode(edit: &HeaderEdit) -> (Vec<HeaderValueOption>, Vec<String>) {
    let set = edit.set.iter().map(|h| option(h, HeaderAppendAction::OverwriteIfExistsOrAdd));
    let add = edit.add.iter().map(|h| option(h, HeaderAppendAction::AppendIfExistsOrAdd));
    (set.chain(add).collect(), edit.remove.clone())
}

pub(super) fn option(
    (name, value): &(String, String),
    action: HeaderAppendAction,
) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: name.clone(),
            // Envoy reads `%COMMAND%` in values; a plain `%` is doubled.
            value: value.replace('%', "%%"),
            ..Default::default()
        }),
        append_action: action as i32,
        keep_empty_value: true,
        ..Default::default()
    }
}

pub(super) fn decode(add: &[HeaderValueOption], remove: &[String]) -> Result<HeaderEdit> {
    let mut edit = HeaderEdit {
        remove: remove.iter().map(|n| n.to_ascii_lowercase()).collect(),
        ..HeaderEdit::default()
    };
    for (i, option) in add.iter().enumerate() {
        decode_one(option, &mut edit).at_index("headers_to_add", i)?;
    }
    Ok(edit)
}

fn decode_one(option: &HeaderValueOption, edit: &mut HeaderEdit) -> Result<()> {
    let header = option.header.clone().unwrap_or_default();
    let name = header.key.to_ascii_lowercase();
    if name.is_empty() || name.starts_with(':') {
        return refuse(format!("{name:?} cannot be edited"));
    }
    let text = if header.value.is_empty() && !header.raw_value.is_empty() {
        match String::from_utf8(header.raw_value) {
            Ok(text) => text,
            Err(_) => return refuse(format!("the value of {name:?} is no UTF-8")),
        }
    } else {
        header.value
    };
    if text.is_empty() && !option.keep_empty_value {
        return Ok(());
    }
    let Some(value) = literal(&text) else {
        return refuse(format!("the value of {name:?} has a %COMMAND%, which is not supported"));
    };
    #[expect(deprecated, reason = "older servers still write it")]
    let action = match &option.append {
        Some(append) if append.value => HeaderAppendAction::AppendIfExistsOrAdd,
        Some(_) => HeaderAppendAction::OverwriteIfExistsOrAdd,
        None => match HeaderAppendAction::try_from(option.append_action) {
            Ok(action) => action,
            Err(_) => return refuse(format!("unknown append_action {}", option.append_action)),
        },
    };
    match action {
        HeaderAppendAction::AppendIfExistsOrAdd => edit.add.push((name, value)),
        HeaderAppendAction::OverwriteIfExistsOrAdd => edit.set.push((name, value)),
        HeaderAppendAction::AddIfAbsent | HeaderAppendAction::OverwriteIfExists => {
            return refuse(format!("append_action {} is not supported", action.as_str_name()));
        }
    }
    Ok(())
}

/// The text with `%%` as `%`, unless it holds a `%COMMAND%`.
fn literal(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = rest[at + 1..].strip_prefix('%')?;
        out.push('%');
    }
    out.push_str(rest);
    Some(out)
}

/// Adds what an outer level (virtual host, route table) says; it comes last and wins.
pub(super) fn merge(edit: &mut HeaderEdit, outer: &HeaderEdit) {
    for (name, value) in &outer.set {
        edit.set.retain(|(n, _)| n != name);
        edit.add.retain(|(n, _)| n != name);
        edit.set.push((name.clone(), value.clone()));
    }
    edit.add.extend(outer.add.iter().cloned());
    for name in &outer.remove {
        if !edit.remove.contains(name) {
            edit.remove.push(name.clone());
        }
    }
}
