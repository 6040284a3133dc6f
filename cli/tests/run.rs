//! A command under `towpath run` behaves as it does by itself, and what it transfers is told.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::{
        Once,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// `towpath run ARGUMENTS -- sh -c SCRIPT` by proxy variables, with those of nobody else.
fn run(arguments: &[&str], script: &str) -> Command {
    let mut command = program(arguments);
    command.args(["sh", "-c", script]);
    command
}

/// The same in a network namespace.
fn inside(arguments: &[&str], script: &str) -> Command {
    let mut command = program_by("namespace", arguments);
    command.args(["sh", "-c", script]);
    command
}

fn program(arguments: &[&str]) -> Command {
    program_by("variables", arguments)
}

fn program_by(network: &str, arguments: &[&str]) -> Command {
    bound();
    // Whatever those ignore who run the tests.
    let mut command = Command::new("env");
    command.args(["--default-signal", env!("CARGO_BIN_EXE_towpath")]);
    for name in ["http_proxy", "https_proxy", "all_proxy", "grpc_proxy", "no_proxy"] {
        command.env_remove(name).env_remove(name.to_uppercase());
    }
    command.args(["run", "--network", network]).args(arguments).arg("--");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Ends the tests where one waits for ever.
fn bound() {
    static BEGUN: Once = Once::new();
    BEGUN.call_once(|| {
        thread::spawn(|| {
            thread::sleep(Duration::from_secs(240));
            eprintln!("a test of towpath run waits for ever");
            std::process::abort();
        });
    });
}

/// What was told on standard output.
fn told(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{error}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// A request as an origin was sent it.
struct Asked {
    head: String,
    body: Vec<u8>,
}

/// Answers every request of HTTP/1.1 with `answer`, and tells of it. Not on 127.0.0.1, which goes
/// around proxies.
fn origin(answer: &'static str) -> (SocketAddr, Receiver<Asked>) {
    let listener = TcpListener::bind(("127.0.0.2", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, asked) = channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let tell = tell.clone();
            thread::spawn(move || answer_all(stream.unwrap(), answer, &tell));
        }
    });
    (address, asked)
}

fn answer_all(stream: TcpStream, answer: &str, tell: &Sender<Asked>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        let lower = head.to_ascii_lowercase();
        let length = lower.lines().find_map(|line| line.strip_prefix("content-length:"));
        let length = length.map_or(0, |length| length.trim().parse().unwrap());
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let length = answer.len();
        let response = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{answer}");
        if stream.write_all(response.as_bytes()).is_err() {
            return;
        }
        // The test may have ended.
        let _ = tell.send(Asked { head, body });
    }
}

fn summary(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn the_status_is_the_commands() {
    for (script, expected) in [
        ("exit 0", 0),
        ("exit 3", 3),
        ("exit 255", 255),
        ("kill -TERM $$", 128 + 15),
        ("kill -KILL $$", 128 + 9),
        ("kill -SEGV $$", 128 + 11),
    ] {
        for mut command in
            [run(&["--summary", "off"], script), inside(&["--summary", "off"], script)]
        {
            assert_eq!(command.status().unwrap().code(), Some(expected), "{command:?}");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain");
    fs::write(&plain, "no program").unwrap();
    for network in ["variables", "namespace"] {
        for (command, expected) in [(plain.to_str().unwrap(), 126), ("no-such-command-here", 127)] {
            let mut command_line = program_by(network, &["--summary", "off"]);
            let output = command_line.arg(command).output().unwrap();
            assert_eq!(output.status.code(), Some(expected), "{command} by {network}");
            assert!(String::from_utf8_lossy(&output.stderr).contains(command));
        }
    }
}

#[test]
fn what_goes_in_and_out_is_byte_for_byte_the_same() {
    let input: Vec<u8> =
        (0..1 << 20).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let script = "cat; echo to the other >&2; ulimit -n; exit 3";
    let mut outputs = Vec::new();
    let mut plain = Command::new("sh");
    plain.args(["-c", script]);
    let arguments = ["--summary", "off"];
    for mut command in [plain, run(&arguments, script), inside(&arguments, script)] {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut pipe = child.stdin.take().unwrap();
        let given = input.clone();
        let giving = thread::spawn(move || pipe.write_all(&given).unwrap());
        outputs.push(child.wait_with_output().unwrap());
        giving.join().unwrap();
    }
    for output in &outputs[1..] {
        assert!(outputs[0] == *output, "{:?}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(outputs[0].stdout.starts_with(&input));
}

#[test]
fn requests_pass_to_hosts_that_no_policy_knows_and_are_counted() {
    let (origin, asked) = origin("hello");
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let script = format!(
        "curl -sS http://{origin}/a?b=c && curl -sS -T /etc/passwd http://{origin}/up && \
         curl -sS -p http://{origin}/tunnel; exit 3"
    );
    let output = run(&["--summary", report.to_str().unwrap()], &script).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hellohellohello");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");

    let first = asked.recv().unwrap();
    assert!(first.head.starts_with("GET /a?b=c HTTP/1.1\r\n"), "{}", first.head);
    assert!(first.head.to_ascii_lowercase().contains(&format!("\r\nhost: {origin}\r\n")));
    for added in ["via:", "forwarded", "proxy-connection", "proxy-authorization"] {
        assert!(!first.head.to_ascii_lowercase().contains(added), "{}", first.head);
    }
    drop(first.body);

    let report = summary(&report);
    assert_eq!(report["status"], 3);
    let total = &report["total"];
    assert_eq!((&total["requests"], &total["failed"]), (&3.into(), &0.into()), "{report}");
    let passwd = fs::metadata("/etc/passwd").unwrap().len();
    // What is in a tunnel is counted with its heads.
    assert!(total["bytes_out"].as_u64().unwrap() > passwd, "{report}");
    assert!(total["bytes_in"].as_u64().unwrap() > 15, "{report}");
    let destination = &report["destinations"][0];
    assert_eq!(destination["destination"], origin.to_string());
    assert_eq!(destination["service"], "passthrough");
}

const POLICIES: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  gatewayClassName: towpath
  listeners: [{name: http, port: 1, protocol: HTTP}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: ingest}
spec:
  parentRefs: [{name: edge}]
  hostnames: [ingest.test]
  rules:
  - matches: [{path: {type: PathPrefix, value: /in}}]
    backendRefs: [{name: etl}]
---
apiVersion: towpath.dev/v1alpha1
kind: Service
metadata: {name: etl}
spec:
  protocol: HTTP
  endpoints: [{name: first, address: ADDRESS}]
";

#[test]
fn what_the_mesh_knows_takes_its_routes() {
    let (origin, asked) = origin("hello");
    let folder = tempfile::tempdir().unwrap();
    let policies = folder.path().join("policies");
    fs::create_dir(&policies).unwrap();
    fs::write(policies.join("mesh.yaml"), POLICIES.replace("ADDRESS", &origin.to_string()))
        .unwrap();
    let report = folder.path().join("report.json");
    // By a route's host, a service's name, an endpoint's address, and in a tunnel. Names resolve nowhere.
    let script = format!(
        "for url in http://ingest.test/in/1 http://etl/2 http://etl.default.svc/3 http://{origin}/4; do \
           curl -sS $url || exit; curl -sS -p $url || exit; \
         done; \
         curl -sS -o /dev/null -w '%{{http_code}}' http://ingest.test/other"
    );
    let arguments =
        ["--policies", policies.to_str().unwrap(), "--summary", report.to_str().unwrap()];
    let output = run(&arguments, &script).output().unwrap();
    assert_eq!(told(&output), format!("{}404", "hello".repeat(8)));
    for path in ["/in/1", "/in/1", "/2", "/2", "/3", "/3", "/4", "/4"] {
        let asked = asked.recv().unwrap();
        assert!(asked.head.starts_with(&format!("GET {path} ")), "{}", asked.head);
    }
    let report = summary(&report);
    let destinations = report["destinations"].as_array().unwrap();
    let etl = destinations.iter().find(|line| line["service"] == "etl").unwrap();
    assert_eq!((&etl["destination"], &etl["requests"]), (&"first".into(), &8.into()), "{report}");
}

#[test]
fn in_a_namespace_every_connection_comes_to_the_sidecar() {
    let (origin, asked) = origin("hello");
    let folder = tempfile::tempdir().unwrap();
    let policies = folder.path().join("policies");
    fs::create_dir(&policies).unwrap();
    fs::write(policies.join("mesh.yaml"), POLICIES.replace("ADDRESS", &origin.to_string()))
        .unwrap();
    let report = folder.path().join("report.json");
    // By a route's host at an address that leads nowhere, and by the endpoint's address.
    let script = format!(
        "env | grep -qi _proxy && exit 9; curl -sS --resolve ingest.test:80:192.0.2.77 \
         http://ingest.test/in/1 && curl -sS http://{origin}/2"
    );
    let arguments =
        ["--policies", policies.to_str().unwrap(), "--summary", report.to_str().unwrap()];
    let output = inside(&arguments, &script).output().unwrap();
    assert_eq!(told(&output), "hellohello");
    for path in ["/in/1", "/2"] {
        let asked = asked.recv().unwrap();
        assert!(asked.head.starts_with(&format!("GET {path} ")), "{}", asked.head);
    }
    let report = summary(&report);
    assert_eq!(report["network"], "namespace");
    let etl = &report["destinations"][0];
    assert_eq!((&etl["service"], &etl["requests"]), (&"etl".into(), &2.into()), "{report}");
}

#[test]
fn in_a_namespace_a_server_that_speaks_first_is_heard() {
    let server = TcpListener::bind(("127.0.0.2", 0)).unwrap();
    let address = server.local_addr().unwrap();
    thread::spawn(move || {
        for stream in server.incoming() {
            stream.unwrap().write_all(b"220 ready\r\n").unwrap();
        }
    });
    let folder = tempfile::tempdir().unwrap();
    // Where there is something to be routed, it is looked at how clients begin.
    let mesh = POLICIES.replace("ADDRESS", "127.0.0.1:1");
    fs::write(folder.path().join("mesh.yaml"), mesh).unwrap();
    let policies = ["--policies", folder.path().to_str().unwrap(), "--summary", "off"];
    let script = format!("curl -sS --max-time 20 telnet://{address} < /dev/null");
    for arguments in [&policies[2..], &policies] {
        assert_eq!(told(&inside(arguments, &script).output().unwrap()), "220 ready\r\n");
    }
}

#[test]
fn in_a_namespace_the_machines_loopback_is_there_and_so_is_the_commands_own() {
    let (origin, _asked) = origin("hello");
    let free = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    let port = free.port();
    // Refused before something inside listens; then it is reached by all addresses of the machine.
    let script = format!(
        "curl -sS http://{origin}/ || exit; \
         curl -s http://{free}/; test $? = 7 || exit 8; \
         python3 -c 'import http.server as h, socketserver as s; \
           s.TCPServer.allow_reuse_address = True; server = s.TCPServer((\"0.0.0.0\", {port}), h.SimpleHTTPRequestHandler); \
           print(\"up\", flush=True); server.handle_request(); server.handle_request()' 2>/dev/null | ( \
         read up; curl -sS -o /dev/null -w '%{{http_code}}' http://{free}/; \
         own=$(ip -o -4 address show dev lo scope global | awk '{{sub(\"/.*\", \"\", $4); print $4; exit}}'); \
         curl -sS -o /dev/null -w '%{{http_code}}' http://$own:{port}/ )"
    );
    let output = inside(&["--summary", "off"], &script).output().unwrap();
    assert_eq!(told(&output), "hello200200");
}

#[test]
fn a_namespace_needs_no_privilege() {
    let (origin, _asked) = origin("hello");
    let folder = tempfile::tempdir().unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(folder.path(), open).unwrap();
    let program = folder.path().join("towpath");
    fs::copy(env!("CARGO_BIN_EXE_towpath"), &program).unwrap();
    let script = format!("id -u; curl -sS http://{origin}/; grep CapEff /proc/self/status");
    let output = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(&program)
        .args(["run", "--network", "namespace", "--summary", "off", "--", "sh", "-c", &script])
        .current_dir("/")
        .output()
        .unwrap();
    assert_eq!(told(&output), "65534\nhelloCapEff:\t0000000000000000\n");
}

/// A PostgreSQL of its own, ended on drop.
struct Postgres {
    server: Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl Postgres {
    fn start() -> Self {
        let versions = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL: ./test tools");
        let programs = versions.map(|v| v.unwrap().path()).max().unwrap().join("bin");
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        fs::create_dir(&data).unwrap();
        for path in [folder.path(), &data] {
            std::os::unix::fs::chown(path, Some(65534), Some(65534)).unwrap();
        }
        // It does not run as root.
        let run = |program: &str| {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
            command.arg(programs.join(program)).arg("-D").arg(&data).current_dir("/");
            command.stdout(Stdio::null()).stderr(Stdio::null());
            command
        };
        let made = run("initdb").args(["-U", "job", "-A", "trust", "--no-sync"]).status().unwrap();
        assert!(made.success());
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let server = run("postgres")
            .args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1", "-k", ""])
            .args(["-c", "fsync=off"])
            .spawn()
            .unwrap();
        let postgres = Self { server, port, folder };
        let begun = Instant::now();
        while !postgres.psql("create table part as select n, repeat('x', 100) as text from generate_series(1, 20000) n")
            .status().unwrap().success()
        {
            assert!(begun.elapsed() < Duration::from_secs(60), "PostgreSQL does not start");
        }
        postgres
    }

    fn url(&self) -> String {
        format!("postgresql://job@127.0.0.1:{}/postgres", self.port)
    }

    fn psql(&self, command: &str) -> Command {
        let mut psql = Command::new("psql");
        psql.arg(self.url()).args(["-q", "-c", command]).stderr(Stdio::null());
        psql
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        signal(&self.server, Signal::INT);
        let _ = self.server.wait();
    }
}

#[test]
fn a_batch_job_does_the_same_with_a_sidecar_as_without() {
    let postgres = Postgres::start();
    let (origin, asked) = origin("taken");
    let file = postgres.folder.path().join("part.csv");
    let file = file.to_str().unwrap();
    let script = format!(
        "psql '{}' -c '\\copy part to {file} csv' && wc -c < {file} && \
         curl -sS -T {file} http://{origin}/part.csv; exit 3",
        postgres.url()
    );
    let report = postgres.folder.path().join("report.json");
    let mut alone = Command::new("sh");
    alone.args(["-c", &script]);
    let summarised = ["--summary", report.to_str().unwrap()];
    let mut outputs = Vec::new();
    for mut command in [alone, run(&["--summary", "off"], &script), inside(&summarised, &script)] {
        outputs.push(command.output().unwrap());
        let uploaded = asked.recv().unwrap().body;
        assert!(uploaded == fs::read(file).unwrap());
        fs::remove_file(file).unwrap();
    }
    assert_eq!(outputs[0].status.code(), Some(3), "{:?}", outputs[0]);
    assert!(outputs.iter().all(|output| *output == outputs[0]), "{outputs:?}");
    let report = summary(&report);
    let to = |address: String| {
        let all = report["destinations"].as_array().unwrap();
        all.iter().find(|line| line["destination"] == address).cloned().unwrap()
    };
    let size = 20_000 * 100;
    let table = to(format!("127.0.0.1:{}", postgres.port));
    assert!(table["bytes_in"].as_u64().unwrap() > size, "{report}");
    assert!(to(origin.to_string())["bytes_out"].as_u64().unwrap() > size, "{report}");
}

#[test]
fn signals_reach_the_command_and_only_the_command_decides() {
    let script = "trap 'echo got USR1' USR1; trap 'echo got INT' INT; trap '' TERM; echo ready; \
                  while ! read line; do :; done; exit 5";
    for by in [run, inside] {
        let mut child = by(&["--summary", "off"], script).stdin(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut next = || lines.next().unwrap().unwrap();
        assert_eq!(next(), "ready");
        signal(&child, Signal::TERM);
        signal(&child, Signal::USR1);
        assert_eq!(next(), "got USR1");
        signal(&child, Signal::INT);
        assert_eq!(next(), "got INT");
        assert!(child.try_wait().unwrap().is_none(), "it ignores SIGTERM");
        child.stdin.take().unwrap().write_all(b"line\n").unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(5));

        let mut child = by(&["--summary", "off"], "echo ready; exec sleep 1000").spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "ready");
        signal(&child, Signal::TERM);
        assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
    }
}

#[test]
fn what_nobody_can_read_changes_no_status() {
    for (script, expected) in [("exit 0", 0), ("exit 3", 3)] {
        for by in [run, inside] {
            let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
            let status = by(&[], script).stderr(full).status().unwrap();
            assert_eq!(status.code(), Some(expected), "{script}");
        }
    }
    let output = program(&[])
        .arg("no-such-command-here")
        .stderr(fs::OpenOptions::new().write(true).open("/dev/full").unwrap())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(127));
}

#[test]
fn the_sidecar_is_for_its_command_alone() {
    let (origin, asked) = origin("hello");
    let script = format!(
        "curl -sS http://{origin}/; proxy=http://127.0.0.1:${{http_proxy##*:}}; \
         for other in $proxy http://job@${{proxy#http://}} http://job:0@${{proxy#http://}}; do \
           curl -sS -o /dev/null -w ' %{{http_code}}' -x $other http://{origin}/; \
           curl -sS -o /dev/null -w ' %{{http_connect}}' -x $other -p http://{origin}/ 2>/dev/null; \
         done; true"
    );
    let output = run(&["--summary", "off"], &script).output().unwrap();
    assert_eq!(told(&output), "hello 407 407 407 407 407 407");
    assert_eq!(asked.try_iter().count(), 1);
}

/// Sockets on which a process listens for TCP.
fn listening(process: &Child) -> usize {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", process.id())).unwrap();
    let links = descriptors.filter_map(|d| fs::read_link(d.unwrap().path()).ok());
    let links: Vec<_> = links.map(|link| link.to_string_lossy().into_owned()).collect();
    let tables =
        ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| fs::read_to_string(table).unwrap());
    let inodes = tables.iter().flat_map(|table| table.lines()).filter_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        (words[3] == "0A").then(|| format!("socket:[{}]", words[9]))
    });
    inodes.filter(|inode| links.contains(inode)).count()
}

#[test]
fn no_port_is_opened_that_nobody_asked_for() {
    for (by, arguments, expected) in [
        (run as fn(&[&str], &str) -> Command, &["--summary", "off"][..], 1),
        (run, &["--summary", "off", "--admin", "127.0.0.1:0"], 2),
        (inside, &["--summary", "off"], 0),
    ] {
        let mut child =
            by(arguments, "echo ready; read line").stdin(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "ready");
        let listening = listening(&child);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(listening, expected, "{arguments:?}");
    }
}

#[test]
fn in_a_tunnel_to_what_routes_know_other_protocols_and_hosts_go_to_its_host() {
    let server = TcpListener::bind(("127.0.0.2", 0)).unwrap();
    let address = server.local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("mesh.yaml"), POLICIES.replace("ADDRESS", &address.to_string()))
        .unwrap();
    let policies = ["--policies", folder.path().to_str().unwrap(), "--summary", "off"];
    let script = "echo ${http_proxy##*:}; printf %s ${http_proxy#http://} | cut -d@ -f1 | \
                  tr -d '\n' | base64 -w0; echo; read line";
    let mut child = run(&policies, script).stdin(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || lines.next().unwrap().unwrap();
    let (port, credentials): (u16, _) = (next().parse().unwrap(), next());
    for said in [
        "SSH-2.0-test\r\n",
        "\0\0\0\x08\x04\u{52}\x16\x2f",
        "GET /x HTTP/1.1\r\nHost: other.invalid\r\n\r\n",
    ] {
        let mut tunnel = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let asked = format!(
            "CONNECT etl:80 HTTP/1.1\r\nHost: etl:80\r\nProxy-Authorization: Basic {credentials}\r\n\r\n"
        );
        tunnel.write_all(asked.as_bytes()).unwrap();
        let mut answer = [0; 39];
        tunnel.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 Connection established\r\n\r\n");
        tunnel.write_all(said.as_bytes()).unwrap();
        let (mut stream, _) = server.accept().unwrap();
        let first = said.lines().next().unwrap();
        let mut heard = vec![0; first.len()];
        stream.read_exact(&mut heard).unwrap();
        assert_eq!(String::from_utf8_lossy(&heard), first);
    }
    drop(child.stdin.take());
    child.wait().unwrap();
}

#[test]
fn a_command_is_waited_for_where_children_were_ignored() {
    let script = format!(
        "trap '' CHLD; exec {} run --summary off -- sh -c 'exit 4'",
        env!("CARGO_BIN_EXE_towpath")
    );
    let status = Command::new("sh").args(["-c", &script]).status().unwrap();
    assert_eq!(status.code(), Some(4));
}

/// As whoever enters a container: the leader of the session has no number inside.
#[test]
fn the_leader_of_the_session_may_be_outside_the_pid_namespace() {
    for network in ["variables", "namespace"] {
        let status = Command::new("unshare")
            .args(["--user", "--map-root-user", "--pid", "--fork"])
            .args([env!("CARGO_BIN_EXE_towpath"), "run", "--network", network, "--summary", "off"])
            .args(["--", "sh", "-c", "exit 5"])
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(5), "{network}");
    }
}

#[test]
fn what_was_ignored_stays_ignored() {
    let script = "kill -HUP $$; echo alive";
    for network in ["variables", "namespace"] {
        let output = Command::new("nohup")
            .args([env!("CARGO_BIN_EXE_towpath"), "run", "--network", network, "--summary", "off"])
            .args(["--", "sh", "-c", script])
            .output()
            .unwrap();
        assert_eq!(told(&output), "alive\n");
    }
    assert_eq!(run(&["--summary", "off"], script).status().unwrap().code(), Some(128 + 1));
}

#[test]
fn nobody_that_is_left_behind_holds_the_sidecar() {
    // An origin that never answers: what is left behind has a request under way.
    let silent = TcpListener::bind(("127.0.0.2", 0)).unwrap();
    let address = silent.local_addr().unwrap();
    let script = format!("curl -sS http://{address}/ >/dev/null 2>&1 & echo $!; read line");
    for by in [run, inside] {
        let mut child = by(&["--summary", "off"], &script).stdin(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let left: i32 = lines.next().unwrap().unwrap().parse().unwrap();
        let (request, _) = silent.accept().unwrap();
        child.stdin.take().unwrap().write_all(b"\n").unwrap();
        let ends = Instant::now();
        assert!(child.wait().unwrap().success());
        let took = ends.elapsed();
        assert!(took < Duration::from_secs(1), "{took:?}");
        // What was left behind lost its sidecar, and was not killed for that.
        drop(request);
        let left = Path::new("/proc").join(left.to_string());
        while left.exists()
            && !fs::read_to_string(left.join("stat")).unwrap_or_default().contains(") Z ")
        {
            thread::yield_now();
        }
    }
}

/// Also those that no gateway leads to.
#[test]
fn by_a_control_plane_the_services_of_the_mesh_have_their_names() {
    let (origin, _asked) = origin("etl");
    let folder = tempfile::tempdir().unwrap();
    let policies = folder.path().join("policies");
    fs::create_dir(&policies).unwrap();
    let service = format!(
        "apiVersion: towpath.dev/v1alpha1\nkind: Service\nmetadata: {{name: etl}}\nspec:\n  \
         protocol: HTTP\n  endpoints: [{{name: only, address: \"{origin}\"}}]\n"
    );
    fs::write(policies.join("mesh.yaml"), service).unwrap();
    let mut plane = Command::new(env!("CARGO_BIN_EXE_towpath"))
        .args(["control-plane", "--xds", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--policies"])
        .arg(&policies)
        .arg("--state-dir")
        .arg(folder.path().join("state"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(plane.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let xds = line.trim().split("xds=").nth(1).unwrap_or_else(|| panic!("{line}")).to_owned();
    let script = "curl -sS http://etl/ && curl -sS http://etl.default/";
    let arguments = ["--control-plane", &xds, "--node", "job", "--summary", "off"];
    let output = run(&arguments, script).output().unwrap();
    plane.kill().unwrap();
    plane.wait().unwrap();
    assert_eq!(told(&output), "etletl");
}

#[test]
fn a_command_starts_only_with_a_sidecar_unless_told() {
    let gone = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().to_string();
    let control_plane =
        ["--control-plane", &gone, "--node", "job", "--ready-timeout", "300ms", "--summary", "off"];
    let output = run(&control_plane, "echo ran").output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(output.stdout.is_empty());
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains(&gone) && error.contains("`job`"), "{error}");

    let without = [&control_plane[..], &["--or-without"]].concat();
    assert_eq!(told(&run(&without, "echo ran $http_proxy").output().unwrap()), "ran\n");

    let mut other = run(&["--summary", "off"], "echo $http_proxy");
    other.env("https_proxy", "http://proxy.test:3128");
    let output = other.output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&output.stderr).contains("https_proxy is set already"));
}

#[test]
fn a_host_that_cannot_be_had_is_told_apart_from_a_sidecar_that_fails() {
    let dead = TcpListener::bind(("127.0.0.2", 0)).unwrap().local_addr().unwrap();
    let ask = "curl -sS -o /dev/null -w '%{http_code} ' ";
    let script = format!(
        "{ask} http://no-such-host.invalid/; {ask} http://{dead}/; port=${{http_proxy##*:}}; \
         for itself in 127.0.0.1 0.0.0.0 [::ffff:127.0.0.1] [::]; do \
           {ask} -g --noproxy '' http://$itself:$port/; \
         done; \
         curl -sS -p http://{dead}/ 2>&1"
    );
    let output = run(&["--summary", "json"], &script).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.starts_with("502 503 502 502 502 502 "), "{text}");
    assert!(text.contains("502"), "{text}");
    let report: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(report["total"]["failed"], report["total"]["requests"], "{report}");
}
