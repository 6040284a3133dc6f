//! The lowest classes are shed first, what was accepted goes on, and it recovers by itself.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::SeqCst},
};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use towpath_policies::model::*;
use towpath_proxy::{
    Config, Readings, Running, SourceConfig,
    overload::{Ceilings, Reading},
};

use crate::support::*;

/// A proxy with a listener for each class, and what it is told of its memory.
async fn pressed(world: World) -> (Running, Arc<AtomicU64>) {
    let used = Arc::new(AtomicU64::new(0));
    let told = used.clone();
    let mut config = Config::new(SourceConfig::Manual);
    config.ceilings = Ceilings { memory: 1000, descriptors: 0, streams: 0 };
    config.readings =
        Readings(Arc::new(move || Reading { resident: told.load(SeqCst), ..Reading::default() }));
    let proxy = towpath_proxy::start(config).await.unwrap();
    let world = Class::ALL
        .into_iter()
        .fold(world, |world, class| world.http_of(class, class.name(), "web"));
    proxy.apply(world.build("v1")).unwrap();
    (proxy, used)
}

/// Waits until requests of these classes are shed, and of no other.
async fn shed(connections: &mut [tokio::net::TcpStream; 3], expected: [bool; 3]) {
    for (tcp, expected) in connections.iter_mut().zip(expected) {
        eventually(&format!("shed: {expected}"), async || {
            let (head, _) = get(tcp, "/").await;
            let shed = head.starts_with("http/1.1 503 ");
            assert!(!shed || head.contains("x-towpath-reason: overload"), "{head}");
            assert!(!shed || head.contains("\r\nretry-after: "), "{head}");
            (shed == expected).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn the_lowest_classes_are_shed_first_and_it_recovers_by_itself() {
    let web = web("here").await;
    let world = World::default().service("web", Protocol::Http1, &[web.address]);
    let (proxy, used) = pressed(world).await;
    let mut connections = [
        connect(&proxy, "interactive").await,
        connect(&proxy, "bulk").await,
        connect(&proxy, "background").await,
    ];
    shed(&mut connections, [false, false, false]).await;
    used.store(850, SeqCst);
    shed(&mut connections, [false, false, true]).await;
    used.store(950, SeqCst);
    shed(&mut connections, [false, true, true]).await;
    used.store(990, SeqCst);
    shed(&mut connections, [true, true, true]).await;
    used.store(100, SeqCst);
    shed(&mut connections, [false, false, false]).await;
    let (_, metrics) = admin(&proxy, "GET", "/metrics").await;
    for class in ["interactive", "bulk", "background"] {
        let line = format!("towpath_shed_total{{class=\"{class}\",reason=\"memory\"}} ");
        assert!(metrics.contains(&line) && !metrics.contains(&format!("{line}0\n")), "{class}");
    }
}

#[tokio::test]
async fn at_the_top_nothing_new_is_accepted_and_what_runs_goes_on() {
    let (tell, told) = tokio::sync::watch::channel(false);
    let slow = origin(move |mut tcp| {
        let mut told = told.clone();
        async move {
            head(&mut tcp).await.unwrap();
            let begin = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nfirst";
            tcp.write_all(begin).await.unwrap();
            told.wait_for(|go| *go).await.unwrap();
            tcp.write_all(b"after").await.unwrap();
        }
    })
    .await;
    let probe = web("here").await;
    let world = World::default()
        .service("web", Protocol::Http1, &[slow.address])
        .service("probe", Protocol::Http1, &[probe.address])
        .http("probe", "probe");
    let (proxy, used) = pressed(world).await;
    let mut running = connect(&proxy, "background").await;
    running.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert!(head(&mut running).await.unwrap().starts_with("HTTP/1.1 200 "));
    let mut asking = connect(&proxy, "probe").await;
    used.store(1000, SeqCst);
    eventually("everything is shed", async || {
        get(&mut asking, "/").await.0.starts_with("http/1.1 503 ").then_some(())
    })
    .await;
    tell.send_replace(true);
    let mut body = [0; 10];
    running.read_exact(&mut body).await.unwrap();
    assert_eq!(&body, b"firstafter", "what was accepted is whole");
    // A listener takes the one that it waited for already, and no other: the kernel has that.
    let mut first = connect(&proxy, "bulk").await;
    assert!(get(&mut first, "/").await.0.starts_with("http/1.1 503 "));
    let mut second = connect(&proxy, "bulk").await;
    // There is one worker: had it been woken for the second, it would have seen to it by now.
    for _ in 0..3 {
        get(&mut first, "/").await;
    }
    let listeners = admin_json(&proxy, "/listeners").await;
    let mut of = listeners.as_array().unwrap().iter();
    let bulk = of.find(|listener| listener["name"] == "bulk").unwrap();
    assert_eq!(bulk["connections"], 1, "{listeners}");
    used.store(0, SeqCst);
    eventually("room for the second", async || {
        get(&mut second, "/").await.0.starts_with("http/1.1 200 ").then_some(())
    })
    .await;
}
