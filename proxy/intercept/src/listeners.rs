//! Who listens in this network namespace, and what that bodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use crate::{Connection, Direction, Fail, Spec, Verdict, explain};

/// A port that somebody listens at, and the user who does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Listener {
    port: u16,
    user: u32,
}

/// What a person would regret to have installed, as far as those who listen now let it be seen.
#[must_use]
pub fn warnings(spec: &Spec) -> Vec<String> {
    foresee(spec, &listening())
}

/// What is wrong with who listens, or does not, at the ports that rules lead to.
#[must_use]
pub fn proxy_warnings(spec: &Spec) -> Vec<String> {
    of_proxy(spec, &listening())
}

fn listening() -> Vec<Listener> {
    // Of the thread: it may be in another namespace than the process.
    let tables = ["tcp", "tcp6"].map(|name| format!("/proc/thread-self/net/{name}"));
    let tables = tables.iter().filter_map(|path| fs::read_to_string(path).ok());
    tables.flat_map(|table| listeners(&table)).collect()
}

fn foresee(spec: &Spec, listeners: &[Listener]) -> Vec<String> {
    let mut warnings = of_proxy(spec, listeners);
    let ssh = std::net::SocketAddr::from(([192, 0, 2, 1], SSH));
    let to_ssh = explain(spec, &Connection::new(Direction::Inbound, ssh));
    if to_ssh.verdict != Verdict::Left && listeners.iter().any(|listener| listener.port == SSH) {
        warnings.push(format!(
            "new SSH connections to this machine go to the proxy, and are refused while it is down: \
             give --exclude-inbound-ports {SSH}"
        ));
    }
    warnings
}

fn of_proxy(spec: &Spec, listeners: &[Listener]) -> Vec<String> {
    let mut warnings = Vec::new();
    let ports = [spec.outbound, spec.inbound, spec.dns];
    let looping = |listener: &&Listener| {
        spec.outbound.is_some()
            && ports.contains(&Some(listener.port))
            && !is_left(spec, listener.user)
    };
    let mut by_user = BTreeMap::<u32, BTreeSet<u16>>::new();
    for Listener { port, user } in listeners.iter().filter(looping) {
        by_user.entry(*user).or_default().insert(*port);
    }
    let known = spec
        .proxy_user
        .map_or_else(|| " as another user".to_owned(), |user| format!(" as user {user}"));
    for (user, ports) in by_user {
        warnings.push(format!(
            "the program at {} runs as user {user}, whose connections are sent to it again, \
             unless it may mark them {:#x} (CAP_NET_ADMIN): give --proxy-user {user}, or run it{known}",
            named(&ports),
            spec.mark,
        ));
    }
    // Who answers DNS may do so over UDP alone.
    let deserted: BTreeSet<u16> = [spec.outbound, spec.inbound]
        .into_iter()
        .flatten()
        .filter(|port| listeners.iter().all(|listener| listener.port != *port))
        .collect();
    if !deserted.is_empty() {
        let fate = match spec.fail {
            Fail::Closed => "refused",
            Fail::Open => "let through",
        };
        let user = spec.proxy_user.map(|user| format!(" as user {user}")).unwrap_or_default();
        warnings.push(format!(
            "nobody listens at {}: what is sent there is {fate} until a proxy does; start it{user}, with \
             policies that have it listen there",
            named(&deserted)
        ));
    }
    warnings
}

fn named(ports: &BTreeSet<u16>) -> String {
    let text: Vec<String> = ports.iter().map(u16::to_string).collect();
    format!("port{} {}", if text.len() > 1 { "s" } else { "" }, text.join(" and "))
}

const SSH: u16 = 22;

fn is_left(spec: &Spec, user: u32) -> bool {
    spec.proxy_user == Some(user)
        || spec.exclude_users.contains(&user)
        || spec.proxy_group.is_some()
}

/// Reads a table of the kernel's: a number, local and remote address, state 0A for those who listen,
/// and as the eighth column the user.
fn listeners(table: &str) -> Vec<Listener> {
    let read = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let port = columns.get(1)?.rsplit_once(':')?.1;
        let listener = Listener {
            port: u16::from_str_radix(port, 16).ok()?,
            user: columns.get(7)?.parse().ok()?,
        };
        (columns.get(3) == Some(&"0A")).then_some(listener)
    };
    table.lines().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::{Listener, foresee, listeners, of_proxy};
    use crate::Spec;

    const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:3A99 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1802        0 20735 1
   1: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 20736 1
   2: 0100007F:3A9E 0100007F:9C40 01 00000000:00000000 00:00000000 00000000    33        0 20737 1
";

    #[test]
    fn only_those_who_listen_are_seen() {
        let expected = [Listener { port: 15001, user: 1802 }, Listener { port: 22, user: 0 }];
        assert_eq!(listeners(TABLE), expected);
    }

    #[test]
    fn a_loop_and_a_lock_out_are_foreseen() {
        let mut here = listeners(TABLE);
        here.push(Listener { port: 15006, user: 1802 });
        let told = |spec: Spec| foresee(&spec, &here).join("\n");
        assert!(told(Spec::default()).starts_with("new SSH connections"));
        let careful = Spec { exclude_inbound_ports: vec![22], ..Spec::default() };
        assert_eq!(told(careful.clone()), "");
        let other = Spec { proxy_user: Some(7), ..careful };
        let both = "the program at ports 15001 and 15006 runs as user 1802";
        assert!(told(other.clone()).starts_with(both), "{}", told(other));
        let excluded = Spec { exclude_users: vec![1802], ..other.clone() };
        assert_eq!(told(excluded), "");
        assert_eq!(told(Spec { outbound: None, ..other }), "");
        // Who answers DNS asks others itself.
        let resolver = Spec {
            outbound: Some(15006),
            inbound: None,
            dns: Some(15001),
            proxy_user: Some(7),
            ..Spec::default()
        };
        assert!(told(resolver.clone()).starts_with(both), "{}", told(resolver));
        assert_eq!(told(Spec { exclude_users: vec![1802], ..resolver }), "");
    }

    #[test]
    fn each_user_at_the_ports_is_told_of() {
        let here = [
            Listener { port: 15001, user: 1900 },
            Listener { port: 15001, user: 1900 },
            Listener { port: 15006, user: 1901 },
        ];
        let told = of_proxy(&Spec::default(), &here);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].starts_with("the program at port 15001 runs as user 1900"), "{told:?}");
        assert!(told[1].starts_with("the program at port 15006 runs as user 1901"), "{told:?}");
    }

    #[test]
    fn ports_at_which_nobody_listens_are_told_of() {
        let told = |spec: &Spec, listeners: &[Listener]| of_proxy(spec, listeners).join("\n");
        assert_eq!(
            told(&Spec::default(), &[]),
            "nobody listens at ports 15001 and 15006: what is sent there is refused until a proxy does; \
             start it as user 1802, with policies that have it listen there"
        );
        let outbound = [Listener { port: 15001, user: 1802 }];
        let said = told(&Spec::default(), &outbound);
        assert!(said.starts_with("nobody listens at port 15006: "), "{said}");
        assert_eq!(told(&Spec { inbound: None, ..Spec::default() }, &outbound), "");
        let open =
            Spec { outbound: None, tproxy: true, fail: crate::Fail::Open, ..Spec::default() };
        assert!(told(&open, &outbound).contains("let through"));
    }
}
