//! Places that only a map service knows, beside a stand-in for Apple's.

use std::{fs, path::Path, sync::Arc};

use towpath_control_plane::{
    Config, Running,
    places::{AppleArgs, AskFor, Limits, Maps},
    start,
};
use towpath_policies::model::{Endpoint, Snapshot};
use towpath_xds::Flavour;

use crate::{
    serving::Client,
    standin::{KEY_ID, Standin, TEAM_ID},
    support::*,
};

/// Endpoints at these places, at the ports 9000 and up.
fn placed(places: &[&str]) -> String {
    let endpoint = |(port, place): (u16, &&str)| {
        format!("  - {{address: \"127.0.0.1:{port}\", place: {place}}}\n")
    };
    let endpoints: String = (9000..).zip(places).map(endpoint).collect();
    policies(9000).replace("  - {address: \"127.0.0.1:9000\"}\n", &endpoints)
}

async fn asking(standin: &Arc<Standin>, folder: &Path, state: &Path) -> Running {
    let key = state.join("AuthKey.p8");
    fs::write(&key, standin.pem()).unwrap();
    let apple = AppleArgs {
        apple_maps_key: Some(key),
        apple_maps_key_id: Some(KEY_ID.to_owned()),
        apple_maps_team_id: Some(TEAM_ID.to_owned()),
        apple_maps_url: standin.listen().await,
    };
    let client = apple.client(Limits::default()).unwrap().unwrap();
    let maps = Maps { service: Arc::new(client), ask_for: AskFor::Unknown };
    let config = remembering(spec(folder.to_str().unwrap()), state);
    start(Config { maps: Some(maps), ..config }).await.unwrap()
}

fn endpoints(snapshot: &Snapshot) -> &[Endpoint] {
    snapshot.endpoints.get("etl").map_or(&[], |set| &set.endpoints)
}

fn latitudes(snapshot: &Snapshot) -> Vec<Option<f64>> {
    endpoints(snapshot).iter().map(|e| e.coordinates.map(|at| at.latitude)).collect()
}

/// Takes snapshots until one has these latitudes.
async fn stands_at(client: &mut Client, wanted: &[Option<f64>]) -> Arc<Snapshot> {
    loop {
        let snapshot = client.next().await;
        if latitudes(&snapshot) == wanted {
            return snapshot;
        }
    }
}

#[tokio::test]
async fn places_come_to_the_proxies_when_they_are_found_and_stay_when_the_service_goes() {
    let standin = Standin::new();
    let folder = folder_of(&[("a.yaml", &placed(&["Frankfurt", "Avalon"]))]);
    let state = tempfile::tempdir().unwrap();
    let running = asking(&standin, folder.path(), state.path()).await;
    let mut client = Client::connect(&running, "edge", Flavour::Delta);
    let found = stands_at(&mut client, &[Some(50.116), Some(51.144)]).await;
    assert_eq!(endpoints(&found)[1].place.as_deref(), Some("Avalon"));
    assert!(running.status().current.unwrap().warnings.is_empty());
    assert_eq!(standin.calls(), ["/v1/token", "/v1/geocode?q=Avalon&lang=en-US"]);
    let first = found.version.clone();
    drop(client);
    running.shutdown().await;

    standin.set_away(true);
    let running = asking(&standin, folder.path(), state.path()).await;
    let mut client = Client::connect(&running, "edge", Flavour::StateOfTheWorld);
    let known = stands_at(&mut client, &[Some(50.116), Some(51.144)]).await;
    assert_eq!(known.version, first);
    // A place that nobody can be asked for holds nothing up.
    fs::write(folder.path().join("a.yaml"), placed(&["Frankfurt", "Avalon", "Lemuria"])).unwrap();
    running.refresh().await;
    stands_at(&mut client, &[Some(50.116), Some(51.144), None]).await;
    let status = when(&running, |s| s.places.iter().any(|p| p.error.contains("Apple Maps"))).await;
    assert_eq!((&*status.places[0].place, &*status.places[0].source), ("Lemuria", "a.yaml:22"));
}

#[tokio::test]
async fn without_a_map_service_an_unknown_place_is_a_warning_in_the_status() {
    let folder = folder_of(&[("a.yaml", &placed(&["Frankfrt"]))]);
    let running = started(spec(folder.path().to_str().unwrap())).await;
    let warnings = running.status().current.unwrap().warnings;
    assert_eq!(warnings.len(), 1);
    assert!(
        warnings[0].starts_with("a.yaml:22: ") && warnings[0].contains("Frankfurt am Main, DE"),
        "{warnings:?}"
    );
}
