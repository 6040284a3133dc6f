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
    /// MiB a second of a worker without and with an accelerator.
    pub(super) rate_mib: [f64; 2],
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
        rate_mib: [8.0, 16.0],
        gpu: ("amd", "MI300X"),
    },
    Region {
        name: "eu-west",
        latitude: 53.3,
        longitude: -6.3,
        delay_ms: 24,
        rate_mib: [7.0, 14.0],
        gpu: ("nvidia", "H200"),
    },
    Region {
        name: "ap-south",
        latitude: 19.1,
        longitude: 72.9,
        delay_ms: 60,
        rate_mib: [6.0, 12.0],
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

/// All addresses of the stage.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) nodes: Vec<Node>,
    pub(super) gateway: SocketAddr,
}

impl Node {
    /// Name of the sidecar.
    pub(super) fn sidecar(&self) -> String {
        format!("worker-{}", self.name)
    }

    /// MiB a second.
    pub(super) fn rate_mib(&self) -> f64 {
        self.region.rate_mib[usize::from(self.gpu)]
    }
}

impl Places {
    /// Finds free ports for everything that policies must name.
    ///
    /// # Errors
    /// When there are none.
    pub(super) fn find() -> io::Result<Self> {
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
        Ok(Self { nodes, gateway: ports.free()? })
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
        let places = Places::find().unwrap();
        let mut ports: BTreeSet<u16> =
            places.nodes.iter().flat_map(|node| [node.address.port(), node.app.port()]).collect();
        ports.insert(places.gateway.port());
        assert_eq!((places.nodes.len(), ports.len()), (6, 13));
        assert!(REGIONS.iter().any(|region| region.name == FAVOURED));
    }
}
