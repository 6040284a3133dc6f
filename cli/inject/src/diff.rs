//! What changes, for a person.

use similar::TextDiff;

/// A unified diff of `before` and `after`, both called `file`; empty where they are equal.
pub fn unified(file: &str, before: &str, after: &str) -> String {
    if before == after {
        return String::new();
    }
    let file = file.trim_start_matches('/');
    let diff = TextDiff::from_lines(before, after);
    diff.unified_diff().header(&format!("a/{file}"), &format!("b/{file}")).to_string()
}
