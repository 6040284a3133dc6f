//! Against the kernel, in network namespaces of their own.
#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod space;

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    thread,
};

use proptest::{
    prelude::*,
    sample::{select, subsequence},
    strategy::ValueTree as _,
    test_runner::TestRunner,
};
use socket2::{Domain, SockAddr, Socket, Type};
use space::{PATIENCE, Space, Who, answer, pair};
use towpath_intercept::{
    Connection, Direction, Error, Fail, Loopback, Network, Protocol, Spec, Status, Tool, Verdict,
    explain, install, install_with, remove, status,
};

const NOBODY: Who = Who { user: 0, group: 0, mark: 0 };
const PROXY: Who = Who { user: 1802, group: 0, mark: 0 };
const ANY: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];

fn networks(texts: &[&str]) -> Vec<Network> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn setup(app: &Space, spec: &Spec, tool: Tool) {
    app.within(|| install_with(spec, tool)).unwrap();
}

/// Options that between them have all kinds of rules.
fn specs() -> Vec<Spec> {
    let base = Spec::default();
    vec![
        base.clone(),
        Spec { ipv6: false, ..base.clone() },
        Spec { inbound: None, dns: Some(15053), ..base.clone() },
        Spec { outbound: None, ..base.clone() },
        Spec { loopback: Loopback::Own, ..base.clone() },
        Spec { loopback: Loopback::All, ..base.clone() },
        Spec {
            exclude_users: vec![33, 34],
            exclude_groups: vec![8],
            exclude_outbound_ports: vec![443, 53],
            exclude_inbound_ports: vec![443],
            ..base.clone()
        },
        Spec {
            proxy_user: None,
            proxy_group: Some(8),
            mark: 0x17,
            exclude_outbound_networks: networks(&["10.77.0.0/16", "10.77.0.2", "fd77::/16"]),
            exclude_inbound_networks: networks(&["192.0.2.0/24", "fd77::2"]),
            ..base.clone()
        },
        Spec {
            tproxy: true,
            exclude_inbound_ports: vec![443],
            exclude_inbound_networks: networks(&["192.0.2.0/24", "fd77::2"]),
            ..base.clone()
        },
        // More ports than one rule of iptables holds.
        Spec {
            exclude_outbound_ports: (430..450).collect(),
            only_outbound_ports: (5420..5440).chain([443]).collect(),
            only_inbound_ports: vec![443],
            dns: Some(15053),
            ..base
        },
    ]
}

/// Such as nobody thought of, the same ones each time.
fn drawn() -> Vec<Spec> {
    let ports = || subsequence(vec![53u16, 443, 5432], 0..3);
    let outside =
        || subsequence(networks(&["10.77.0.0/16", "192.0.2.9", "fd00::/8", "::/0"]), 0..3);
    let loopback = select(vec![Loopback::Leave, Loopback::Own, Loopback::All]);
    let lists = (ports(), ports(), ports(), ports(), outside(), outside());
    let who = (
        subsequence(vec![33, 34], 0..=2),
        subsequence(vec![8], 0..=1),
        select(vec![None, Some(1802)]),
        select(vec![0x746f, 0x17]),
    );
    let how = (any::<[bool; 3]>(), loopback);
    let spec = (lists, who, how).prop_map(|(lists, who, ([tproxy, ipv6, dns], loopback))| Spec {
        exclude_outbound_ports: lists.0,
        exclude_inbound_ports: lists.1,
        only_outbound_ports: lists.2,
        only_inbound_ports: lists.3,
        exclude_outbound_networks: lists.4,
        exclude_inbound_networks: lists.5,
        exclude_users: who.0,
        exclude_groups: who.1,
        proxy_user: who.2,
        mark: who.3,
        tproxy,
        ipv6,
        dns: dns.then_some(15053),
        loopback,
        ..Spec::default()
    });
    let mut runner = TestRunner::deterministic();
    (0..DRAWN).map(|_| spec.new_tree(&mut runner).unwrap().current()).collect()
}

const DRAWN: usize = 24;

/// Who goes where.
fn outbound() -> Vec<(Who, Protocol, &'static str)> {
    use Protocol::{Tcp, Udp};
    let to = |to| (NOBODY, Tcp, to);
    let user = |user, to| (Who { user, ..NOBODY }, Tcp, to);
    let group = |group, to| (Who { group, ..NOBODY }, Tcp, to);
    let mark = |mark, to| (Who { mark, ..NOBODY }, Tcp, to);
    vec![
        to("10.9.0.2:5432"),
        to("10.9.0.2:443"),
        to("10.9.0.2:53"),
        to("10.77.0.2:5432"),
        to("192.0.2.9:5432"),
        to("[fd09::2]:5432"),
        to("[fd09::2]:443"),
        to("[fd77::2]:5432"),
        to("127.0.0.1:5432"),
        to("[::1]:5432"),
        to("10.9.0.1:5432"),
        to("[fd09::1]:5432"),
        user(1802, "10.9.0.2:5432"),
        user(1802, "[fd09::2]:5432"),
        user(33, "10.9.0.2:5432"),
        user(34, "[fd09::2]:443"),
        user(35, "10.9.0.2:5432"),
        group(8, "10.9.0.2:5432"),
        group(9, "[fd09::2]:5432"),
        mark(0x746f, "10.9.0.2:5432"),
        mark(0x746f, "[fd09::2]:5432"),
        mark(0x17, "10.9.0.2:5432"),
        (NOBODY, Udp, "10.9.0.2:53"),
        (NOBODY, Udp, "[fd09::2]:53"),
        (NOBODY, Udp, "10.9.0.2:443"),
        (PROXY, Udp, "10.9.0.2:53"),
    ]
}

/// From where to where.
const INBOUND: [(&str, &str); 7] = [
    ("10.9.0.2", "10.9.0.1:5432"),
    ("10.9.0.2", "10.9.0.1:443"),
    ("192.0.2.9", "10.9.0.1:5432"),
    ("192.0.2.9", "10.9.0.1:443"),
    ("fd09::2", "[fd09::1]:5432"),
    ("fd77::2", "[fd09::1]:5432"),
    ("fd77::2", "[fd09::1]:443"),
];

fn what_explain_says_happens(tool: Tool) {
    let (app, peer) = pair();
    for port in [53, 443, 5432] {
        app.serve("left", port);
        peer.serve("left", port);
        peer.serve_datagrams("left", &format!("10.9.0.2:{port}"));
        peer.serve_datagrams("left", &format!("[fd09::2]:{port}"));
    }
    app.serve("at 15001", 15001);
    app.serve("at 15053", 15053);
    for any in ANY {
        answer(transparent(&app, any, 15006), "at 15006");
    }
    app.serve_datagrams("at 15053", "127.0.0.1:15053");
    app.serve_datagrams("at 15053", "[::1]:15053");
    for spec in specs().into_iter().chain(drawn()) {
        setup(&app, &spec, tool);
        for (who, protocol, to) in outbound() {
            let said = match protocol {
                Protocol::Tcp => app.dial(who, to),
                Protocol::Udp => app.ask(who, to),
            };
            let destination: SocketAddr = to.parse().unwrap();
            let ip = destination.ip();
            let own =
                ["10.9.0.1", "fd09::1"].iter().any(|own| ip == own.parse::<IpAddr>().unwrap());
            let connection = Connection {
                protocol,
                user: Some(who.user),
                group: Some(who.group),
                mark: who.mark,
                local: own || ip.is_loopback(),
                ..Connection::new(Direction::Outbound, destination)
            };
            agree(&spec, &connection, said);
        }
        for (from, to) in INBOUND {
            let said = peer.dial_from(from, to);
            let source = Some(from.parse().unwrap());
            let inbound = Connection::new(Direction::Inbound, to.parse().unwrap());
            agree(&spec, &Connection { source, ..inbound }, said);
        }
    }
}

fn agree(spec: &Spec, connection: &Connection, said: Result<String, ErrorKind>) {
    let told = explain(spec, connection);
    let expected = match told.verdict {
        Verdict::Left => "left".to_owned(),
        Verdict::Redirected(port) | Verdict::Tproxied(port) => format!("at {port}"),
    };
    let agrees = said.as_ref().is_ok_and(|said| said.starts_with(&expected));
    assert!(agrees, "{connection:?}\nsaid {said:?}\nexplained {told:?}\n{spec:?}");
}

#[test]
fn what_explain_says_is_what_nftables_does() {
    what_explain_says_happens(Tool::Nft);
}

#[test]
fn what_explain_says_is_what_iptables_does() {
    what_explain_says_happens(Tool::Iptables);
}

#[test]
fn the_original_destination_and_the_client_are_known() {
    for tool in [Tool::Nft, Tool::Iptables] {
        let (app, peer) = pair();
        setup(&app, &Spec::default(), tool);
        app.serve("out", 15001);
        app.serve("in", 15006);
        for (client, to, said) in [
            (&app, "192.0.2.9:7", "out 10.9.0.1 192.0.2.9:7"),
            (&app, "[fd77::2]:7", "out fd09::1 [fd77::2]:7"),
            (&peer, "10.9.0.1:7", "in 10.9.0.2 10.9.0.1:7"),
            (&peer, "[fd09::1]:7", "in fd09::2 [fd09::1]:7"),
        ] {
            assert_eq!(client.dial(NOBODY, to).unwrap(), said, "{tool}");
        }
    }
}

/// A listener that takes what TPROXY gives it, in `space`.
fn transparent(space: &Space, ip: IpAddr, port: u16) -> TcpListener {
    space.within(|| {
        let socket = transparent_socket(ip);
        socket.bind(&SocketAddr::new(ip, port).into()).unwrap();
        socket.listen(16).unwrap();
        socket.into()
    })
}

fn transparent_socket(ip: IpAddr) -> Socket {
    let domain = if ip.is_ipv6() { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    if ip.is_ipv6() {
        socket.set_only_v6(true).unwrap();
        socket.set_ip_transparent_v6(true).unwrap();
    } else {
        socket.set_ip_transparent_v4(true).unwrap();
    }
    socket
}

/// Takes one connection and carries what the application says, as the client.
fn carry_as_the_client(app: &Space, listener: &TcpListener) {
    let (mut client, from) = listener.accept().unwrap();
    let to = client.local_addr().unwrap();
    let mut upstream: TcpStream = app.within(|| {
        let socket = transparent_socket(from.ip());
        socket.bind(&SockAddr::from(SocketAddr::new(from.ip(), 0))).unwrap();
        socket.connect_timeout(&to.into(), PATIENCE).unwrap();
        socket.into()
    });
    let mut said = String::new();
    upstream.read_to_string(&mut said).unwrap();
    client.write_all(said.as_bytes()).unwrap();
}

#[test]
fn tproxy_keeps_the_clients_address_up_to_the_application() {
    for tool in [Tool::Nft, Tool::Iptables] {
        let (app, peer) = pair();
        app.serve("app", 5432);
        setup(&app, &Spec { tproxy: true, ..Spec::default() }, tool);
        let listeners = ANY.map(|any| transparent(&app, any, 15006));
        for (listener, to, said) in [
            (&listeners[0], "10.9.0.1:5432", "app 10.9.0.2 10.9.0.1:5432"),
            (&listeners[1], "[fd09::1]:5432", "app fd09::2 [fd09::1]:5432"),
        ] {
            thread::scope(|scope| {
                scope.spawn(|| carry_as_the_client(&app, listener));
                assert_eq!(peer.dial(NOBODY, to).unwrap(), said, "{tool}");
            });
        }
        // Others on the machine reach the application as before, and the proxy reaches other machines.
        assert!(app.dial(NOBODY, "10.9.0.1:5432").unwrap().starts_with("app 10.9.0.1"), "{tool}");
        peer.serve("away", 80);
        let marked = Who { mark: 0x746f, ..NOBODY };
        assert!(app.dial(marked, "10.9.0.2:80").unwrap().starts_with("away 10.9.0.1"), "{tool}");
        assert!(app.dial(PROXY, "[fd09::2]:80").unwrap().starts_with("away fd09::1"), "{tool}");
    }
}

/// As Docker's containers have it: then the kernel takes no routes of IPv6.
#[test]
fn tproxy_goes_without_ipv6_where_that_is_off() {
    for tool in [Tool::Nft, Tool::Iptables] {
        let app = Space::new();
        app.shell("echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6");
        let spec = Spec { tproxy: true, ..Spec::default() };
        setup(&app, &spec, tool);
        assert_eq!(app.within(status_of), (spec, Vec::new(), Vec::new()), "{tool}");
        app.within(remove).unwrap();
        assert_eq!(app.within(status).unwrap(), Status::default(), "{tool}");
    }
}

/// Such a connection is known to nobody until the packet that completes it, which opens nothing.
#[test]
fn tproxy_knows_the_connections_that_come_by_syn_cookies() {
    for tool in [Tool::Nft, Tool::Iptables] {
        let (app, peer) = pair();
        app.shell("echo 2 >/proc/sys/net/ipv4/tcp_syncookies");
        app.serve("app", 5432);
        setup(&app, &Spec { tproxy: true, ..Spec::default() }, tool);
        for any in ANY {
            answer(transparent(&app, any, 15006), "proxy");
        }
        for to in ["10.9.0.1:5432", "[fd09::1]:5432", "10.9.0.1:7", "[fd09::1]:7"] {
            let said = peer.dial(NOBODY, to).unwrap();
            assert!(said.starts_with("proxy") && said.ends_with(to), "{to} {tool}: {said}");
        }
    }
}

/// As a process has it that is given a namespace of its own, with its proxy at the loopback there.
#[test]
fn where_every_address_is_local_all_connections_reach_the_proxy() {
    for tool in [Tool::Nft, Tool::Iptables] {
        let app = Space::new();
        app.shell("ip route add local 0.0.0.0/0 dev lo && ip -6 route add local ::/0 dev lo");
        let spec = Spec {
            inbound: None,
            dns: Some(15053),
            loopback: Loopback::All,
            proxy_user: None,
            ..Spec::default()
        };
        setup(&app, &spec, tool);
        app.serve("proxy", 15001);
        app.serve_datagrams("dns", "127.0.0.1:15053");
        app.serve_datagrams("dns", "[::1]:15053");
        for to in ["192.0.2.9:80", "127.0.0.1:80", "[2001:db8::7]:443", "[::1]:443"] {
            let said = app.dial(PROXY, to).unwrap();
            assert!(said.starts_with("proxy") && said.ends_with(to), "{to} {tool}: {said}");
        }
        for resolver in ["192.0.2.9:53", "127.0.0.53:53", "[2001:db8::7]:53"] {
            assert_eq!(app.ask(NOBODY, resolver).unwrap(), "dns", "{resolver} {tool}");
        }
        assert_eq!(app.ask(NOBODY, "192.0.2.9:443").unwrap_err(), ErrorKind::ConnectionRefused);
    }
}

#[test]
fn where_nobody_listens_connections_are_refused() {
    let (app, peer) = pair();
    app.serve("app", 5432);
    peer.serve("away", 5432);
    for (tool, tproxy) in [(Tool::Nft, false), (Tool::Nft, true), (Tool::Iptables, false)] {
        setup(&app, &Spec { tproxy, ..Spec::default() }, tool);
        for (client, to) in [
            (&app, "10.9.0.2:5432"),
            (&app, "[fd09::2]:5432"),
            (&peer, "10.9.0.1:5432"),
            (&peer, "[fd09::1]:5432"),
        ] {
            let refused = client.dial(NOBODY, to).unwrap_err();
            assert_eq!(refused, ErrorKind::ConnectionRefused, "{to} {tool} {tproxy}");
        }
    }
}

#[test]
fn failing_open_inbound_connections_reach_the_application() {
    let (app, peer) = pair();
    app.serve("app", 5432);
    let spec = Spec { outbound: None, tproxy: true, fail: Fail::Open, ..Spec::default() };
    setup(&app, &spec, Tool::Nft);
    for to in ["10.9.0.1:5432", "[fd09::1]:5432"] {
        assert!(peer.dial(NOBODY, to).unwrap().starts_with("app"), "{to}");
    }
    let listener = transparent(&app, Ipv4Addr::UNSPECIFIED.into(), 15006);
    answer(listener, "proxy");
    assert!(peer.dial(NOBODY, "10.9.0.1:5432").unwrap().starts_with("proxy"));
    let refused = app.within(|| install_with(&spec, Tool::Iptables)).unwrap_err();
    assert!(refused.to_string().contains("install nftables"), "{refused}");
}

/// Everything that rules of ours could leave behind.
fn traces(space: &Space) -> String {
    space.shell(
        "nft -s list ruleset; ip -4 rule; ip -6 rule; ip -4 route show table all; \
         ip -6 route show table all; iptables-save | grep -v '^#'; ip6tables-save | grep -v '^#'; true",
    )
}

fn all_kinds() -> [(Spec, Tool); 3] {
    let tproxy = Spec { tproxy: true, ..Spec::default() };
    [(tproxy.clone(), Tool::Nft), (tproxy, Tool::Iptables), (Spec::default(), Tool::Nft)]
}

/// Rules of somebody else, and whatever `iptables-nft` makes for itself on first use.
fn others(space: &Space) {
    space.shell(
        "nft add table inet other && nft add chain inet other in '{ type filter hook input priority 0; }'
         for i in iptables ip6tables; do for t in nat mangle; do
           for c in PREROUTING OUTPUT; do $i -t $t -A $c -p udp --dport 9 -j ACCEPT; done; done; done
         ip rule add priority 100 fwmark 9 lookup main",
    );
}

#[test]
fn removal_leaves_nothing_behind() {
    let app = Space::new();
    others(&app);
    let before = traces(&app);
    for (spec, tool) in all_kinds() {
        setup(&app, &spec, tool);
        assert_ne!(traces(&app), before);
        let removed = app.within(remove).unwrap();
        assert!(!removed.is_empty());
        assert_eq!(traces(&app), before, "{tool}");
    }
    assert_eq!(app.within(remove).unwrap(), Vec::<String>::new());
}

#[test]
fn what_was_installed_by_halves_is_removed_too() {
    let app = Space::new();
    others(&app);
    let before = traces(&app);
    for half in [
        "nft add table inet towpath",
        "nft add table inet towpath && nft add chain inet towpath outbound",
        "iptables -t nat -N TOWPATH_OUTBOUND",
        "ip6tables -t mangle -N TOWPATH_INBOUND
         ip6tables -t mangle -I PREROUTING -j TOWPATH_INBOUND
         ip6tables -t mangle -I PREROUTING -j TOWPATH_INBOUND",
        "ip -6 rule add priority 29809 fwmark 0x7471 lookup 29809",
        "ip rule add priority 29809 fwmark 0x7471 lookup 29809
         ip rule add priority 29809 fwmark 0x7472 lookup 29809",
        "ip route add local default dev lo table 29809",
    ] {
        app.shell(half);
        let status = app.within(status).unwrap();
        assert_eq!(status.installed, None, "{half}");
        assert!(!status.remains.is_empty(), "{half}");
        app.within(remove).unwrap();
        assert_eq!(traces(&app), before, "{half}");
        // And it is in nobody's way.
        app.shell(half);
        app.within(|| install(&Spec::default())).unwrap();
        assert_eq!(app.within(status_of), (Spec::default(), Vec::new(), Vec::new()), "{half}");
        app.within(remove).unwrap();
        assert_eq!(traces(&app), before, "{half}");
    }
}

fn status_of() -> (Spec, Vec<String>, Vec<String>) {
    let status = status().unwrap();
    let installed = status.installed.unwrap();
    (installed.spec, installed.missing, status.remains)
}

#[test]
fn installing_again_changes_only_what_was_asked() {
    let app = Space::new();
    let kinds = all_kinds();
    for (spec, tool) in kinds.iter().chain(kinds.iter().rev()) {
        setup(&app, spec, *tool);
        let once = traces(&app);
        setup(&app, spec, *tool);
        assert_eq!(traces(&app), once);
        let nothing = Vec::new();
        assert_eq!(app.within(status_of), (spec.clone(), nothing.clone(), nothing));
        assert_eq!(app.within(status).unwrap().installed.unwrap().tool, *tool);
    }
}

#[test]
fn connections_go_on_where_rules_come_and_are_renewed() {
    for tool in [Tool::Nft, Tool::Iptables] {
        let (app, peer) = pair();
        let echo = |space: &Space, port: u16| {
            let listener =
                space.within(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap());
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (mut from, mut to) = (stream.try_clone().unwrap(), stream);
                    thread::spawn(move || std::io::copy(&mut from, &mut to));
                }
            });
        };
        echo(&peer, 5432);
        echo(&app, 5432);
        echo(&app, 15001);
        let asked = |stream: &mut TcpStream| {
            stream.write_all(b"still here").unwrap();
            let mut said = [0; 10];
            stream.read_exact(&mut said).unwrap();
            assert_eq!(&said, b"still here", "{tool}");
        };
        let mut before = app.connect(NOBODY, "10.9.0.2:5432").unwrap();
        let mut inbound = peer.connect(NOBODY, "10.9.0.1:5432").unwrap();
        asked(&mut before);
        asked(&mut inbound);
        setup(&app, &Spec::default(), tool);
        asked(&mut before);
        asked(&mut inbound);
        let mut taken = app.connect(NOBODY, "10.9.0.2:7").unwrap();
        asked(&mut taken);
        setup(&app, &Spec { exclude_outbound_ports: vec![7], ..Spec::default() }, tool);
        asked(&mut taken);
        asked(&mut before);
        asked(&mut inbound);
        app.within(remove).unwrap();
        asked(&mut before);
        asked(&mut inbound);
    }
}

#[test]
fn status_counts_connections() {
    for tool in [Tool::Nft, Tool::Iptables] {
        let (app, peer) = pair();
        app.serve("out", 15001);
        peer.serve("away", 5432);
        setup(&app, &Spec::default(), tool);
        for to in ["10.9.0.2:5432", "10.9.0.2:5432", "[fd09::2]:5432"] {
            app.dial(NOBODY, to).unwrap();
        }
        app.dial(PROXY, "10.9.0.2:5432").unwrap();
        let installed = app.within(status).unwrap().installed.unwrap();
        assert_eq!(installed.version, env!("CARGO_PKG_VERSION"));
        let count = |rule: &str| {
            let mut counters = installed.counters.iter();
            let found = counters.find(|c| c.chain == "outbound" && c.rule == rule);
            found.map(|counter| counter.packets)
        };
        assert_eq!((count("taken"), count("proxy user")), (Some(3), Some(1)), "{tool}");
    }
}

#[test]
fn what_a_person_took_out_is_missed() {
    let app = Space::new();
    setup(&app, &Spec { tproxy: true, ..Spec::default() }, Tool::Nft);
    app.shell("nft flush chain inet towpath back && ip -6 rule del priority 29809");
    let (_, missing, remains) = app.within(status_of);
    assert_eq!(missing, ["rule answers of chain back", "ip -6 rule lookup 29809"]);
    assert_eq!(remains, Vec::<String>::new());
}

#[test]
fn without_the_privilege_nothing_is_done_and_it_is_said_why() {
    let app = Space::new();
    for tool in [Tool::Nft, Tool::Iptables] {
        let error = app.within(|| {
            let user = rustix::process::Uid::from_raw(1000);
            rustix::thread::set_thread_res_uid(user, user, user).unwrap();
            install_with(&Spec::default(), tool).unwrap_err()
        });
        assert!(matches!(error, Error::NotPermitted { .. }), "{error}");
        assert!(error.to_string().contains("NET_ADMIN"), "{error}");
    }
}
