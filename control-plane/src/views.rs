//! Between the xDS server and the rest: snapshots go one way, what clients say
//! comes back and is put down with the place in the policy files it is about.

use std::sync::Arc;

use tokio::sync::watch;
use towpath_policies::model::{Node, ResourceKey, ResourceKind, Snapshot};
use towpath_xds::server::{StreamEvent, StreamId, Views};

use crate::{
    hub::Hub,
    status::{Moment, Nack, Refused, Shared, unix_ms},
};

/// Refused resources kept of one refusal.
const RESOURCES_KEPT: usize = 20;
/// Characters kept of a client's reason.
const REASON_KEPT: usize = 2_000;

/// What the xDS server is given.
pub(crate) struct Served {
    pub(crate) hub: Arc<Hub>,
    pub(crate) shared: Arc<Shared>,
}

impl Views for Served {
    fn watch(&self, node: &Node) -> watch::Receiver<Arc<Snapshot>> {
        self.hub.watch(node)
    }

    fn observe(&self, event: StreamEvent) {
        let now = Moment::now();
        match event {
            StreamEvent::Connected { stream, node, peer, .. } => {
                let peer = peer.map(|peer| peer.to_string()).unwrap_or_default();
                tracing::info!(node = %node.id, cluster = %node.cluster, %peer, "proxy connected");
                self.shared.update(|t| t.connected(stream.0, &node, peer, now));
            }
            StreamEvent::Ack { stream, kind, version } => {
                self.shared.update(|t| t.acked(stream.0, kind, version));
            }
            StreamEvent::Nack { stream, kind, version, resources, message } => {
                self.nacked(stream, kind, version, resources, &message);
            }
            StreamEvent::Synced { stream, version, sockets } => {
                let Some(view) = self.view(stream) else { return };
                self.shared.update(|t| {
                    t.opens_sockets(stream.0, sockets);
                    t.settled(stream.0, &version, &view, now);
                });
            }
            StreamEvent::Disconnected { stream } => {
                let mut last_of = None;
                self.shared.update(|t| last_of = t.disconnected(stream.0));
                if let Some(node) = last_of {
                    tracing::info!(node = %node.id, "proxy disconnected");
                    self.hub.left(&node);
                }
            }
        }
    }
}

impl Served {
    fn nacked(
        &self,
        stream: StreamId,
        kind: ResourceKind,
        version: String,
        resources: Vec<(String, String)>,
        message: &str,
    ) {
        let Some(view) = self.view(stream) else { return };
        let reason = readable(message);
        let refused = |(name, why): (String, String)| {
            let why = readable(&why);
            let apart = !why.is_empty() && why != reason;
            Refused { source: place(&view, kind, &name), name, reason: apart.then_some(why) }
        };
        let resources: Vec<Refused> =
            resources.into_iter().take(RESOURCES_KEPT).map(refused).collect();
        for Refused { name, source, .. } in &resources {
            let written_at = source.as_deref().unwrap_or("unknown");
            tracing::warn!(%kind, name, written_at, version, reason, "refused by a proxy");
        }
        let unix_ms = unix_ms(Moment::now().wall);
        let nack = Nack { unix_ms, version, kind, resources, reason };
        self.shared.update(|t| t.nacked(stream.0, nack, view));
    }

    fn view(&self, stream: StreamId) -> Option<Arc<Snapshot>> {
        let node = self.shared.look(|t| t.node(stream.0))?;
        Some(self.hub.view(&node))
    }
}

/// `file:line` of a resource. An endpoint set is written where its service is.
fn place(view: &Snapshot, kind: ResourceKind, name: &str) -> Option<String> {
    let key = |kind| ResourceKey { kind, name: name.to_owned() };
    let source = view.sources.get(&key(kind)).or_else(|| match kind {
        ResourceKind::EndpointSet => view.sources.get(&key(ResourceKind::Service)),
        _ => None,
    });
    source.map(ToString::to_string)
}

/// A peer's words without what could play with a terminal, and not too many of them.
fn readable(text: &str) -> String {
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.take(REASON_KEPT).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use towpath_policies::model::Source;

    use super::*;

    #[test]
    fn refusals_point_at_the_file() {
        let mut view = Snapshot::default();
        let key = ResourceKey { kind: ResourceKind::Service, name: "etl".into() };
        view.sources.insert(key, Source { file: "services.yaml".into(), line: 7 });
        let at = |kind, name| place(&view, kind, name);
        assert_eq!(at(ResourceKind::Service, "etl").as_deref(), Some("services.yaml:7"));
        assert_eq!(at(ResourceKind::EndpointSet, "etl").as_deref(), Some("services.yaml:7"));
        assert_eq!(at(ResourceKind::Listener, "etl"), None);
    }

    #[test]
    fn words_of_strangers_are_made_harmless() {
        assert_eq!(readable("bad\u{1b}[2J\nport"), "bad [2J port");
        assert_eq!(readable(&"x".repeat(5_000)).len(), REASON_KEPT);
    }
}
