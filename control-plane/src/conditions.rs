//! The status of Gateway API objects: what the policies say of them, what proxies have acknowledged, and since
//! when it is so.
//!
//! Pure: the state of the streams and the time are told. A condition is said to be so since it was first seen
//! to be so by somebody who asked.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use towpath_policies::{
    conditions::{ObjectStatus, Served, Truth, program},
    model::{Node, ResourceKind, Snapshot},
};

use crate::{
    status::{Proxy, Status},
    utc::utc,
};

/// The answer to `GET /conditions`: a list of objects, as Kubernetes writes one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Conditions {
    api_version: String,
    kind: String,
    items: Vec<ObjectStatus>,
}

/// Since when conditions are as they are, by object and condition.
#[derive(Debug, Default)]
pub(crate) struct Transitions(HashMap<String, (Truth, String)>);

/// What proxies have made of each listener of a Gateway.
pub(crate) fn served(
    status: &Status,
    view: impl Fn(&Node) -> Arc<Snapshot>,
) -> BTreeMap<String, Served> {
    let current = status.current.as_ref().map(|current| current.version.as_str());
    let mut served = BTreeMap::new();
    for proxy in status.proxies.iter().filter(|proxy| proxy.sockets) {
        let (id, cluster) = (proxy.node.clone(), proxy.cluster.clone());
        let node = Node { id, cluster, sidecar: proxy.sidecar };
        for name in view(&node).listeners.keys().filter(|name| name.starts_with("gateway/")) {
            let said = by(proxy, name, current);
            let before = served.entry(name.clone()).or_insert(Served::Pending);
            // One proxy that serves it is enough, and a refusal is more than no word.
            let less = matches!(
                (&*before, &said),
                (Served::Pending, _) | (Served::Refused(_), Served::Acknowledged)
            );
            if less {
                *before = said;
            }
        }
    }
    served
}

fn by(proxy: &Proxy, listener: &str, current: Option<&str>) -> Served {
    let refused = proxy.nack.as_ref().filter(|nack| nack.kind == ResourceKind::Listener);
    let refused = refused.and_then(|nack| {
        let of = nack.resources.iter().find(|refused| refused.name == listener)?;
        Some(of.reason.clone().unwrap_or_else(|| nack.reason.clone()))
    });
    match refused {
        Some(reason) => Served::Refused(reason),
        // A version is answered with refusals, too, and only the last of them is known.
        None if proxy.nack.is_none()
            && proxy.version.is_some()
            && proxy.version.as_deref() == current =>
        {
            Served::Acknowledged
        }
        None => Served::Pending,
    }
}

impl Transitions {
    /// The whole answer; `served` is none where the objects are of a version that is not served.
    pub(crate) fn told(
        &mut self,
        mut items: Vec<ObjectStatus>,
        served: Option<&BTreeMap<String, Served>>,
        now: SystemTime,
    ) -> Conditions {
        let of =
            served.map(|served| |name: &str| served.get(name).cloned().unwrap_or(Served::Pending));
        program(&mut items, of.as_ref().map(|of| of as &dyn Fn(&str) -> Served));
        let mut known = HashMap::new();
        for object in &mut items {
            let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
            let key = format!("{}/{namespace}/{}", object.kind, object.metadata.name);
            for (name, condition) in object.conditions_mut() {
                let key = format!("{key}/{name}");
                let since = match self.0.remove(&key) {
                    Some((status, since)) if status == condition.status => since,
                    _ => utc(now),
                };
                condition.last_transition_time = Some(since.clone());
                known.insert(key, (condition.status, since));
            }
        }
        self.0 = known;
        let (api_version, kind) = ("v1".to_owned(), "List".to_owned());
        Conditions { api_version, kind, items }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use towpath_policies::check;

    use super::*;
    use crate::status::{Current, Nack, Refused};

    const POLICIES: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  gatewayClassName: towpath
  listeners:
  - {name: http, port: 80, protocol: HTTP}
  - {name: db, port: 5432, protocol: TCP}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web}
spec:
  parentRefs: [{name: edge, sectionName: http}]
  rules:
  - backendRefs: [{name: web}]
---
apiVersion: towpath.dev/v1alpha1
kind: Service
metadata: {name: web}
spec:
  endpoints: [{address: "10.0.0.1:80"}]
"#;

    fn of<'a>(told: &'a Conditions, kind: &str, condition: &str) -> (Truth, &'a str, &'a str) {
        let object = told.items.iter().find(|object| object.kind == kind).unwrap();
        let found = object.status.conditions.iter().find(|c| c.kind == condition).unwrap();
        (found.status, &found.reason, found.last_transition_time.as_deref().unwrap())
    }

    fn proxy(sidecar: bool, version: Option<&str>) -> Proxy {
        let (node, version) = ("edge-1".to_owned(), version.map(str::to_owned));
        Proxy { node, sidecar, version, sockets: true, ..Proxy::default() }
    }

    fn refusing() -> Proxy {
        let refused = Refused {
            name: "gateway/edge/80".to_owned(),
            reason: Some("the port is taken".to_owned()),
            ..Refused::default()
        };
        let nack = Nack {
            unix_ms: 0,
            version: "v1".to_owned(),
            kind: ResourceKind::Listener,
            resources: vec![refused],
            reason: String::new(),
        };
        Proxy { nack: Some(nack), ..proxy(false, Some("v1")) }
    }

    #[test]
    fn a_gateway_is_programmed_once_a_proxy_that_serves_it_has_acknowledged() {
        let checked = check([("a.yaml".into(), POLICIES.to_owned())], "v1".to_owned());
        let (mesh, objects) = (checked.mesh.unwrap(), checked.conditions);
        let view = |node: &Node| Arc::new(mesh.view(node));
        let refusing = refusing();
        let mut transitions = Transitions::default();
        let mut at = UNIX_EPOCH;
        let mut ask = |proxies: Vec<Proxy>, version: &str| {
            at += Duration::from_secs(1);
            let current = Some(Current { version: version.to_owned(), ..Current::default() });
            let status = Status { current, proxies, ..Status::default() };
            transitions.told(objects.clone(), Some(&served(&status, view)), at)
        };
        let programmed = |told: &Conditions| {
            let (status, reason, since) = of(told, "Gateway", "Programmed");
            (status, reason.to_owned(), since.to_owned())
        };
        let expect = |status, reason: &str, second: u32| {
            (status, reason.to_owned(), format!("1970-01-01T00:00:0{second}Z"))
        };
        let told = ask(vec![], "v1");
        assert_eq!(programmed(&told), expect(Truth::False, "Pending", 1));
        assert_eq!(of(&told, "Gateway", "Accepted").0, Truth::True);
        let told = ask(vec![proxy(true, Some("v1"))], "v1");
        assert_eq!(
            programmed(&told),
            expect(Truth::False, "Pending", 1),
            "a sidecar does not serve it"
        );
        let grpc = Proxy { sockets: false, ..proxy(false, Some("v1")) };
        let told = ask(vec![grpc], "v1");
        assert_eq!(programmed(&told), expect(Truth::False, "Pending", 1), "it opens no listener");
        let mut other = refusing.clone();
        other.nack.as_mut().unwrap().kind = ResourceKind::Service;
        let told = ask(vec![other], "v1");
        assert_eq!(programmed(&told), expect(Truth::False, "Pending", 1), "not all of the version");
        let told = ask(vec![proxy(false, None), refusing.clone()], "v1");
        assert_eq!(programmed(&told), expect(Truth::False, "Pending", 1));
        let listeners = &told.items.iter().find(|o| o.kind == "Gateway").unwrap().status.listeners;
        let http = listeners[0].conditions.iter().find(|c| c.kind == "Programmed").unwrap();
        assert_eq!(
            (http.reason.as_str(), http.message.as_str()),
            ("Invalid", "a proxy has refused it: the port is taken")
        );
        let told = ask(vec![proxy(false, Some("v1")), refusing], "v1");
        assert_eq!(programmed(&told), expect(Truth::True, "Programmed", 6));
        let told = ask(vec![proxy(false, Some("v1"))], "v1");
        assert_eq!(programmed(&told), expect(Truth::True, "Programmed", 6));
        let told = ask(vec![proxy(false, Some("v1"))], "v2");
        assert_eq!(
            programmed(&told),
            expect(Truth::False, "Pending", 8),
            "the newer is not there yet"
        );
    }

    #[test]
    fn what_is_served_to_nobody_is_not_programmed() {
        let broken = POLICIES.replace("sectionName: http", "sectionName: https");
        let checked = check([("a.yaml".into(), broken)], "v1".to_owned());
        assert!(checked.mesh.is_none());
        let told = Transitions::default().told(checked.conditions, None, UNIX_EPOCH);
        assert_eq!(of(&told, "Gateway", "Programmed").1, "Invalid");
        let route = told.items.iter().find(|object| object.kind == "HTTPRoute").unwrap();
        let parent = &route.status.parents[0];
        assert_eq!(parent.parent_ref.section_name.as_deref(), Some("https"));
        let reasons: Vec<_> = parent.conditions.iter().map(|c| c.reason.as_str()).collect();
        assert_eq!(reasons, ["NoMatchingParent", "ResolvedRefs"]);
        let json = serde_json::to_value(&told).unwrap();
        assert_eq!(json["items"][0]["kind"], "GatewayClass");
        assert_eq!(json["items"][0]["status"]["conditions"][0]["type"], "Accepted");
        assert_eq!(json["items"][0]["status"]["conditions"][0]["status"], "True");
    }
}
