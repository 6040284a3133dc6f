use clap::Parser as _;

use super::*;

#[derive(Debug, clap::Parser)]
struct Command {
    #[command(flatten)]
    options: Options,
}

fn read(options: &[String]) -> Result<Spec, String> {
    let words = std::iter::once("install".to_owned()).chain(options.iter().cloned());
    let command = Command::try_parse_from(words).map_err(|error| error.to_string())?;
    Ok(command.options.spec())
}

#[test]
fn without_options_it_is_the_default() {
    assert_eq!(read(&[]).unwrap(), Spec::default());
}

#[test]
fn the_options_that_a_record_has_are_those_of_the_command() {
    let networks = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
    let everything = Spec {
        outbound: Some(1),
        inbound: Some(2),
        tproxy: true,
        dns: Some(3),
        loopback: Loopback::Own,
        ipv6: false,
        fail: Fail::Closed,
        proxy_user: None,
        proxy_group: Some(4),
        mark: 5,
        exclude_users: vec![6, 7],
        exclude_groups: vec![8],
        exclude_outbound_ports: (9..300).collect(),
        exclude_inbound_ports: vec![10],
        exclude_outbound_networks: networks.clone(),
        exclude_inbound_networks: networks,
        only_outbound_ports: vec![11],
        only_inbound_ports: vec![12, 13],
    };
    let open = Spec { outbound: None, tproxy: true, fail: Fail::Open, ..Spec::default() };
    for spec in [Spec::default(), everything, open, Spec { inbound: None, ..Spec::default() }] {
        assert_eq!(read(&spec.options()).unwrap(), spec);
    }
}

#[test]
fn what_inject_writes_is_understood() {
    let written = ["--exclude-user=2000", "--exclude-inbound-ports=8080,9901"].map(str::to_owned);
    let spec = read(&written).unwrap();
    assert_eq!((spec.exclude_users, spec.exclude_inbound_ports), (vec![2000], vec![8080, 9901]));
}

#[test]
fn users_have_names_and_mistakes_are_pointed_at() {
    let read = |option: &str| read(&[option.to_owned()]);
    assert_eq!(read("--exclude-user=root,7").unwrap().exclude_users, [0, 7]);
    assert_eq!(read("--proxy-user=none").unwrap().proxy_user, None);
    assert_eq!(read("--mark=29807").unwrap().mark, 0x746f);
    for (option, said) in [
        ("--exclude-user=no-such-one", "/etc/passwd has no `no-such-one`; give its number"),
        ("--exclude-outbound-networks=10.1.2.3/8", "did you mean 10.0.0.0/8?"),
        ("--loopback=some", "leave, own or all"),
        ("--outbound-port=0", "0 is not in 1..=65535"),
        ("--mark=x", "a number such as 29807 or 0x746f"),
    ] {
        let error = read(option).unwrap_err();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn an_explanation_says_what_why_and_by_which_rule() {
    let asked = |to: &str| Connection::new(Direction::Outbound, to.parse().unwrap());
    assert_eq!(
        explained(&Spec::default(), &asked("192.0.2.7:5432")),
        "outbound TCP 192.0.2.7:5432: sent to port 15001 (REDIRECT)\n\
         because  nothing excludes it\n\
         rule     outbound, taken: tcp flags & (fin | syn | rst | ack) == syn counter redirect to \
         :15001 comment \"taken\"\n"
    );
    let udp = Connection { protocol: Protocol::Udp, ..asked("192.0.2.7:443") };
    assert_eq!(
        explained(&Spec::default(), &udp),
        "outbound UDP 192.0.2.7:443: left alone\n\
         because  only TCP is intercepted, and DNS where told\n"
    );
    assert!(is_local([127, 0, 0, 1].into()));
    assert!(!is_local([192, 0, 2, 7].into()));
}

#[test]
fn a_status_says_what_is_there_and_what_is_missing() {
    assert_eq!(text(&Status::default(), &[]), "nothing is installed here\n");
    let counter = towpath_intercept::Counter {
        chain: "outbound".to_owned(),
        rule: "taken".to_owned(),
        packets: 7,
        bytes: 420,
    };
    let installed = Installed {
        tool: Tool::Nft,
        version: "0.1.0".to_owned(),
        spec: Spec { inbound: None, ..Spec::default() },
        counters: vec![counter],
        missing: vec!["rule dns of chain outbound".to_owned()],
    };
    let remains = vec!["ip -6 rule lookup 29809".to_owned()];
    let status = Status { installed: Some(installed), remains };
    let warnings = ["nobody listens at port 15001".to_owned()];
    assert_eq!(
        text(&status, &warnings),
        "installed  outbound connections to port 15001, inbound connections left alone (towpath 0.1.0, by nft)
options    --outbound-port=15001 --no-inbound --proxy-user=1802 --proxy-group=none --mark=0x746f --loopback=leave --fail=closed
missing    rule dns of chain outbound (install again)

chain      rule                  packets          bytes
outbound   taken                       7            420
left over: ip -6 rule lookup 29809 (towpath intercept remove takes it out)
warning: nobody listens at port 15001
"
    );
    let json = json(&status, &warnings);
    assert_eq!(json["warnings"][0], "nobody listens at port 15001");
    assert_eq!(json["installed"]["counters"][0]["packets"], 7);
    assert_eq!(json["installed"]["options"][1], "--no-inbound");
    assert_eq!(json["remains"][0], "ip -6 rule lookup 29809");
}
