//! Whether proxies count as under way what is not.

use serde_json::Value;

/// What the admin endpoint shows of services, by its names, that is none once all is over.
const NONE: [&str; 9] = [
    "requests_in_flight",
    "bytes_in_flight",
    "retries_in_flight",
    "retry_bytes_in_flight",
    "pending",
    "slots_used",
    "awaiting_head",
    // Of a queue, by class.
    "requests",
    "bytes",
];

/// What is left of it, in the text of `/endpoints`.
pub(in crate::faults) fn left_counted(shown: &str) -> Vec<String> {
    let mut left = Vec::new();
    match serde_json::from_str(shown) {
        Ok(shown) => walk(&shown, "", &mut left),
        Err(error) => left.push(format!("/endpoints cannot be read: {error}")),
    }
    left
}

fn walk(value: &Value, path: &str, left: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                if NONE.contains(&name.as_str()) && value.as_u64().is_some_and(|count| count > 0) {
                    left.push(format!("{path}/{name}: {value}"));
                }
                walk(value, &format!("{path}/{name}"), left);
            }
        }
        Value::Array(values) => {
            for (at, value) in values.iter().enumerate() {
                walk(value, &format!("{path}/{at}"), left);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_still_counted_is_found_wherever_it_is_and_what_was_is_not() {
        for (shown, expected) in [
            (r#"{"s": {"pending": 0, "connections": 3, "queue": {"bulk": {"requests": 0}}}}"#, ""),
            (r#"{"s": {"pending": 1}}"#, "/s/pending: 1"),
            (r#"{"s": {"queue": {"bulk": {"bytes": 7}}}}"#, "/s/queue/bulk/bytes: 7"),
            (
                r#"{"s": {"endpoints": [{}, {"concurrency": {"limit": 9, "awaiting_head": 2}}]}}"#,
                "/s/endpoints/1/concurrency/awaiting_head: 2",
            ),
            (
                r#"{"s": {"endpoints": [{"slots": 2, "slots_used": 1}]}}"#,
                "/s/endpoints/0/slots_used: 1",
            ),
        ] {
            assert_eq!(left_counted(shown).join(", "), expected);
        }
        assert_eq!(left_counted("").len(), 1, "an answer that is none is not well");
    }
}
