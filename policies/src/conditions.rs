//! The status of Gateway API objects, in its words and in the shape that Kubernetes has: what a
//! controller would write into the objects.
//!
//! [`crate::check`] says what of them is accepted and resolved; [`program`] adds what proxies have
//! made of it. Knows no clock: when a condition came about is for others to say.

use serde::{Deserialize, Serialize};

/// Who says so.
pub const CONTROLLER: &str = "towpath.dev/gateway-controller";

/// An object and its status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectStatus {
    /// Group and version.
    pub api_version: String,
    /// E.g. `Gateway`.
    pub kind: String,
    /// Its name.
    pub metadata: ObjectName,
    /// Its status.
    pub status: Status,
}

/// The name of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectName {
    /// `None` for a `GatewayClass`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Unique in the namespace.
    pub name: String,
}

/// The status of a `GatewayClass` or `Gateway`, or of a route.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Of the object as a whole.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Of each listener of a Gateway.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub listeners: Vec<ListenerStatus>,
    /// Of a route, for each Gateway it is attached to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parents: Vec<ParentStatus>,
}

/// The status of a listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListenerStatus {
    /// Its name.
    pub name: String,
    /// What may be attached to it.
    pub supported_kinds: Vec<RouteKind>,
    /// Routes that are attached to it.
    pub attached_routes: u32,
    /// What is to be said of it.
    pub conditions: Vec<Condition>,
    /// The listener that proxies are sent; `None` where none is opened for it.
    #[serde(skip)]
    pub resource: Option<String>,
}

/// A kind of route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteKind {
    /// `gateway.networking.k8s.io`.
    pub group: String,
    /// E.g. `HTTPRoute`.
    pub kind: String,
}

/// The status of a route with respect to one parent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentStatus {
    /// The parent, as the route names it.
    pub parent_ref: ParentReference,
    /// [`CONTROLLER`].
    pub controller_name: String,
    /// What is to be said of it.
    pub conditions: Vec<Condition>,
}

/// How a route names a parent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentReference {
    /// `gateway.networking.k8s.io`.
    pub group: String,
    /// `Gateway`.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// One of its listeners.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
    /// Its listeners on this port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// One thing that is so, or is not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What: `Accepted`, `Programmed`, `ResolvedRefs`, `Conflicted`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it is so.
    pub status: Truth,
    /// Why, in one word of the specification.
    pub reason: String,
    /// Why, for people.
    pub message: String,
    /// Since when (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<String>,
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Truth {
    /// It is so.
    True,
    /// It is not.
    False,
    /// Nobody can tell.
    Unknown,
}

/// What proxies have made of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Served {
    /// A proxy has acknowledged it.
    Acknowledged,
    /// A proxy has refused it, and none has acknowledged it.
    Refused(String),
    /// None has answered, or none is there.
    Pending,
}

impl Condition {
    pub(crate) fn new(kind: &str, holds: bool, reason: &str, message: impl Into<String>) -> Self {
        Self {
            kind: kind.to_owned(),
            status: if holds { Truth::True } else { Truth::False },
            reason: reason.to_owned(),
            message: message.into(),
            last_transition_time: None,
        }
    }

    /// Whether it is of this type, and holds.
    pub fn holds(&self, kind: &str) -> bool {
        self.kind == kind && self.status == Truth::True
    }
}

impl ObjectStatus {
    /// All conditions, each with a name that is unique in the object.
    pub fn conditions_mut(&mut self) -> impl Iterator<Item = (String, &mut Condition)> {
        let Status { conditions, listeners, parents } = &mut self.status;
        let own = conditions.iter_mut().map(|c| (c.kind.clone(), c));
        let listeners = listeners.iter_mut().flat_map(|listener| {
            let ListenerStatus { name, conditions, .. } = listener;
            conditions.iter_mut().map(move |c| (format!("listener/{name}/{}", c.kind), c))
        });
        let parents = parents.iter_mut().enumerate().flat_map(|(nth, parent)| {
            parent.conditions.iter_mut().map(move |c| (format!("parent/{nth}/{}", c.kind), c))
        });
        own.chain(listeners).chain(parents)
    }
}

/// Adds `Programmed` to Gateways and their listeners: true once a proxy has acknowledged it. `served` says so of the
/// listeners that proxies are sent; without it the objects are of a version that is served to nobody.
pub fn program(objects: &mut [ObjectStatus], served: Option<&dyn Fn(&str) -> Served>) {
    const PROGRAMMED: &str = "Programmed";
    for object in objects.iter_mut().filter(|object| object.kind == "Gateway") {
        let Status { conditions, listeners, .. } = &mut object.status;
        let (mut wanted, mut there) = (0, 0);
        for listener in listeners.iter_mut() {
            let accepted = listener.conditions.iter().any(|c| c.holds("Accepted"));
            let condition = match (&listener.resource, served) {
                _ if !accepted => (false, "Invalid", "the listener is not accepted".to_owned()),
                (_, None) => (false, "Invalid", NOT_SERVED.to_owned()),
                (None, _) => {
                    (false, "Pending", "it is not opened before a route is attached".to_owned())
                }
                (Some(resource), Some(served)) => {
                    wanted += 1;
                    match served(resource) {
                        Served::Acknowledged => {
                            there += 1;
                            (true, PROGRAMMED, "a proxy has acknowledged it".to_owned())
                        }
                        Served::Refused(why) => {
                            (false, "Invalid", format!("a proxy has refused it: {why}"))
                        }
                        Served::Pending => {
                            (false, "Pending", "no proxy has acknowledged it".to_owned())
                        }
                    }
                }
            };
            let (holds, reason, message) = condition;
            listener.conditions.push(Condition::new(PROGRAMMED, holds, reason, message));
        }
        let accepted = conditions.iter().any(|c| c.holds("Accepted"));
        let (holds, reason, message) = match served {
            _ if !accepted => (false, "Invalid", "the Gateway is not accepted".to_owned()),
            None => (false, "Invalid", NOT_SERVED.to_owned()),
            Some(_) if wanted > 0 && there == wanted => (
                true,
                PROGRAMMED,
                "proxies have acknowledged all of its listeners that are opened".to_owned(),
            ),
            Some(_) => (
                false,
                "Pending",
                format!("proxies have acknowledged {there} of {wanted} listeners that are opened"),
            ),
        };
        conditions.push(Condition::new(PROGRAMMED, holds, reason, message));
    }
}

const NOT_SERVED: &str = "this version of the policies has errors and is served to nobody";
