//! Compose files: each service gets a second one beside it, in the same network namespace
//! (`network_mode: "service:…"`). The service itself is not touched.

use std::collections::BTreeSet;

use crate::{
    Kind, Options, Source, Work,
    emit::Value,
    problem::Problem,
    record::INJECTED,
    settings::{POLICIES, Place, STATE, Settings},
    tree::{Entry, Id, Tree},
};

/// What the name of a sidecar ends with.
pub(crate) const SUFFIX: &str = "-towpath";

/// Whether a document is a Compose file: as was said, or services and no kind of Kubernetes.
pub(crate) fn is_compose(tree: &Tree, root: Id, kind: Option<Kind>) -> bool {
    if let Some(kind) = kind {
        return kind == Kind::Compose;
    }
    let services = tree.find(root, &["services"]).is_some_and(|services| tree.is_map(services));
    services && tree.get(root, "kind").is_none() && tree.get(root, "apiVersion").is_none()
}

/// Sidecars that were added: the services, which one it is, and the label that says so.
pub(crate) fn injected(tree: &Tree, root: Id, kind: Option<Kind>) -> Vec<(Id, usize, Id)> {
    if !is_compose(tree, root, kind) {
        return Vec::new();
    }
    let Some(services) = tree.find(root, &["services"]).map(|id| tree.resolve(id)) else {
        return Vec::new();
    };
    let entries = tree.entries(services).iter().enumerate();
    let marked = entries.filter_map(|(index, entry)| {
        let labels = labels(tree, entry.value);
        let mark = labels.iter().find(|(key, _, _)| key == INJECTED)?.2;
        Some((services, index, mark))
    });
    marked.collect()
}

/// Gives all services of a document their sidecars.
pub(crate) fn inject(work: &mut Work<'_>, root: Id, problems: &mut Vec<Problem>) {
    let tree = work.tree;
    let Some(found) = tree.get(root, "services").filter(|found| tree.is_map(found.value)) else {
        problems.push(Problem::general("this is no Compose file: it has no services"));
        return;
    };
    let services = found.value;
    let shared = work.edits.refuse_shared(services, "services");
    let twice = tree.duplicate(services).map(|(_, second)| {
        work.edits.problem(second, "two services of one name").help("rename one of them")
    });
    if let Some(problem) = shared.err().or(twice) {
        problems.push(problem);
        return;
    }
    let mut outcomes = Vec::new();
    for entry in tree.entries(services) {
        match service(work, services, *entry) {
            Ok(Some(sidecar)) => outcomes.push((*entry, sidecar)),
            Ok(None) => {}
            Err(problem) => problems.push(problem),
        }
    }
    for (entry, sidecar) in outcomes {
        let name = tree.text(entry.key).unwrap_or_default();
        let beside = format!("{name}{SUFFIX}");
        match work.edits.insert_key(services, &beside, &sidecar, &[name]) {
            Ok(()) => work.changed.push(name.to_owned()),
            Err(problem) => problems.push(problem),
        }
    }
}

/// The sidecar of a service, if it gets one.
fn service(work: &mut Work<'_>, services: Id, entry: Entry) -> Result<Option<Value>, Problem> {
    let (text, tree, options) = (work.text, work.tree, work.options);
    let Some(name) = tree.text(entry.key) else {
        return Err(work.edits.problem(entry.key, "the name of a service must be text"));
    };
    // `<<: *defaults` among the services is no service.
    if name == "<<" || !tree.is_map(entry.value) {
        return Ok(None);
    }
    let mut settings = Settings::new(options);
    for (key, value, at) in labels(tree, entry.value) {
        settings.set(text, (&key, &value, at), Place::Compose, tree)?;
    }
    if !settings.inject {
        return Ok(None);
    }
    if let Some(mode) = tree.find(entry.value, &["network_mode"])
        && !matches!(tree.text(mode), Some("bridge"))
    {
        let mode = work
            .edits
            .problem(mode, format!("`{name}` is passed over: it has no network of its own"));
        work.notes.push(mode);
        return Ok(None);
    }
    let beside = format!("{name}{SUFFIX}");
    if let Some(taken) = tree.entry(services, &beside) {
        let message = format!("the sidecar of `{name}` would have this name");
        return Err(work.edits.problem(taken.key, message).help("rename this service"));
    }
    if settings.source.is_none() {
        let message = "where do the sidecars get their configuration?";
        return Err(work
            .edits
            .problem(entry.key, message)
            .help("name a folder (--policies DIR) or a control plane (--control-plane ADDR)"));
    }
    if let Some(at) = taken_port(tree, entry.value, settings.admin_port) {
        let message =
            format!("port {} is the one of the sidecar's admin endpoint", settings.admin_port);
        return Err(work
            .edits
            .problem(at, message)
            .help("give the sidecar another one by the label towpath.dev/admin-port"));
    }
    if let Some(at) = several(tree, entry.value) {
        let message = format!(
            "only the first container of `{name}` gets a sidecar: Compose shares the network of one"
        );
        work.notes.push(work.edits.problem(at, message));
    }
    Ok(Some(sidecar(tree, name, entry.value, &settings, options)))
}

fn sidecar(tree: &Tree, name: &str, service: Id, settings: &Settings, options: &Options) -> Value {
    let node = settings.node.clone().unwrap_or_else(|| name.to_owned());
    let admin = format!("127.0.0.1:{}", settings.admin_port);
    let drain = settings.drain_timeout.clone().unwrap_or_else(|| DRAIN.to_owned());
    let command =
        settings.arguments(&node, settings.cluster.as_deref(), &admin, &drain, Place::Compose);
    let mut sidecar = vec![
        ("image", Value::text(&settings.image)),
        ("entrypoint", Value::texts(["towpath-proxy"])),
        ("command", Value::texts(command)),
        ("network_mode", Value::text(format!("service:{name}"))),
    ];
    if let Some(restart) = tree.find_text(service, &["restart"]) {
        sidecar.push(("restart", Value::text(restart)));
    }
    let profiles: Vec<&str> = tree
        .find(service, &["profiles"])
        .map_or(&[][..], |profiles| tree.items(profiles))
        .iter()
        .filter_map(|profile| tree.text(*profile))
        .collect();
    if !profiles.is_empty() {
        sidecar.push(("profiles", Value::texts(profiles)));
    }
    sidecar.push(("user", Value::text(format!("{0}:{0}", settings.user))));
    sidecar.push(("read_only", Value::word(true)));
    sidecar.push(("cap_drop", Value::texts(["ALL"])));
    sidecar.push(("security_opt", Value::texts(["no-new-privileges:true"])));
    sidecar.push(("stop_grace_period", Value::text("30s")));
    sidecar.push((
        "tmpfs",
        Value::texts([format!(
            "{STATE}:uid={0},gid={0},mode=0700,size={1}",
            settings.user,
            Place::Compose.state_size()
        )]),
    ));
    if let Some(Source::Policies(folder)) = &settings.source {
        // A bare name would be a volume and no folder.
        let path = folder.starts_with(['.', '/', '~', '$']);
        let folder = if path { folder.clone() } else { format!("./{folder}") };
        sidecar.push(("volumes", Value::texts([format!("{folder}:{POLICIES}:ro")])));
    }
    sidecar.push(("labels", Value::map([(INJECTED, Value::text(&options.version))])));
    Value::Map(sidecar.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

/// Less than what a container has to stop.
const DRAIN: &str = "25s";

/// Labels as an object, or as a list of `key=value`.
fn labels(tree: &Tree, service: Id) -> Vec<(String, String, Id)> {
    let Some(labels) = tree.find(service, &["labels"]) else { return Vec::new() };
    let text = |id: Id| tree.text(id).unwrap_or_default().to_owned();
    let mut found: Vec<_> = tree
        .entries(labels)
        .iter()
        .map(|entry| (text(entry.key), text(entry.value), entry.value))
        .collect();
    found.extend(tree.items(labels).iter().map(|item| {
        let label = text(*item);
        let (key, value) = label.split_once('=').unwrap_or((&label, ""));
        (key.to_owned(), value.to_owned(), *item)
    }));
    found
}

/// Where a service publishes or exposes a port of its container.
fn taken_port(tree: &Tree, service: Id, port: u16) -> Option<Id> {
    let lists = ["ports", "expose"].into_iter().filter_map(|key| tree.find(service, &[key]));
    let mut items = lists.flat_map(|list| tree.items(list).iter().copied());
    items.find(|item| {
        let written = tree.find_text(*item, &["target"]).or_else(|| tree.text(*item));
        written.is_some_and(|written| target_ports(written).contains(&port))
    })
}

/// The container's ports of `8080`, `80:8080`, `127.0.0.1:80:8080/tcp` or `8000-8010:8000-8010`.
fn target_ports(written: &str) -> BTreeSet<u16> {
    let written = written.split('/').next().unwrap_or_default();
    let target = written.rsplit(':').next().unwrap_or_default();
    let (first, last) = target.split_once('-').unwrap_or((target, target));
    match (first.parse::<u16>(), last.parse::<u16>()) {
        (Ok(first), Ok(last)) => (first..=last).collect(),
        _ => BTreeSet::new(),
    }
}

/// Where a service is asked to run more than once.
fn several(tree: &Tree, service: Id) -> Option<Id> {
    let replicas =
        tree.find(service, &["deploy", "replicas"]).or_else(|| tree.find(service, &["scale"]))?;
    let many = tree.text(replicas)?.parse::<u64>().is_ok_and(|count| count > 1);
    many.then_some(replicas)
}

#[cfg(test)]
mod tests {
    use super::target_ports;

    #[test]
    fn the_containers_port_is_the_last_one() {
        for (written, ports) in [
            ("8080", vec![8080]),
            ("80:8080", vec![8080]),
            ("127.0.0.1:80:8080/tcp", vec![8080]),
            ("9000-9002:7000-7002", vec![7000, 7001, 7002]),
            ("[::1]:80:8080/udp", vec![8080]),
            ("${PORT}:x", vec![]),
            ("70000", vec![]),
        ] {
            assert_eq!(target_ports(written).into_iter().collect::<Vec<_>>(), ports, "{written}");
        }
    }
}
