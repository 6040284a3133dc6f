//! Follows any ADS server and prints what it takes into use:
//! `cargo run -p towpath-xds --example watch -- HOST:PORT NODE [delta|sotw]`.

use towpath_policies::model::Node;
use towpath_xds::{
    Flavour,
    client::{AdsClient, Options},
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, id, flavour @ ..] = &arguments[..] else {
        return Err("HOST:PORT and NODE are needed".into());
    };
    let node = Node { id: id.clone(), cluster: String::new(), sidecar: false };
    let mut options = Options::new(address, node);
    if flavour.first().is_some_and(|flavour| flavour == "sotw") {
        options.flavour = Flavour::StateOfTheWorld;
    }
    let client = AdsClient::start(options, |snapshot| {
        println!("in use: {snapshot:#?}");
        Ok(())
    })?;
    let mut status = client.status();
    while status.changed().await.is_ok() {
        println!("{:?}", *status.borrow_and_update());
    }
    Ok(())
}
