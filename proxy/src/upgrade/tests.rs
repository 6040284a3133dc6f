use std::os::unix::fs::PermissionsExt as _;

use tokio::net::TcpStream;

use super::*;

fn place(name: &str, port: u16) -> Place {
    Place { listener: Some(name.into()), asked: ([127, 0, 0, 1], port).into() }
}

fn socket() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// What is at the other end of `path`, for one conversation that `script` plays.
async fn with_old<F: Future<Output = ()> + Send + 'static>(
    script: impl FnOnce(Channel) -> F + Send + 'static,
) -> anyhow::Result<(Sockets, Option<Predecessor>)> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("upgrade");
    let door = Door::open(&path).unwrap();
    tokio::spawn(async move { script(door.next().await.unwrap()).await });
    let sockets = Sockets::default();
    let predecessor = inherit(&path, &sockets).await?;
    Ok((sockets, predecessor))
}

#[tokio::test]
async fn sockets_arrive_and_are_found_by_name_or_address() {
    let given: Vec<_> = (0..150).map(|n| (place(&n.to_string(), 0), socket())).collect();
    let addresses: Vec<_> = given.iter().map(|(_, s)| s.local_addr().unwrap()).collect();
    let (sockets, predecessor) = with_old(|channel| async move {
        let (hello, _) = channel.receive::<FromNew>().await.unwrap();
        assert!(matches!(hello, FromNew::Hello { protocol: PROTOCOL, .. }), "{hello:?}");
        give(&channel, &given).await.unwrap();
        let (ready, _) = channel.receive::<FromNew>().await.unwrap();
        assert!(matches!(ready, FromNew::Ready));
        channel.send(&FromOld::Yours, &[]).await.unwrap();
    })
    .await
    .unwrap();
    for (n, address) in addresses.iter().enumerate() {
        let found = sockets.find(Some(&n.to_string()), ([127, 0, 0, 1], 0).into()).unwrap();
        assert_eq!(found.local_addr().unwrap(), *address);
    }
    let predecessor = predecessor.unwrap();
    assert_eq!(predecessor.pid, Some(i32::try_from(std::process::id()).unwrap()));
    predecessor.relieve().await.unwrap();
}

#[test]
fn a_process_of_another_container_has_no_number_here() {
    for (told, known) in [(Some(7), Some(7)), (Some(0), None), (Some(-1), None), (None, None)] {
        assert_eq!(channel::seen(told), known, "{told:?}");
    }
}

#[test]
fn a_renamed_listener_keeps_its_socket_and_the_admin_endpoint_is_no_listener() {
    let sockets = Sockets::default();
    sockets.put(place("old", 7), socket());
    sockets.put(Place { listener: None, asked: ([127, 0, 0, 1], 8).into() }, socket());
    sockets.put(place("free", 0), socket());
    let found =
        |name: Option<&str>, port: u16| sockets.find(name, ([127, 0, 0, 1], port).into()).is_some();
    assert!(found(Some("new"), 7) && found(Some("old"), 7) && found(None, 8));
    assert!(found(Some("free"), 0) && !found(Some("other"), 0), "any port is not one port");
    assert!(!found(Some("new"), 8) && !found(None, 7) && !found(Some("old"), 9));
    sockets.close();
    assert!(!found(None, 8));
}

#[tokio::test]
async fn a_refusal_and_a_strange_answer_are_told() {
    for (answer, expected) in [
        (FromOld::Refused { reason: "another protocol".into() }, "another protocol"),
        (FromOld::Yours, "out of turn"),
        (FromOld::Sockets { places: vec![place("a", 1)], more: false }, "0 descriptors for 1"),
    ] {
        let told = with_old(|channel| async move {
            channel.send(&answer, &[]).await.unwrap();
            let _ = channel.receive::<FromNew>().await;
        })
        .await
        .unwrap_err();
        assert!(format!("{told:#}").contains(expected), "{told:#}");
    }
    let gone = with_old(|channel| async move { drop(channel) }).await.unwrap_err();
    assert!(format!("{gone:#}").contains("does not hand over"), "{gone:#}");
}

#[tokio::test]
async fn the_door_is_its_owners_and_replaces_nothing_but_sockets() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("upgrade");
    assert!(inherit(&path, &Sockets::default()).await.unwrap().is_none(), "nobody is there");
    drop(Door::open(&path).unwrap());
    assert!(inherit(&path, &Sockets::default()).await.unwrap().is_none(), "nobody is there now");
    let _door = Door::open(&path).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let file = folder.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(Door::open(&file).is_err());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left beside");
}

#[tokio::test]
async fn a_proxy_serves_on_until_a_successor_that_it_understands_is_ready() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("upgrade");
    let mut config = crate::Config::new(crate::SourceConfig::Manual);
    config.upgrade_socket = Some(path.clone());
    let admin = config.admin.unwrap();
    let running = crate::start(config).await.unwrap();
    let hello = |protocol| FromNew::Hello { protocol, program: "9.9.9".into() };

    let other = Channel::connect(&path).unwrap().unwrap();
    other.send(&hello(PROTOCOL + 1), &[]).await.unwrap();
    let (answer, _) = other.receive::<FromOld>().await.unwrap();
    let FromOld::Refused { reason } = answer else { panic!("{answer:?}") };
    assert!(reason.contains("9.9.9") && reason.contains("stop this proxy"), "{reason}");

    // It dies before it is ready.
    let sockets = Sockets::default();
    drop(inherit(&path, &sockets).await.unwrap().unwrap());
    let address = sockets.find(None, admin).unwrap().local_addr().unwrap();
    assert_eq!(address, running.admin_addr(), "the same socket");

    let predecessor = inherit(&path, &Sockets::default()).await.unwrap().unwrap();
    assert!(!running.control().drain.fired());
    predecessor.relieve().await.unwrap();
    assert!(running.control().drain.fired() && Channel::connect(&path).unwrap().is_none());
    // Whoever connects is for the successor, which has the socket.
    TcpStream::connect(address).await.unwrap();
}
