//! What was added to a pod, in the words of the annotation that says so.
//!
//! `0.1.0 +spec/volumes +spec/volumes/towpath metadata/annotations=null`: the version that
//! injected; each place that it added, lists by the `name` of what is in them; and what stood
//! where it replaced something. Places are JSON pointers without the first slash. Whichever
//! version reads this can take all of it out again: nothing else needs to be known.

use std::{cmp::Ordering, collections::BTreeMap};

use crate::edit::Host;

/// The annotation, and the label of a Compose service that was added.
pub(crate) const INJECTED: &str = "towpath.dev/injected";

/// What was added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Record {
    /// The version that did it.
    pub(crate) version: String,
    /// Places that were added, outer ones first.
    pub(crate) added: Vec<Vec<String>>,
    /// Lists and objects that were null, and how that was written.
    pub(crate) replaced: BTreeMap<Vec<String>, String>,
}

impl Record {
    pub(crate) fn new(version: &str) -> Self {
        Self { version: version.to_owned(), ..Self::default() }
    }

    /// Reads the annotation; `None` when it says something that is not known here.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_ascii_whitespace();
        let mut record = Self::new(words.next()?);
        version_numbers(&record.version)?;
        for word in words {
            if let Some(place) = word.strip_prefix('+') {
                record.added.push(steps(place)?);
            } else {
                let (place, written) = word.split_once('=')?;
                record.replaced.insert(steps(place)?, written.to_owned());
            }
        }
        Some(record)
    }

    /// As the annotation has it.
    pub(crate) fn text(&self) -> String {
        let mut text = self.version.clone();
        for place in &self.added {
            text += &format!(" +{}", pointer(place));
        }
        for (place, written) in &self.replaced {
            text += &format!(" {}={written}", pointer(place));
        }
        text
    }

    pub(crate) fn add(&mut self, place: &[&str]) {
        self.added.push(place.iter().map(|&step| step.to_owned()).collect());
    }

    /// Writes down what became of a list or an object that was added to.
    pub(crate) fn host(&mut self, place: &[&str], host: Host) {
        match host {
            Host::Made => self.add(place),
            Host::Replaced(written) => {
                let place = place.iter().map(|&step| step.to_owned()).collect();
                self.replaced.insert(place, written);
            }
            Host::Extended => {}
        }
    }
}

/// How two versions compare; one that cannot be read is taken for newer.
pub(crate) fn compare(other: &str, own: &str) -> Ordering {
    match (version_numbers(other), version_numbers(own)) {
        (Some(other), Some(own)) => other.cmp(&own),
        _ => Ordering::Greater,
    }
}

/// Numbers of a version; a pre-release counts as what it leads to.
fn version_numbers(version: &str) -> Option<[u64; 3]> {
    let plain = version.split(['-', '+']).next()?;
    let mut numbers = plain.split('.').map(|number| number.parse().ok());
    let three = [numbers.next()??, numbers.next()??, numbers.next()??];
    numbers.next().is_none().then_some(three)
}

fn steps(pointer: &str) -> Option<Vec<String>> {
    let step = |step: &str| step.replace("~1", "/").replace("~0", "~");
    (!pointer.is_empty()).then(|| pointer.split('/').map(step).collect())
}

fn pointer(place: &[String]) -> String {
    let steps: Vec<String> =
        place.iter().map(|step| step.replace('~', "~0").replace('/', "~1")).collect();
    steps.join("/")
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use super::{Record, compare};

    #[test]
    fn what_is_written_is_read_again() {
        let mut record = Record::new("0.1.0");
        record.add(&["spec", "volumes"]);
        record.add(&["metadata", "annotations", "kubectl.kubernetes.io/default~container"]);
        record.replaced.insert(vec!["spec".into(), "initContainers".into()], "~".into());
        let text = record.text();
        assert_eq!(
            text,
            "0.1.0 +spec/volumes +metadata/annotations/kubectl.kubernetes.io~1default~0container \
             spec/initContainers=~"
        );
        assert_eq!(Record::parse(&text), Some(record));
    }

    #[test]
    fn what_cannot_be_read_is_not_guessed_at() {
        for text in ["", "yes", "1.2", "1.2.3.4", "0.1.0 spec", "0.1.0 +", "0.1.0 -spec/volumes"] {
            assert_eq!(Record::parse(text), None, "{text}");
        }
    }

    #[test]
    fn versions_compare_by_number() {
        for (other, own, expected) in [
            ("0.1.0", "0.1.0", Ordering::Equal),
            ("0.9.0", "0.10.0", Ordering::Less),
            ("1.0.0", "0.10.0", Ordering::Greater),
            ("0.1.0-rc.1", "0.1.0", Ordering::Equal),
            ("next", "0.1.0", Ordering::Greater),
        ] {
            assert_eq!(compare(other, own), expected, "{other} {own}");
        }
    }
}
