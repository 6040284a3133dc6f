//! One pod: what its sidecar looks like, and what speaks against it.

use super::{INTERCEPT, PROXY, VOLUME, Workload, probes};
use crate::{
    Options,
    emit::Value,
    problem::Problem,
    quantity,
    settings::{PREFIX, Place, STATE, Settings},
    tree::{Id, Tree},
};

/// Seconds a pod has to end, where it does not say.
const GRACE: u64 = 30;
/// Seconds before that by which a drain must be done, so that it is told of and not killed.
const MARGIN: u64 = 5;
/// Containers of meshes that intercept, too.
const OTHER_MESHES: [&str; 4] =
    ["istio-proxy", "linkerd-proxy", "kuma-sidecar", "consul-dataplane"];

/// A pod and all that decides on its sidecar.
pub(super) struct Pod<'a> {
    pub(super) text: &'a str,
    pub(super) tree: &'a Tree,
    pub(super) workload: &'a Workload,
    pub(super) options: &'a Options,
    pub(super) settings: &'a Settings,
}

impl Pod<'_> {
    /// Refuses what would not work.
    pub(super) fn check(&self) -> Result<(), Problem> {
        self.duplicates()?;
        self.names()?;
        self.ends()?;
        self.ports()?;
        self.amounts()?;
        self.admin()?;
        if self.options.intercept { self.interception() } else { Ok(()) }
    }

    /// What a person should know.
    pub(super) fn notes(&self) -> Vec<Problem> {
        let mut notes = Vec::new();
        if let Some(at) = self.host_network() {
            let port = self.settings.admin_port;
            let message = format!(
                "the pod shares its machine's network: port {port} must be free on each machine"
            );
            notes.push(
                self.problem(at, message)
                    .help("choose another by the annotation towpath.dev/admin-port"),
            );
        }
        for (of, request, limit) in self.amounts_set() {
            let what = if request.is_some() { "request" } else { "limit" };
            if (request.is_some() || limit.is_some()) && self.has_limit_alone(of) {
                let message =
                    format!("the pod names no {of} request, so the sidecar's becomes the pod's");
                let at = self.annotation(&format!("{of}-{what}"));
                let help = "say what all of it needs in spec.resources.requests";
                notes.push(self.problem(at, message).help(help));
            }
        }
        if self.options.intercept {
            for (at, port) in probes::shared(self.tree, self.workload.spec) {
                let message = format!(
                    "port {port} is probed, so neither that nor its other traffic is intercepted"
                );
                notes.push(self.problem(at, message).help("give the probes a port of their own"));
            }
        }
        notes
    }

    /// The container that is added.
    pub(super) fn sidecar(&self) -> Value {
        let settings = self.settings;
        let host = if settings.admin_on_pod { "0.0.0.0" } else { "127.0.0.1" };
        let admin = format!("{host}:{}", settings.admin_port);
        let node =
            settings.node.clone().unwrap_or_else(|| "$(POD_NAME).$(POD_NAMESPACE)".to_owned());
        let own = self.options.workload.as_ref().or(self.workload.name.as_ref());
        let own = own.map(|name| format!("{name}.$(POD_NAMESPACE)"));
        let cluster = settings.cluster.clone().or(own);
        let arguments = settings.arguments(
            &node,
            cluster.as_deref(),
            &admin,
            &self.drain_timeout(),
            Place::Kubernetes,
        );
        let mut container = vec![
            ("name", Value::text(PROXY)),
            ("image", Value::text(&settings.image)),
            ("command", Value::texts([PROXY])),
            ("args", Value::texts(arguments)),
        ];
        if !self.options.plain {
            container.push(("restartPolicy", Value::text("Always")));
        }
        let env =
            vec![field("POD_NAME", "metadata.name"), field("POD_NAMESPACE", "metadata.namespace")];
        container.push(("env", Value::List(env)));
        if settings.admin_on_pod {
            let get = Value::map([
                ("path", Value::text("/ready")),
                ("port", Value::word(settings.admin_port)),
            ]);
            let probe = [
                ("httpGet", get),
                ("periodSeconds", Value::word(1)),
                ("failureThreshold", Value::word(600)),
            ];
            container.push(("startupProbe", Value::map(probe)));
        }
        container.extend(self.resources());
        container.push(("securityContext", self.security()));
        let mount = Value::map([("name", Value::text(VOLUME)), ("mountPath", Value::text(STATE))]);
        container.push(("volumeMounts", Value::List(vec![mount])));
        Value::Map(container.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }

    /// The init step: the only thing with a privilege.
    pub(super) fn intercept(&self) -> Value {
        let mut arguments = vec![
            "intercept".to_owned(),
            "install".to_owned(),
            format!("--proxy-user={}", self.settings.user),
        ];
        let mut inbound = self.settings.exclude_inbound_ports.clone();
        inbound.extend(probes::ports(self.tree, self.workload.spec));
        // The kubelet probes it before there is a configuration, and so before anything listens.
        inbound.extend(self.settings.admin_on_pod.then_some(self.settings.admin_port));
        inbound.sort_unstable();
        inbound.dedup();
        for (option, ports) in
            [("inbound", &inbound), ("outbound", &self.settings.exclude_outbound_ports)]
        {
            if !ports.is_empty() {
                let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
                arguments.push(format!("--exclude-{option}-ports={}", ports.join(",")));
            }
        }
        let capabilities = [("drop", Value::texts(["ALL"])), ("add", Value::texts(["NET_ADMIN"]))];
        let mut step = vec![
            ("name", Value::text(INTERCEPT)),
            ("image", Value::text(&self.settings.image)),
            ("command", Value::texts(["towpath"])),
            ("args", Value::texts(arguments)),
        ];
        let [cpu, memory] = [("cpu", "100m"), ("memory", "64Mi")].map(|(of, amount)| {
            let amount = (!self.is_pooled(of)).then_some(amount);
            (amount, amount)
        });
        step.extend(resources(cpu, memory));
        let security = Value::map([
            ("allowPrivilegeEscalation", Value::word(false)),
            ("capabilities", Value::map(capabilities)),
            ("readOnlyRootFilesystem", Value::word(true)),
            ("runAsNonRoot", Value::word(false)),
            ("runAsUser", Value::word(0)),
            ("seccompProfile", Value::map([("type", Value::text("RuntimeDefault"))])),
        ]);
        step.push(("securityContext", security));
        Value::Map(step.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }

    /// The name of the first container, which is the one people mean.
    pub(super) fn first_container(&self) -> Option<&str> {
        let first = *self.list("containers").first()?;
        self.tree.find_text(first, &["name"])
    }

    /// Whatever the `restricted` Pod Security Standard asks for, and no root file system to write to.
    fn security(&self) -> Value {
        let user = self.settings.user;
        Value::map([
            ("allowPrivilegeEscalation", Value::word(false)),
            ("capabilities", Value::map([("drop", Value::texts(["ALL"]))])),
            ("readOnlyRootFilesystem", Value::word(true)),
            ("runAsNonRoot", Value::word(true)),
            ("runAsUser", Value::word(user)),
            ("runAsGroup", Value::word(user)),
            ("seccompProfile", Value::map([("type", Value::text("RuntimeDefault"))])),
        ])
    }

    fn resources(&self) -> Option<(&'static str, Value)> {
        let set = self.settings;
        let most_cpu = self.guaranteed().then_some("500m");
        let cpu = self.share("cpu", (&set.cpu_request, &set.cpu_limit), ("50m", most_cpu));
        let memory = (&set.memory_request, &set.memory_limit);
        let memory = self.share("memory", memory, ("64Mi", Some("512Mi")));
        resources(cpu, memory)
    }

    /// What the sidecar asks for and may use of CPU or memory: of what the pod has in one pool, only
    /// what was set.
    fn share<'a>(
        &self,
        of: &str,
        set: (&'a Option<String>, &'a Option<String>),
        default: (&'a str, Option<&'a str>),
    ) -> (Option<&'a str>, Option<&'a str>) {
        if self.is_pooled(of) {
            return (set.0.as_deref(), set.1.as_deref());
        }
        let (asked, most) = amounts(set, default, self.guaranteed());
        (Some(asked), most)
    }

    /// Whether the pod says how much its containers need of it together. What one of them asks for
    /// counts towards that, so that a default could be more than there is, or take its place.
    fn is_pooled(&self, of: &str) -> bool {
        ["requests", "limits"].iter().any(|what| self.find(&["resources", what, of]).is_some())
    }

    /// Whether the pod is limited as a whole, and neither it nor a container asks for anything: then its
    /// request is its limit, but only as long as no container asks.
    fn has_limit_alone(&self, of: &str) -> bool {
        let names =
            |owner: Id, what: &str| self.tree.find(owner, &["resources", what, of]).is_some();
        let pod = self.workload.spec;
        // A container that is limited asks for as much.
        let asks = |container| names(container, "requests") || names(container, "limits");
        names(pod, "limits") && !names(pod, "requests") && !self.containers().any(asks)
    }

    /// What annotations say of CPU and memory: the request and the limit.
    fn amounts_set(&self) -> [(&'static str, &Option<String>, &Option<String>); 2] {
        let Settings { cpu_request, cpu_limit, memory_request, memory_limit, .. } = self.settings;
        [("cpu", cpu_request, cpu_limit), ("memory", memory_request, memory_limit)]
    }

    /// Kubernetes refuses a container that asks for more than it may use.
    fn amounts(&self) -> Result<(), Problem> {
        for (of, request, limit) in self.amounts_set() {
            let (Some(asked), Some(most)) = (request, limit) else { continue };
            if quantity::parse(asked) > quantity::parse(most) {
                let message = format!("the sidecar would ask for more {of} than its limit, {most}");
                return Err(self
                    .problem(self.annotation(&format!("{of}-request")), message)
                    .help(format!("raise {PREFIX}{of}-limit, or leave one of the two out")));
            }
        }
        Ok(())
    }

    /// On its machine's network a pod has no address of its own to open the admin endpoint at.
    fn admin(&self) -> Result<(), Problem> {
        if !self.settings.admin_on_pod || self.host_network().is_none() {
            return Ok(());
        }
        let message = "this pod is on its machine's network: all that reach the machine would \
                       reach the admin endpoint, which asks nobody who they are";
        Err(self
            .problem(self.annotation("admin"), message)
            .help("leave the annotation out: the endpoint stays on loopback"))
    }

    /// Where an annotation of ours is written that counts.
    fn annotation(&self, name: &str) -> Id {
        let key = format!("{PREFIX}{name}");
        let owners = [self.workload.holder, self.workload.object];
        let mut found = owners
            .into_iter()
            .filter_map(|owner| self.tree.find(owner, &["metadata", "annotations", &key]));
        found.next().unwrap_or(self.workload.spec)
    }

    /// Whether all containers ask for as much CPU and memory as they may use.
    fn guaranteed(&self) -> bool {
        let amount = |container: Id, what: &str, of: &str| {
            self.tree.find_text(container, &["resources", what, of]).map(quantity::parse)
        };
        self.containers().all(|container| {
            ["cpu", "memory"].iter().all(|of| {
                let limit = amount(container, "limits", of);
                limit.flatten().is_some_and(|limit| limit > 0)
                    && amount(container, "requests", of).is_none_or(|asked| Some(asked) == limit)
            })
        })
    }

    /// The drain ends before the pod's time does.
    fn drain_timeout(&self) -> String {
        if let Some(timeout) = &self.settings.drain_timeout {
            return timeout.clone();
        }
        let grace = self.find(&["terminationGracePeriodSeconds"]);
        let grace = grace.and_then(|id| self.tree.text(id)?.parse().ok()).unwrap_or(GRACE);
        let drain = if grace > 2 * MARGIN { grace - MARGIN } else { grace / 2 };
        format!("{drain}s")
    }

    /// Of two keys of one name nobody knows which one counts.
    fn duplicates(&self) -> Result<(), Problem> {
        let workload = self.workload;
        let own = [workload.object, workload.holder].map(|owner| {
            [
                self.tree.find(owner, &["metadata"]),
                self.tree.find(owner, &["metadata", "annotations"]),
            ]
        });
        let way = workload.trail.iter().map(|step| step.within);
        let maps = way.chain([workload.object, workload.holder, workload.spec]);
        let mut maps = maps.chain(own.into_iter().flatten().flatten());
        let found = maps.find_map(|map| self.tree.duplicate(map));
        match found {
            None => Ok(()),
            Some((_, second)) => {
                let key = self.tree.text(second).unwrap_or_default();
                Err(self
                    .problem(second, format!("the key `{key}` is there twice"))
                    .help("take one of them out"))
            }
        }
    }

    fn names(&self) -> Result<(), Problem> {
        let taken =
            |id: &Id| matches!(self.tree.find_text(*id, &["name"]), Some(PROXY | INTERCEPT));
        if let Some(id) = self.containers().find(|id| taken(id)) {
            let at = self.tree.find(id, &["name"]).unwrap_or(id);
            let message =
                "there is a container of this name already, and towpath inject did not add it";
            return Err(self
                .problem(at, message)
                .help("rename it, or keep it and annotate the pod towpath.dev/inject: \"false\""));
        }
        let volume = self.list("volumes").iter().copied();
        let volume = volume
            .filter_map(|id| self.tree.find(id, &["name"]))
            .find(|id| self.tree.text(*id) == Some(VOLUME));
        match volume {
            Some(at) => Err(self
                .problem(at, "the sidecar needs a volume of this name")
                .help("rename this one")),
            None => Ok(()),
        }
    }

    /// A pod that is to end must not be kept alive.
    fn ends(&self) -> Result<(), Problem> {
        if !self.options.plain {
            return Ok(());
        }
        let policy = self.find(&["restartPolicy"]);
        let runs_on =
            policy.and_then(|id| self.tree.text(id)).is_none_or(|policy| policy == "Always");
        let job = matches!(self.workload.kind, "Job" | "CronJob");
        if runs_on && !job {
            return Ok(());
        }
        let at = policy.unwrap_or(self.workload.spec);
        Err(self
            .problem(at, "this pod is to end, and a plain sidecar (--plain) would keep it alive")
            .help(
                "leave --plain out (Kubernetes 1.29 and newer), or annotate the pod \
                 towpath.dev/inject: \"false\"",
            ))
    }

    fn ports(&self) -> Result<(), Problem> {
        let port = self.settings.admin_port;
        let written = port.to_string();
        let taken = self.containers().find_map(|container| {
            let ports = self.tree.find(container, &["ports"])?;
            let mut ports = self
                .tree
                .items(ports)
                .iter()
                .filter_map(|id| self.tree.find(*id, &["containerPort"]));
            ports.find(|id| self.tree.text(*id) == Some(written.as_str()))
        });
        match taken {
            Some(at) => Err(self
                .problem(at, format!("port {port} is the one of the sidecar's admin endpoint"))
                .help("give the sidecar another one by the annotation towpath.dev/admin-port")),
            None => Ok(()),
        }
    }

    fn interception(&self) -> Result<(), Problem> {
        if let Some(at) = self.host_network() {
            return Err(self
                .problem(
                    at,
                    "intercepting a pod on its machine's network would intercept the machine",
                )
                .help("leave --intercept out, or annotate the pod towpath.dev/inject: \"false\""));
        }
        let other = self.containers().filter_map(|id| self.tree.find(id, &["name"]));
        let mut other =
            other.filter(|id| self.tree.text(*id).is_some_and(|name| OTHER_MESHES.contains(&name)));
        if let Some(at) = other.next() {
            return Err(self
                .problem(at, "another mesh's sidecar takes this pod's traffic already")
                .help("leave --intercept out, or take that sidecar out"));
        }
        let user = self.settings.user.to_string();
        let all = self.containers().chain([self.workload.spec]);
        let mut users = all.filter_map(|id| self.tree.find(id, &["securityContext", "runAsUser"]));
        if let Some(at) = users.find(|id| self.tree.text(*id) == Some(user.as_str())) {
            return Err(self
                .problem(at, "the proxy runs as this user, and is told apart by it")
                .help("give the proxy another one by the annotation towpath.dev/user"));
        }
        match self.list("initContainers").first() {
            Some(at) if self.options.plain => {
                Err(self.problem(*at, "with --plain this runs before the sidecar: intercepted, it would reach nothing")
                    .help("leave --plain out (Kubernetes 1.29 and newer), or --intercept"))
            }
            _ => Ok(()),
        }
    }

    fn host_network(&self) -> Option<Id> {
        self.find(&["hostNetwork"]).filter(|id| self.tree.is_true(*id))
    }

    fn containers(&self) -> impl Iterator<Item = Id> {
        self.list("initContainers").iter().chain(self.list("containers")).copied()
    }

    fn list(&self, key: &str) -> &[Id] {
        self.find(&[key]).map_or(&[], |id| self.tree.items(id))
    }

    fn find(&self, path: &[&str]) -> Option<Id> {
        self.tree.find(self.workload.spec, path)
    }

    fn problem(&self, at: Id, message: impl Into<String>) -> Problem {
        crate::edit::Edits::new(self.text, self.tree).problem(at, message)
    }
}

fn field(name: &str, path: &str) -> Value {
    let from = Value::map([("fieldRef", Value::map([("fieldPath", Value::text(path))]))]);
    Value::map([("name", Value::text(name)), ("valueFrom", from)])
}

/// What is asked for and what may be used: as far as it was set, and by default what goes with
/// that. A pod whose containers all ask for what they may use is the last to be evicted; with
/// `equal` it stays so.
fn amounts<'a>(
    set: (&'a Option<String>, &'a Option<String>),
    default: (&'a str, Option<&'a str>),
    equal: bool,
) -> (&'a str, Option<&'a str>) {
    let above = |one: &str, other: &str| quantity::parse(one) > quantity::parse(other);
    match (set.0.as_deref(), set.1.as_deref()) {
        (Some(asked), Some(most)) => (asked, Some(most)),
        (Some(asked), None) if equal => (asked, Some(asked)),
        (Some(asked), None) => {
            (asked, default.1.map(|most| if above(asked, most) { asked } else { most }))
        }
        (None, Some(most)) if equal || above(default.0, most) => (most, Some(most)),
        (None, Some(most)) => (default.0, Some(most)),
        (None, None) if equal => (default.1.unwrap_or(default.0), default.1),
        (None, None) => default,
    }
}

/// What is asked for and what may be used at most, of CPU and of memory; nothing of what is not said.
fn resources(
    cpu: (Option<&str>, Option<&str>),
    memory: (Option<&str>, Option<&str>),
) -> Option<(&'static str, Value)> {
    let amounts = |name: &str, cpu: Option<&str>, memory: Option<&str>| {
        let given = [("cpu", cpu), ("memory", memory)]
            .into_iter()
            .filter_map(|(of, amount)| Some((of.to_owned(), Value::text(amount?))));
        let given: Vec<_> = given.collect();
        (!given.is_empty()).then(|| (name.to_owned(), Value::Map(given)))
    };
    let kinds = [amounts("requests", cpu.0, memory.0), amounts("limits", cpu.1, memory.1)];
    let kinds: Vec<_> = kinds.into_iter().flatten().collect();
    (!kinds.is_empty()).then_some(("resources", Value::Map(kinds)))
}

#[cfg(test)]
mod tests {
    use super::amounts;

    #[test]
    fn a_default_follows_what_was_set() {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        for (asked, most, equal, expected) in [
            ("", "", false, ("64Mi", Some("512Mi"))),
            ("", "", true, ("512Mi", Some("512Mi"))),
            ("1Gi", "", false, ("1Gi", Some("1Gi"))),
            ("0.25Gi", "", false, ("0.25Gi", Some("512Mi"))),
            ("128Mi", "", true, ("128Mi", Some("128Mi"))),
            ("", "32Mi", false, ("32Mi", Some("32Mi"))),
            ("", "1Gi", false, ("64Mi", Some("1Gi"))),
            ("", "1Gi", true, ("1Gi", Some("1Gi"))),
            ("128Mi", "1Gi", true, ("128Mi", Some("1Gi"))),
        ] {
            let set = (&some(asked), &some(most));
            let told = amounts(set, ("64Mi", Some("512Mi")), equal);
            assert_eq!(told, expected, "{asked} {most} {equal}");
        }
        let cpu = Some("2".to_owned());
        assert_eq!(amounts((&cpu, &None), ("50m", None), false), ("2", None));
        assert_eq!(amounts((&None, &Some("20m".to_owned())), ("50m", None), false).0, "20m");
    }
}
