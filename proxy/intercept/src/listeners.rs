//! Who listens in this network namespace, and what that bodes.

use std::fs;

use crate::{Connection, Direction, Spec, Verdict, explain};

/// A port that somebody listens at, and the user who does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Listener {
    port: u16,
    user: u32,
}

/// What a person would regret to have installed, as far as those who listen now let it be seen.
#[must_use]
pub fn warnings(spec: &Spec) -> Vec<String> {
    // Of the thread: it may be in another namespace than the process.
    let tables = ["tcp", "tcp6"].map(|name| format!("/proc/thread-self/net/{name}"));
    let tables = tables.iter().filter_map(|path| fs::read_to_string(path).ok());
    foresee(spec, &tables.flat_map(|table| listeners(&table)).collect::<Vec<_>>())
}

fn foresee(spec: &Spec, listeners: &[Listener]) -> Vec<String> {
    let mut warnings = Vec::new();
    let proxies: Vec<&Listener> = listeners
        .iter()
        .filter(|listener| [spec.outbound, spec.inbound, spec.dns].contains(&Some(listener.port)))
        .collect();
    let loops = proxies.iter().find(|proxy| spec.outbound.is_some() && !is_left(spec, proxy.user));
    if let Some(Listener { port, user }) = loops {
        warnings.push(format!(
            "the program at port {port} runs as user {user}, whose connections are sent to it again, \
             unless it marks them {:#x}: give --proxy-user {user}, or run it as another user",
            spec.mark
        ));
    }
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
    use super::{Listener, foresee, listeners};
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
        let here = listeners(TABLE);
        let told = |spec: Spec| foresee(&spec, &here).join("\n");
        assert!(told(Spec::default()).starts_with("new SSH connections"));
        let careful = Spec { exclude_inbound_ports: vec![22], ..Spec::default() };
        assert_eq!(told(careful.clone()), "");
        let other = Spec { proxy_user: Some(7), ..careful };
        assert!(told(other.clone()).contains("runs as user 1802"), "{}", told(other));
        let excluded = Spec { exclude_users: vec![1802], ..other.clone() };
        assert_eq!(told(excluded), "");
        assert_eq!(told(Spec { outbound: None, ..other }), "");
        // Who answers DNS asks others itself.
        let resolver = Spec {
            outbound: Some(7),
            dns: Some(15001),
            proxy_user: Some(7),
            exclude_inbound_ports: vec![22],
            ..Spec::default()
        };
        assert!(told(resolver.clone()).contains("port 15001 runs as user 1802"));
        assert_eq!(told(Spec { exclude_users: vec![1802], ..resolver }), "");
    }
}
