//! What changes between two JSON values, as a JSON Patch (RFC 6902).
//!
//! A sidecar comes first in its list. What is compared item by item would then replace every
//! container by the one before it; here what both lists begin and end with stays as it is, so that
//! the patch, which audit logs keep, says what was added.

use serde::Serialize;
use serde_json::Value;

/// One step, on what the steps before it made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub(super) enum Operation {
    /// Puts a value at a place: a new key, or in front of what is there in a list.
    Add { path: String, value: Value },
    /// Takes a value out.
    Remove { path: String },
    /// Puts a value in place of another.
    Replace { path: String, value: Value },
}

/// The steps that make `after` of `before`.
pub(super) fn difference(before: &Value, after: &Value) -> Vec<Operation> {
    let mut steps = Vec::new();
    compare("", before, after, &mut steps);
    steps
}

fn compare(path: &str, before: &Value, after: &Value, steps: &mut Vec<Operation>) {
    match (before, after) {
        (one, other) if one == other => {}
        (Value::Object(one), Value::Object(other)) => {
            for (key, old) in one {
                let path = child(path, key);
                match other.get(key) {
                    Some(new) => compare(&path, old, new, steps),
                    None => steps.push(Operation::Remove { path }),
                }
            }
            for (key, value) in other.iter().filter(|(key, _)| !one.contains_key(*key)) {
                steps.push(Operation::Add { path: child(path, key), value: value.clone() });
            }
        }
        (Value::Array(one), Value::Array(other)) => lists(path, one, other, steps),
        _ => steps.push(Operation::Replace { path: path.to_owned(), value: after.clone() }),
    }
}

fn lists(path: &str, one: &[Value], other: &[Value], steps: &mut Vec<Operation>) {
    let alike = one.iter().zip(other).take_while(|(a, b)| a == b);
    let head = alike.count();
    let (one, other) = (&one[head..], &other[head..]);
    let tail = one.iter().rev().zip(other.iter().rev()).take_while(|(a, b)| a == b).count();
    let (one, other) = (&one[..one.len() - tail], &other[..other.len() - tail]);
    let at = |index: usize| format!("{path}/{}", head + index);
    if one.len() == other.len() {
        for (index, (old, new)) in one.iter().zip(other).enumerate() {
            compare(&at(index), old, new, steps);
        }
        return;
    }
    steps.extend(one.iter().map(|_| Operation::Remove { path: at(0) }));
    let added = other.iter().enumerate();
    steps.extend(added.map(|(index, new)| Operation::Add { path: at(index), value: new.clone() }));
}

/// A JSON pointer one step further (RFC 6901 §3).
fn child(path: &str, key: &str) -> String {
    format!("{path}/{}", key.replace('~', "~0").replace('/', "~1"))
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Does what a patch says, as RFC 6902 §4 has it.
    pub(in crate::webhook) fn applied(mut value: Value, steps: &[Value]) -> Value {
        for step in steps {
            let path = step["path"].as_str().unwrap();
            let new = step.get("value").cloned();
            let Some((parent, last)) = path.rsplit_once('/') else {
                value = new.unwrap();
                continue;
            };
            let last = last.replace("~1", "/").replace("~0", "~");
            let parent = value.pointer_mut(parent).unwrap_or_else(|| panic!("nothing at {path}"));
            match (parent, step["op"].as_str().unwrap()) {
                (Value::Object(map), "add") => drop(map.insert(last, new.unwrap())),
                (Value::Object(map), "remove") => drop(map.remove(&last).unwrap()),
                (Value::Object(map), "replace") => {
                    *map.get_mut(&last).unwrap() = new.unwrap();
                }
                (Value::Array(list), "add") => list.insert(last.parse().unwrap(), new.unwrap()),
                (Value::Array(list), "remove") => drop(list.remove(last.parse().unwrap())),
                (Value::Array(list), "replace") => {
                    list[last.parse::<usize>().unwrap()] = new.unwrap();
                }
                other => panic!("{other:?}"),
            }
        }
        value
    }

    fn steps(before: &Value, after: &Value) -> Vec<Value> {
        let steps = serde_json::to_value(difference(before, after)).unwrap();
        steps.as_array().unwrap().clone()
    }

    #[test]
    fn a_patch_says_what_was_added_and_no_more() {
        for (before, after, expected) in [
            (json!({}), json!({}), json!([])),
            (
                json!({"a": [{"name": "x"}]}),
                json!({"a": [{"name": "new"}, {"name": "x"}]}),
                json!([{"op": "add", "path": "/a/0", "value": {"name": "new"}}]),
            ),
            (
                json!({"a": [1, 2, 3]}),
                json!({"a": [1, 4, 5, 3]}),
                json!([
                    {"op": "remove", "path": "/a/1"},
                    {"op": "add", "path": "/a/1", "value": 4},
                    {"op": "add", "path": "/a/2", "value": 5},
                ]),
            ),
            (
                json!({"m": {"a/b~c": "1"}}),
                json!({"m": {"a/b~c": "2"}}),
                json!([{"op": "replace", "path": "/m/a~1b~0c", "value": "2"}]),
            ),
            (
                json!({"a": null, "b": 1}),
                json!({"a": []}),
                json!([{"op": "replace", "path": "/a", "value": []}, {"op": "remove", "path": "/b"}]),
            ),
            (json!(1), json!({}), json!([{"op": "replace", "path": "", "value": {}}])),
        ] {
            assert_eq!(Value::from(steps(&before, &after)), expected, "{before} -> {after}");
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (0..3).prop_map(Value::from),
            "[ab~/]{0,2}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                proptest::collection::hash_map("[ab~/]{0,2}", inner, 0..4)
                    .prop_map(|map| map.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_a_patch_makes_is_what_was_wanted(before in value(), after in value()) {
            let steps = steps(&before, &after);
            prop_assert_eq!(applied(before, &steps), after);
        }
    }
}
