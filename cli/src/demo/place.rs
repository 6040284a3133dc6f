//! Where everything stands: three regions, six workers, one gateway, one control plane.

use std::{
    collections::BTreeSet,
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
};

/// A part of the world.
#[derive(Debug)]
pub(super) struct Region {
    pub(super) name: &'static str,
    pub(super) latitude: f64,
    pub(super) longitude: f64,
    /// Round trip from the gateway in milliseconds.
    pub(super) delay_ms: u64,
    /// How fast its workers are, compared to others. Those with an accelerator are twice as fast.
    pub(super) speed: f64,
    /// Vendor and model of the accelerator.
    pub(super) gpu: (&'static str, &'static str),
}

/// The regions, nearest first: the gateway stands on the east coast.
pub(super) const REGIONS: [Region; 3] = [
    Region {
        name: "us-east",
        latitude: 39.0,
        longitude: -77.5,
        delay_ms: 4,
        speed: 1.1,
        gpu: ("amd", "MI300X"),
    },
    Region {
        name: "eu-west",
        latitude: 53.3,
        longitude: -6.3,
        delay_ms: 24,
        speed: 1.0,
        gpu: ("nvidia", "H200"),
    },
    Region {
        name: "ap-south",
        latitude: 19.1,
        longitude: 72.9,
        delay_ms: 60,
        speed: 0.9,
        gpu: ("amd", "MI325X"),
    },
];

/// The region that the traffic is shifted to.
pub(super) const FAVOURED: &str = "eu-west";
/// Host that clients ask for.
pub(super) const HOST: &str = "etl.example.com";

/// A worker and its sidecar.
#[derive(Debug)]
pub(super) struct Node {
    /// Of the worker, as an endpoint.
    pub(super) name: String,
    pub(super) region: &'static Region,
    pub(super) gpu: bool,
    /// Where the sidecar takes traffic for it.
    pub(super) address: SocketAddr,
    /// Where the worker itself listens.
    pub(super) app: SocketAddr,
}

/// All addresses of the stage, and speeds.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) nodes: Vec<Node>,
    pub(super) gateway: SocketAddr,
    pub(super) capacity: Capacity,
}

/// What the workers are made to be capable of, so that a slow one is felt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Capacity {
    /// MiB a second of all workers together.
    pub(super) mib: f64,
    /// Milliseconds that a worker spends on a batch of any size.
    pub(super) batch_ms: u64,
}

impl Node {
    /// Name of the sidecar.
    pub(super) fn sidecar(&self) -> String {
        format!("worker-{}", self.name)
    }

    /// How fast it is, compared to others.
    pub(super) fn speed(&self) -> f64 {
        self.region.speed * if self.gpu { 2.0 } else { 1.0 }
    }
}

impl Places {
    /// Finds free ports for everything that policies must name.
    ///
    /// # Errors
    /// When there are none.
    pub(super) fn find(capacity: Capacity) -> io::Result<Self> {
        let mut ports = Ports::default();
        let mut nodes = Vec::new();
        for region in &REGIONS {
            for (index, gpu) in [false, true].into_iter().enumerate() {
                nodes.push(Node {
                    name: format!("{}-{}", region.name, index + 1),
                    region,
                    gpu,
                    address: ports.free()?,
                    app: ports.free()?,
                });
            }
        }
        Ok(Self { nodes, gateway: ports.free()?, capacity })
    }

    /// MiB a second of one worker.
    pub(super) fn rate_mib(&self, node: &Node) -> f64 {
        self.capacity.mib * node.speed() / self.nodes.iter().map(Node::speed).sum::<f64>()
    }
}

/// Looks for free ports below the range that the kernel gives to outgoing
/// connections, so that none of those takes one while its owner restarts.
#[derive(Default)]
struct Ports {
    taken: BTreeSet<u16>,
}

impl Ports {
    fn free(&mut self) -> io::Result<SocketAddr> {
        let mut last = None;
        for _ in 0..200 {
            let port = fastrand::u16(20_000..32_000);
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            if !self.taken.insert(port) {
                continue;
            }
            match TcpListener::bind(address) {
                Ok(_) => return Ok(address),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| io::Error::other("no free port between 20000 and 32000")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_has_its_own_port() {
        let places = Places::find(Capacity { mib: 90.0, batch_ms: 1 }).unwrap();
        let mut ports: BTreeSet<u16> =
            places.nodes.iter().flat_map(|node| [node.address.port(), node.app.port()]).collect();
        ports.insert(places.gateway.port());
        assert_eq!((places.nodes.len(), ports.len()), (6, 13));
        let rates: f64 = places.nodes.iter().map(|node| places.rate_mib(node)).sum();
        assert!((rates - 90.0).abs() < 1e-9);
        assert!(REGIONS.iter().any(|region| region.name == FAVOURED));
    }
}
