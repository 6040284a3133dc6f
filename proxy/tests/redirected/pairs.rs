//! Programs of others, a client and its server, each with a sidecar: nothing in them is changed.

use std::{
    net::SocketAddr,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use crate::{
    inbound::{behind, inbound},
    machines::*,
    outbound::outbound,
    tunnels::{through_tunnel, tunnelled},
};

/// A server on a machine, killed when it is dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // Not the one before its children.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The sidecars of client and server, and redirection on both machines.
pub(crate) fn both<'m>(
    client: &'m Machine,
    server: &'m Machine,
    documents: &str,
) -> (Sidecar<'m>, Sidecar<'m>) {
    let sidecars = (
        Sidecar::start(client, &outbound(documents)),
        Sidecar::start(server, &inbound("", documents)),
    );
    client.redirect_outbound();
    server.redirect_inbound();
    sidecars
}

/// Debian's folder of PostgreSQL's own programs.
fn postgresql(program: &str) -> String {
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("apt-get install postgresql");
    let found = versions.map(|version| version.unwrap().path().join("bin").join(program));
    found.into_iter().find(|path| path.exists()).unwrap().to_str().unwrap().to_owned()
}

/// The user and group `postgres`, since the server refuses to be root.
fn postgres_user() -> (u32, u32) {
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = users.lines().find_map(|line| line.strip_prefix("postgres:x:")).unwrap();
    let mut numbers = line.split(':').map(|field| field.parse().unwrap_or(0));
    (numbers.next().unwrap(), numbers.next().unwrap())
}

fn start_postgresql(machine: &Machine, folder: &Path) -> Server {
    let (user, group) = postgres_user();
    chown(folder, Some(user), Some(group)).unwrap();
    let (user, group) = (user.to_string(), group.to_string());
    let as_user = ["--reuid", &user, "--regid", &group, "--clear-groups"];
    let data: PathBuf = folder.join("data");
    let data = data.to_str().unwrap();
    let initdb = postgresql("initdb");
    let arguments = [initdb.as_str(), "-D", data, "--auth=trust", "--no-sync", "-U", "postgres"];
    machine.output("setpriv", &[&as_user[..], &arguments].concat());
    let hosts = "host all all 0.0.0.0/0 trust\nhost all all ::/0 trust\n";
    std::fs::write(folder.join("data/pg_hba.conf"), hosts).unwrap();
    let socket = format!("unix_socket_directories={}", folder.display());
    let server = machine
        .command("setpriv")
        .args(as_user)
        .args([&postgresql("postgres"), "-D", data, "-c", "listen_addresses=*", "-c", &socket])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let server = Server(server);
    eventually("PostgreSQL", || {
        let address = machine.v4.to_string();
        let asked = machine.command("pg_isready").args(["-q", "-h", &address]).status().unwrap();
        asked.success().then_some(())
    });
    server
}

#[test]
fn postgresql_answers_the_same_through_two_sidecars() {
    let (client, server) = Machine::pair();
    let folder = tempfile::tempdir().unwrap();
    let _postgresql = start_postgresql(&server, folder.path());
    let (v4, v6) = (server.v4.to_string(), server.v6.to_string());
    let pgbench = postgresql("pgbench");
    let at = |host| ["-h", host, "-U", "postgres"];
    client.output(&pgbench, &[&at(v4.as_str())[..], &["-i", "-q", "-s", "1"]].concat());
    let queries = "select count(*), sum(aid), md5(string_agg(filler, aid::text order by aid)) from \
                   pgbench_accounts; select repeat('x', 1000000); select inet_server_addr() is null";
    let ask = |host| client.output("psql", &[&at(host)[..], &["-At", "-c", queries]].concat());
    let directly = ask(&v4);
    assert_eq!(directly, ask(&v6));

    let documents = behind("orders", "TCP", (server.v4, 5432).into());
    let (out, inward) = both(&client, &server, &documents);
    assert_eq!(ask(&v4), directly);
    // Of the other address nothing is known, and it is the same database.
    assert_eq!(ask(&v6), directly);
    for more in [&["-S"][..], &[]] {
        let load = ["-n", "-c", "4", "-j", "2", "-t", "100"];
        let said = client.output(&pgbench, &[&at(v4.as_str())[..], &load, more].concat());
        assert!(said.contains("number of transactions actually processed: 400/400"), "{said}");
    }
    let picks =
        |of: &Sidecar<'_>, service| of.metric("towpath_picks_total", &[("service", service)]);
    assert!(picks(&out, "orders") >= 9.0 && picks(&inward, "inbound/orders/only") >= 9.0);
    assert_eq!((picks(&out, "passthrough"), picks(&inward, "passthrough")), (1.0, 1.0));
    let line = out.logged(|line| line["service"] == "orders");
    assert_eq!(line["destination"], format!("{v4}:5432"), "{line}");

    drop((out, inward));
    let documents = tunnelled("orders", (server.v4, 5432).into());
    let out = Sidecar::start(&client, &outbound(&documents));
    let _inward = Sidecar::start(&server, &inbound("", &documents));
    assert_eq!(ask(&v4), directly);
    let load = ["-n", "-S", "-c", "4", "-j", "2", "-t", "100"];
    let said = client.output(&pgbench, &[&at(v4.as_str())[..], &load].concat());
    assert!(said.contains("number of transactions actually processed: 400/400"), "{said}");
    assert!(through_tunnel(&out) >= 5.0);
}

#[test]
fn redis_answers_the_same_through_two_sidecars() {
    let (client, server) = Machine::pair();
    let folder = tempfile::tempdir().unwrap();
    let options = ["--protected-mode", "no", "--save", "", "--bind", "0.0.0.0", "::", "--dir"];
    let redis = server
        .command("redis-server")
        .args(options)
        .arg(folder.path())
        .stdout(Stdio::null())
        .spawn()
        .expect("apt-get install redis-server");
    let _redis = Server(redis);
    let hosts = [server.v4.to_string(), server.v6.to_string()];
    let ask = |host: &str, command: &[&str]| {
        let mut asked = client.command("redis-cli");
        let said = asked.args(["-h", host]).args(command).output().unwrap();
        said.status.success().then(|| String::from_utf8(said.stdout).unwrap())
    };
    eventually("Redis", || ask(&hosts[0], &["ping"]).filter(|said| said == "PONG\n"));
    let value = "v".repeat(100_000);
    assert_eq!(ask(&hosts[0], &["set", "k", &value]).unwrap(), "OK\n");

    let (out, inward) =
        both(&client, &server, &behind("cache", "FOLLOW", (server.v4, 6379).into()));
    for (n, host) in (1..).zip(&hosts) {
        assert_eq!(ask(host, &["get", "k"]).unwrap(), format!("{value}\n"));
        assert_eq!(ask(host, &["incr", "n"]).unwrap(), format!("{n}\n"));
    }
    for (of, service) in [(&out, "cache"), (&inward, "inbound/cache/only")] {
        let passed = of.metric("towpath_picks_total", &[("service", service)]);
        assert_eq!(passed, 2.0, "{service}");
    }
}

#[test]
fn http1_passes_two_sidecars_with_curl_and_python() {
    let (client, server) = Machine::pair();
    let folder = tempfile::tempdir().unwrap();
    let body: Vec<u8> = (0..2_000_000_u32).map(|i| (i % 251) as u8).collect();
    std::fs::write(folder.path().join("table"), &body).unwrap();
    let web = server
        .command("python3")
        .args(["-m", "http.server", "8001", "--bind", "::", "--directory"])
        .arg(folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _web = Server(web);
    let fetch = |url: &str| {
        let fetched = client.command("curl").args(["-s", "-f", "--noproxy", "*", url]).output();
        Some(fetched.unwrap()).filter(|done| done.status.success()).map(|done| done.stdout)
    };
    let urls =
        [format!("http://{}:8001/table", server.v4), format!("http://[{}]:8001/table", server.v6)];
    eventually("the web server", || fetch(&urls[0]));
    let (out, inward) = both(&client, &server, &behind("tables", "HTTP", (server.v6, 8001).into()));
    for url in &urls {
        assert!(fetch(url).unwrap() == body, "{url}");
    }
    for (of, service) in [(&out, "tables"), (&inward, "inbound/tables/only")] {
        assert_eq!(of.metric("towpath_requests_total", &[("service", service)]), 1.0, "{service}");
        let passed = of.metric("towpath_picks_total", &[("service", "passthrough")]);
        assert_eq!(passed, 1.0, "over IPv4, of which nothing is known");
    }
}

#[test]
fn grpc_passes_two_sidecars_with_its_own_library() {
    const TOOLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools");
    const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/redirected/tables_by_grpc.py");
    let python = format!("{TOOLS}/grpc/bin/python");
    assert!(Path::new(&python).exists(), "grpcio is not installed; run: ./test tools");
    let (client, server) = Machine::pair();
    let address = SocketAddr::from((server.v4, 50051));
    let at = address.to_string();
    let serves = server.command(&python).args([SCRIPT, "serve", &at]).spawn().unwrap();
    let _serves = Server(serves);
    let call = || client.output(&python, &[SCRIPT, "call", &at]);
    let directly = call();
    assert_eq!(directly.lines().count(), 4, "{directly}");
    let (out, inward) = both(&client, &server, &behind("etl", "GRPC", address));
    assert_eq!(call(), directly);
    for (of, service) in [(&out, "etl"), (&inward, "inbound/etl/only")] {
        assert_eq!(of.metric("towpath_requests_total", &[("service", service)]), 4.0, "{service}");
    }
}
