//! Golden texts, and what must hold for any [`Spec`].

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::{Command, Stdio},
};

use proptest::prelude::*;

use crate::{
    Connection, Direction, Error, Fail, Loopback, Network, Spec, explain, iptables, nft,
    rules::{self, chains},
};

fn networks(texts: &[&str]) -> Vec<Network> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// Each with the name of its golden files.
fn specs() -> Vec<(&'static str, Spec)> {
    let everything = Spec {
        outbound: Some(25001),
        inbound: Some(25006),
        dns: Some(25053),
        proxy_user: Some(2000),
        proxy_group: Some(2001),
        mark: 0x17,
        exclude_users: vec![33, 34],
        exclude_groups: vec![8],
        exclude_outbound_ports: vec![443, 22, 443],
        exclude_inbound_ports: (8000..8020).collect(),
        exclude_outbound_networks: networks(&[
            "10.0.0.0/8",
            "10.1.0.0/16",
            "fd00::/8",
            "192.0.2.1",
        ]),
        exclude_inbound_networks: networks(&["::1"]),
        only_outbound_ports: vec![5432],
        only_inbound_ports: (5000..5020).collect(),
        loopback: Loopback::Own,
        ..Spec::default()
    };
    let inbound = Spec { outbound: None, tproxy: true, fail: Fail::Open, ..Spec::default() };
    vec![
        ("default", Spec::default()),
        ("everything", everything),
        ("tproxy", Spec { tproxy: true, ..Spec::default() }),
        ("open", inbound),
        // Everything in a namespace of one process, whose proxy is outside.
        (
            "process",
            Spec {
                inbound: None,
                dns: Some(15053),
                loopback: Loopback::All,
                proxy_user: None,
                ..Spec::default()
            },
        ),
        ("ipv4", Spec { ipv6: false, ..Spec::default() }),
    ]
}

fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name);
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, text).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "{} differs; BLESS=1 writes it", path.display());
}

#[test]
fn specs_become_what_their_golden_files_say() {
    for (name, spec) in specs() {
        spec.check().unwrap();
        golden(&format!("{name}.nft"), &spec.ruleset());
        if spec.fail == Fail::Open {
            continue; // iptables cannot.
        }
        let none = iptables::Found::default();
        let texts = [false, true].map(|ipv6| iptables::ruleset(&spec, &chains(&spec), ipv6, &none));
        golden(&format!("{name}.iptables"), &texts.join("# IPv6\n"));
    }
}

#[test]
fn what_cannot_be_is_refused_with_the_reason() {
    let base = Spec::default();
    for (spec, said) in [
        (Spec { outbound: None, inbound: None, ..base.clone() }, "nothing is to be intercepted"),
        (Spec { outbound: Some(0), ..base.clone() }, "0 is no port"),
        (Spec { inbound: Some(15001), ..base.clone() }, "to one port"),
        (Spec { dns: Some(15006), ..base.clone() }, "to one port"),
        (Spec { inbound: None, tproxy: true, ..base.clone() }, "TPROXY is for inbound"),
        (Spec { outbound: None, dns: Some(53), ..base.clone() }, "DNS requests are outbound"),
        (Spec { mark: 0, ..base.clone() }, "mark 0 is no mark"),
        (Spec { mark: rules::RETURN_MARK, tproxy: true, ..base.clone() }, "TPROXY uses itself"),
        (Spec { fail: Fail::Open, ..base.clone() }, "cannot fail open"),
        (Spec { fail: Fail::Open, tproxy: true, ..base.clone() }, "cannot fail open"),
        (Spec { fail: Fail::Open, outbound: None, ..base.clone() }, "cannot fail open"),
    ] {
        let error = spec.check().unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn a_record_of_another_version_is_not_misread() {
    for option in ["--exclude-moon", "--outbound-port=x", "--mark=29807", "--loopback=some", ""] {
        let error = Spec::from_options(["--no-inbound", option]).unwrap_err();
        assert!(matches!(error, Error::Record { .. }), "{option}: {error}");
    }
}

#[test]
fn why_is_said_in_words() {
    let everything = &specs()[1].1;
    let plain = Spec::default();
    let outbound = |to: &str| Connection::new(Direction::Outbound, to.parse().unwrap());
    let inbound = |to: &str| Connection::new(Direction::Inbound, to.parse().unwrap());
    for (spec, connection, said) in [
        (&plain, outbound("192.0.2.7:5432"), "Redirected(15001): nothing excludes it"),
        (&plain, inbound("192.0.2.7:5432"), "Redirected(15006): nothing excludes it"),
        (
            &plain,
            outbound("127.0.0.1:5432"),
            "Left: it stays on this machine, and loopback is left alone",
        ),
        (&plain, outbound("192.0.2.7:53"), "Left: DNS is left alone"),
        (
            &plain,
            Connection { user: Some(1802), ..outbound("192.0.2.7:80") },
            "Left: it is the proxy's own: sent to the proxy it would never end",
        ),
        (
            &plain,
            Connection { mark: 0x746f, ..outbound("192.0.2.7:80") },
            "Left: packets with mark 0x746f are left alone",
        ),
        (
            &plain,
            Connection { local: false, ..inbound("192.0.2.7:80") },
            "Left: it only passes through this machine",
        ),
        (everything, outbound("10.1.2.3:5432"), "Left: connections to 10.0.0.0/8 are left alone"),
        (everything, outbound("[fd00::7]:5432"), "Left: connections to fd00::/8 are left alone"),
        (everything, outbound("127.0.0.1:5432"), "Left: addresses of loopback are left alone"),
        (everything, outbound("192.0.2.7:443"), "Left: port 443 is excluded"),
        (everything, outbound("192.0.2.7:80"), "Left: only port 5432 is intercepted"),
        (
            everything,
            outbound("192.0.2.7:53"),
            "Redirected(25053): it is a DNS request, and those are sent to a port of their own",
        ),
        (
            everything,
            Connection { user: Some(34), ..outbound("192.0.2.7:5432") },
            "Left: its user is excluded",
        ),
        (
            everything,
            Connection { source: Some("::1".parse().unwrap()), ..inbound("[fd00::7]:5001") },
            "Left: it stays on this machine, and loopback is left alone",
        ),
    ] {
        let told = explain(spec, &connection);
        assert_eq!(format!("{:?}: {}", told.verdict, told.why), said);
    }
    let told = explain(everything, &outbound("[fd00::7]:5432")).rule.unwrap();
    assert_eq!(told.2, "ip6 daddr fd00::/8 counter return comment \"networks\"");
}

fn ports() -> impl Strategy<Value = Vec<u16>> {
    prop_oneof![Just(Vec::new()), prop::collection::vec(1u16.., 0..40)]
}

fn ids() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(0u32..u32::MAX, 0..3)
}

fn cidrs() -> impl Strategy<Value = Vec<Network>> {
    let one = (any::<IpAddr>(), any::<u8>())
        .prop_map(|(ip, n)| Network::new(ip, n % if ip.is_ipv6() { 129 } else { 33 }).unwrap());
    prop::collection::vec(one, 0..12)
}

prop_compose! {
    fn lists()(
        exclude_users in ids(), exclude_groups in ids(),
        exclude_outbound_ports in ports(), exclude_inbound_ports in ports(),
        exclude_outbound_networks in cidrs(), exclude_inbound_networks in cidrs(),
        only_outbound_ports in ports(), only_inbound_ports in ports(),
    ) -> Spec {
        Spec {
            exclude_users, exclude_groups, exclude_outbound_ports, exclude_inbound_ports,
            exclude_outbound_networks, exclude_inbound_networks, only_outbound_ports,
            only_inbound_ports, ..Spec::default()
        }
    }
}

prop_compose! {
    /// Any that is no contradiction.
    fn any_spec()(
        lists in lists(),
        outbound in prop::option::of(1u16..20_000), inbound in prop::option::of(20_000u16..40_000),
        dns in prop::option::of(40_000u16..), tproxy: bool, ipv6: bool, open: bool,
        loopback in prop_oneof![Just(Loopback::Leave), Just(Loopback::Own), Just(Loopback::All)],
        proxy_user in prop::option::of(0u32..u32::MAX), proxy_group in prop::option::of(0u32..u32::MAX),
        mark in 1u32..,
    ) -> Spec {
        let fail = if open { Fail::Open } else { Fail::Closed };
        let spec = Spec {
            outbound, inbound, dns, tproxy, ipv6, fail, loopback, proxy_user, proxy_group, mark, ..lists
        };
        if spec.check().is_ok() { spec } else { Spec { outbound: Some(1), dns: None, tproxy: false, fail: Fail::Closed, ..spec } }
    }
}

/// What a program says to a text, in a network namespace of its own that ends with it.
fn takes(program: &[&str], text: &str) -> Result<(), String> {
    use std::io::Write as _;
    let mut child = Command::new("unshare")
        .arg("--net")
        .args(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("unshare");
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(said) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn nft_takes_any_ruleset(spec in any_spec()) {
        let text = spec.ruleset();
        if let Err(said) = takes(&["nft", "-c", "-f", "-"], &text) {
            panic!("{said}\nof {text}");
        }
        prop_assert!(nft::removal().len() < text.len());
    }

    #[test]
    fn iptables_takes_any_ruleset(spec in any_spec()) {
        for (ipv6, program) in [(false, "iptables-restore"), (true, "ip6tables-restore")] {
            let none = iptables::Found::default();
            let text = iptables::ruleset(&spec, &chains(&spec), ipv6, &none);
            if let Err(said) = takes(&[program, "--noflush", "--test"], &text) {
                panic!("{said}\nof {text}");
            }
        }
    }
}

proptest! {
    #[test]
    fn a_record_is_read_as_it_was_written(spec in any_spec()) {
        let options = spec.options();
        // A comment in the kernel holds 127 bytes, and quotes would end it.
        prop_assert!(options.iter().all(|option| option.len() < 128 && !option.contains('"')));
        prop_assert_eq!(Spec::from_options(options.iter().map(String::as_str)).unwrap(), spec);
    }

    #[test]
    fn what_is_left_alone_is_what_is_excluded(
        spec in any_spec(), to: SocketAddr, user: Option<u32>, inbound: bool,
    ) {
        let direction = if inbound { Direction::Inbound } else { Direction::Outbound };
        let told = explain(&spec, &Connection { user, ..Connection::new(direction, to) });
        prop_assert!(!told.why.is_empty());
    }
}
