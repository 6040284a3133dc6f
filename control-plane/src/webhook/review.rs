//! From an `AdmissionReview` to its answer (`admission.k8s.io/v1`).

use std::fmt::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use towpath_inject::{Options, Problem, inject};

use super::{log, options::OnProblem, patch};

/// Who is given a sidecar without saying anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Among {
    /// All pods that do not refuse.
    All,
    /// Pods that ask for one.
    Annotated,
}

/// What came of a review.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The pod gets a sidecar.
    Injected,
    /// It has one.
    Already,
    /// It is to have none, or cannot have one for what it is.
    PassedOver,
    /// It should have one, and cannot be given it.
    Problem,
    /// Nothing that could be answered.
    BadRequest,
}

impl Outcome {
    pub(crate) const ALL: [Self; 5] =
        [Self::Injected, Self::Already, Self::PassedOver, Self::Problem, Self::BadRequest];

    /// As metrics have it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Injected => "injected",
            Self::Already => "already",
            Self::PassedOver => "passed_over",
            Self::Problem => "problem",
            Self::BadRequest => "bad_request",
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadReview {
    #[error("the body is not an AdmissionReview: {0}")]
    Json(#[from] serde_json::Error),
    #[error("expected an AdmissionReview of {VERSION}, found {kind:?} of {version:?}")]
    Version { version: String, kind: String },
    #[error("the AdmissionReview holds no request")]
    Empty,
}

const VERSION: &str = "admission.k8s.io/v1";
/// What marks a pod that `towpath inject` has been at.
const INJECTED: &str = "towpath.dev/injected";
const ASKED: &str = "towpath.dev/inject";
const SIDECAR: &str = "towpath-proxy";
/// Longer warnings are cut off by API servers.
const MAX_WARNING: usize = 256;
/// More of them, too.
const MAX_WARNINGS: usize = 8;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    request: Option<Request>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    uid: String,
    kind: Kind,
    #[serde(default)]
    sub_resource: String,
    /// Empty where the pod is to be given one.
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
    operation: String,
    /// Nothing is created, whatever the answer is.
    dry_run: Option<bool>,
    #[serde(default)]
    object: Value,
}

#[derive(Deserialize)]
struct Kind {
    #[serde(default)]
    group: String,
    version: String,
    kind: String,
}

/// What is sent back.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Answer {
    api_version: &'static str,
    kind: &'static str,
    response: Response,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    uid: String,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

/// An answer, and what is to be counted and said of it.
#[derive(Debug)]
pub(super) struct Reviewed {
    pub(super) answer: Answer,
    pub(super) outcome: Outcome,
    /// There is one with [`Outcome::Problem`], but for a dry run: then no pod starts.
    pub(super) trouble: Option<Trouble>,
}

/// A pod that cannot be given a sidecar, and why, as it can stand in a log.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) namespace: String,
    /// Its name, or what its name will begin with.
    pub(super) name: String,
    /// Kind and name of what made it; empty where nothing did.
    pub(super) owner: String,
    pub(super) why: String,
    /// It is created all the same.
    pub(super) allowed: bool,
}

/// Answers one review.
///
/// # Errors
/// When it is none: then nobody knows which pod it is about.
pub(super) fn answer(
    body: &[u8],
    options: &Options,
    among: Among,
    on_problem: OnProblem,
) -> Result<Reviewed, BadReview> {
    let review: Review = serde_json::from_slice(body)?;
    if review.api_version != VERSION || review.kind != "AdmissionReview" {
        return Err(BadReview::Version { version: review.api_version, kind: review.kind });
    }
    let request = review.request.ok_or(BadReview::Empty)?;
    let mut response = Response { uid: request.uid.clone(), allowed: true, ..Response::default() };
    let (outcome, trouble) = match decide(&request, options, among, &mut response) {
        Ok(outcome) => (outcome, None),
        Err(problems) => {
            let why = log::line(&problems.join("; "));
            tell(problems, on_problem, &mut response);
            let dry = request.dry_run == Some(true);
            let trouble = (!dry).then(|| Trouble::with(&request, why, response.allowed));
            (Outcome::Problem, trouble)
        }
    };
    let answer = Answer { api_version: VERSION, kind: "AdmissionReview", response };
    Ok(Reviewed { answer, outcome, trouble })
}

/// What becomes of the pod, or why it cannot have what it should.
fn decide(
    request: &Request,
    options: &Options,
    among: Among,
    response: &mut Response,
) -> Result<Outcome, Vec<String>> {
    let Kind { group, version, kind } = &request.kind;
    let is_pod = (group.as_str(), version.as_str(), kind.as_str()) == ("", "v1", "Pod");
    if !is_pod || request.operation != "CREATE" || !request.sub_resource.is_empty() {
        return Ok(Outcome::PassedOver);
    }
    let pod = &request.object;
    let annotations = &pod["metadata"]["annotations"];
    let wanted = match among {
        // Before anything else of a pod that refuses is looked at: it must not be kept from
        // starting by what would be wrong with its sidecar.
        Among::All => annotations[ASKED] != "false",
        Among::Annotated => annotations[ASKED] == "true",
    };
    if !wanted {
        return Ok(Outcome::PassedOver);
    }
    // Whoever injected it may have said more than we are told.
    if annotations[INJECTED].is_string() && has_sidecar(pod) {
        return Ok(Outcome::Already);
    }
    let (patch, notes) = injected(pod, options)?;
    response.warnings = notes;
    let Some(patch) = patch else { return Ok(Outcome::PassedOver) };
    response.patch_type = Some("JSONPatch");
    response.patch = Some(patch);
    Ok(Outcome::Injected)
}

/// Tells whoever creates the pod.
fn tell(problems: Vec<String>, on_problem: OnProblem, response: &mut Response) {
    let said = problems.into_iter().map(|problem| format!("no Towpath sidecar: {problem}"));
    if on_problem == OnProblem::Warn {
        response.warnings = said.map(|line| cut(&line, MAX_WARNING)).collect();
    } else {
        let message = said.collect::<Vec<_>>().join("; ");
        response.allowed = false;
        response.status = Some(json!({ "code": 422, "reason": "Invalid", "message": message }));
    }
}

impl Trouble {
    fn with(request: &Request, why: String, allowed: bool) -> Self {
        let metadata = &request.object["metadata"];
        let text = |value: &Value| log::line(value.as_str().unwrap_or_default());
        let name = match request.name.as_str() {
            "" if metadata["name"].is_string() => text(&metadata["name"]),
            "" => text(&metadata["generateName"]),
            name => log::line(name),
        };
        let owner = owner(metadata)
            .map(|owner| format!("{}/{}", text(&owner["kind"]), text(&owner["name"])));
        let namespace = log::line(&request.namespace);
        Self { namespace, name, owner: owner.unwrap_or_default(), why, allowed }
    }
}

/// The patch that gives `pod` its sidecar, `None` where it gets none, and what one should know; or
/// what is wrong.
fn injected(pod: &Value, options: &Options) -> Result<(Option<String>, Vec<String>), Vec<String>> {
    let options = Options { workload: workload(pod), ..options.clone() };
    let outcome = inject("pod", &yaml(pod), &options).map_err(|problems| warnings(&problems))?;
    let notes = warnings(&outcome.notes);
    if outcome.changed.is_empty() {
        return Ok((None, notes));
    }
    let wrong = |error: serde_json::Error| vec![format!("what was made is not JSON: {error}")];
    let after: Value = serde_json::from_str(&outcome.text).map_err(wrong)?;
    let steps = serde_json::to_vec(&patch::difference(pod, &after)).map_err(wrong)?;
    Ok((Some(STANDARD.encode(steps)), notes))
}

/// JSON that is YAML too: what YAML does not take as it is, in escapes that both have. In JSON such
/// characters stand in strings only.
fn yaml(pod: &Value) -> String {
    let text = pod.to_string();
    let odd = |c: char| {
        matches!(
            c,
            '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}'
        )
    };
    if !text.contains(odd) {
        return text;
    }
    let mut clean = String::with_capacity(text.len() + 64);
    for c in text.chars() {
        if odd(c) {
            // Writing to a string cannot fail.
            let _ = write!(clean, "\\u{:04x}", u32::from(c));
        } else {
            clean.push(c);
        }
    }
    clean
}

fn has_sidecar(pod: &Value) -> bool {
    let lists = ["initContainers", "containers"].into_iter();
    let mut names = lists
        .filter_map(|list| pod["spec"][list].as_array())
        .flatten()
        .map(|container| &container["name"]);
    names.any(|name| name == SIDECAR)
}

/// What made a pod.
fn owner(metadata: &Value) -> Option<&Value> {
    metadata["ownerReferences"].as_array()?.iter().find(|owner| owner["controller"] == true)
}

/// What the pods were made of, as its manifest would have said: a pod knows only who made it.
fn workload(pod: &Value) -> Option<String> {
    let metadata = &pod["metadata"];
    let owner = owner(metadata)?;
    let name = owner["name"].as_str()?;
    let name = match owner["kind"].as_str()? {
        // A Deployment's ReplicaSets are called by the hash of their template.
        "ReplicaSet" => {
            let hash = metadata["labels"]["pod-template-hash"].as_str();
            let stem = hash.and_then(|hash| name.strip_suffix(hash)?.strip_suffix('-'));
            stem.unwrap_or(name)
        }
        // A CronJob's Jobs are called by the minute at which they were due.
        "Job" => match name.rsplit_once('-') {
            Some((stem, due)) if due.len() >= 8 && due.bytes().all(|b| b.is_ascii_digit()) => stem,
            _ => name,
        },
        _ => name,
    };
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-.".contains(&b);
    (!name.is_empty() && name.len() <= 253 && name.bytes().all(plain)).then(|| name.to_owned())
}

/// A line each; where in the pod's JSON it is, nobody sees.
fn warnings(problems: &[Problem]) -> Vec<String> {
    let line = |problem: &Problem| {
        let help = problem.help.as_ref().map_or(String::new(), |help| format!(" ({help})"));
        cut(&format!("{}{help}", problem.message), MAX_WARNING)
    };
    problems.iter().take(MAX_WARNINGS).map(line).collect()
}

/// As an HTTP header can hold it, in at most so many bytes.
pub(super) fn cut(line: &str, limit_bytes: usize) -> String {
    let mut length = 0;
    let clean = line.chars().map(|c| if c.is_control() { ' ' } else { c });
    let fits = |c: &char| {
        length += c.len_utf8();
        length <= limit_bytes
    };
    clean.take_while(fits).collect()
}

#[cfg(test)]
mod tests;
