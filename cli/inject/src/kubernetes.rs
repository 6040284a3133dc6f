//! Which objects get a sidecar, what it looks like, and what speaks against it.

mod pod;
mod probes;
mod walk;

pub(crate) use walk::{Workload, workloads};

use crate::{
    Source, Work,
    edit::{Addition, Edits},
    emit::Value,
    problem::Problem,
    record::{INJECTED, Record},
    settings::{PREFIX, Place, Settings},
    tree::Id,
};

/// The sidecar.
pub(crate) const PROXY: &str = "towpath-proxy";
/// The init step.
pub(crate) const INTERCEPT: &str = "towpath-intercept";
/// What the sidecar may write to.
const VOLUME: &str = "towpath";
/// Whose container `kubectl logs` and `exec` mean.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// Gives all workloads of a document their sidecars.
pub(crate) fn inject(work: &mut Work<'_>, root: Id, problems: &mut Vec<Problem>) {
    let (found, mut notes) = workloads(work.text, work.tree, root);
    work.notes.append(&mut notes);
    for workload in found {
        if let Err(problem) = inject_one(work, &workload) {
            problems.push(problem);
        }
    }
}

fn inject_one(work: &mut Work<'_>, workload: &Workload) -> Result<(), Problem> {
    let (text, tree, options) = (work.text, work.tree, work.options);
    let settings = settings(work, workload);
    if settings.as_ref().is_ok_and(|settings| !settings.inject) {
        return Ok(());
    }
    // What can have no sidecar is not refused for what it says of one.
    if let Some(reason) = not_for_us(work, workload) {
        work.notes.push(reason);
        return Ok(());
    }
    let settings = settings?;
    if let Some(Source::Policies(_)) = settings.source {
        return Err(Problem::general("a folder of policies cannot be given to pods")
            .help("name a control plane: --control-plane ADDR"));
    }
    let pod = pod::Pod { text, tree, workload, options, settings: &settings };
    pod.check()?;
    for step in &workload.trail {
        if step.merged {
            return Err(work.edits.merged(step.within, step.key));
        }
        work.edits.refuse_shared(step.value, step.key)?;
    }
    work.notes.extend(pod.notes());
    let mut record = Record::new(&options.version);
    let place = if options.plain { "containers" } else { "initContainers" };
    let mut first = Vec::new();
    if options.intercept && !options.plain {
        first.push((INTERCEPT, pod.intercept()));
    }
    first.push((PROXY, pod.sidecar()));
    let spec = workload.spec;
    add_items(&mut work.edits, spec, place, first, &mut record)?;
    if options.intercept && options.plain {
        let step = vec![(INTERCEPT, pod.intercept())];
        add_items(&mut work.edits, spec, "initContainers", step, &mut record)?;
    }
    // A limit on ephemeral storage would be one on the whole pod's, the application's too.
    let size = Value::map([("sizeLimit", Value::text(Place::Kubernetes.state_size()))]);
    let volume = Value::map([("name", Value::text(VOLUME)), ("emptyDir", size)]);
    add_items(&mut work.edits, spec, "volumes", vec![(VOLUME, volume)], &mut record)?;
    annotate(work, workload, &pod, record)?;
    work.changed.push(workload.to_string());
    Ok(())
}

/// Why a pod is passed over, if it is.
fn not_for_us(work: &Work<'_>, workload: &Workload) -> Option<Problem> {
    let (tree, edits) = (work.tree, &work.edits);
    let mirror = ["metadata", "annotations", "kubernetes.io/config.mirror"];
    if let Some(mirror) = tree.find(workload.holder, &mirror) {
        let message =
            "passed over: the mirror of a static pod, whose kubelet runs what its file says";
        return Some(edits.problem(mirror, message).help("inject that file"));
    }
    let os = tree
        .find(workload.spec, &["os", "name"])
        .or_else(|| tree.find(workload.spec, &["nodeSelector", "kubernetes.io/os"]))?;
    let windows = tree.text(os) == Some("windows");
    windows.then(|| edits.problem(os, "passed over: the proxy does not run on Windows"))
}

fn add_items(
    edits: &mut Edits<'_>,
    spec: Id,
    list: &str,
    items: Vec<(&str, Value)>,
    record: &mut Record,
) -> Result<(), Problem> {
    let (names, values): (Vec<&str>, Vec<Value>) = items.into_iter().unzip();
    let host = edits.add(spec, list, Addition::Items(values), &["containers"])?;
    record.host(&["spec", list], host);
    names.into_iter().for_each(|name| record.add(&["spec", list, name]));
    Ok(())
}

/// Writes down what was added.
fn annotate(
    work: &mut Work<'_>,
    workload: &Workload,
    pod: &pod::Pod<'_>,
    mut record: Record,
) -> Result<(), Problem> {
    let (tree, holder) = (work.tree, workload.holder);
    let mut entries = Vec::new();
    if let (true, Some(name)) = (work.options.plain, pod.first_container())
        && tree.find(holder, &["metadata", "annotations", DEFAULT_CONTAINER]).is_none()
    {
        record.add(&["metadata", "annotations", DEFAULT_CONTAINER]);
        entries.push((DEFAULT_CONTAINER.to_owned(), Value::text(name)));
    }
    // What becomes of metadata and annotations must be known before it is written down there.
    record.host(&["metadata"], work.edits.host(holder, "metadata"));
    let metadata = tree.get(holder, "metadata").filter(|found| !tree.is_null(found.value));
    let Some(metadata) = metadata else {
        record.add(&["metadata", "annotations"]);
        entries.push((INJECTED.to_owned(), Value::Text(record.text())));
        let annotations = vec![("annotations".to_owned(), Value::Map(entries))];
        work.edits.add(holder, "metadata", Addition::Entries(annotations), &["spec"])?;
        return Ok(());
    };
    if metadata.entry.is_none() {
        return Err(work.edits.merged(holder, "metadata"));
    }
    work.edits.refuse_shared(metadata.value, "metadata")?;
    record.host(&["metadata", "annotations"], work.edits.host(metadata.value, "annotations"));
    entries.push((INJECTED.to_owned(), Value::Text(record.text())));
    let entries = Addition::Entries(entries);
    work.edits.add(metadata.value, "annotations", entries, &["labels", "name"])?;
    Ok(())
}

/// What the pod's own annotations say, and those of what makes it.
fn settings(work: &mut Work<'_>, workload: &Workload) -> Result<Settings, Problem> {
    let (text, tree) = (work.text, work.tree);
    let mut settings = Settings::new(work.options);
    for owner in [workload.object, workload.holder] {
        let Some(annotations) = tree.find(owner, &["metadata", "annotations"]) else {
            continue;
        };
        for entry in tree.entries(annotations) {
            let (Some(key), Some(value)) = (tree.text(entry.key), tree.text(entry.value)) else {
                continue;
            };
            settings.set(text, (key, value, entry.value), Place::Kubernetes, tree)?;
            if key.starts_with(PREFIX) && !tree.is_string(entry.value) {
                let range = tree.node(entry.value).range.clone();
                let message = format!("Kubernetes takes no {value} for an annotation, only text");
                work.notes
                    .push(Problem::new(text, range, message).help(format!("write it \"{value}\"")));
            }
        }
    }
    Ok(settings)
}
