//! Machines of their own: network namespaces with programs in them, and sidecars that the kernel redirects to.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    process::{Pid, Signal, kill_process},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use towpath_intercept::{PROXY_USER, Spec};

/// Longest wait for what does not come.
const PATIENCE: Duration = Duration::from_secs(30);

/// A network namespace, gone with everything in it when it is dropped.
pub(crate) struct Machine {
    name: String,
    /// Its addresses.
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
}

impl Machine {
    /// Two of them with a wire between.
    pub(crate) fn pair() -> (Self, Self) {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let of = std::process::id();
        let one = |last: u8| {
            let name = format!("towpath-{of}-{}", NEXT.fetch_add(1, Relaxed));
            ip(&["netns", "add", &name]);
            let v6 = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, last.into());
            Self { name, v4: [10, 77, 0, last].into(), v6 }
        };
        let (a, b) = (one(1), one(2));
        let ends = ["type", "veth", "peer", "name", "eth0", "netns", &b.name];
        ip(&[&["link", "add", "eth0", "netns", &a.name][..], &ends].concat());
        for machine in [&a, &b] {
            let (v4, v6) = (format!("{}/24", machine.v4), format!("{}/64", machine.v6));
            machine.ip(&["address", "add", &v4, "dev", "eth0"]);
            machine.ip(&["address", "add", &v6, "dev", "eth0", "nodad"]);
            machine.ip(&["link", "set", "eth0", "up"]);
            machine.ip(&["link", "set", "lo", "up"]);
        }
        // Addresses that nobody has are on the way to the other.
        a.ip(&["route", "add", "default", "via", &b.v4.to_string()]);
        b.ip(&["route", "add", "default", "via", &a.v4.to_string()]);
        (a, b)
    }

    fn ip(&self, arguments: &[&str]) {
        ip(&[&["-n", &self.name][..], arguments].concat());
    }

    /// A program on it.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]).env("PGDATABASE", "postgres");
        command
    }

    /// What a program on it prints.
    pub(crate) fn output(&self, program: &str, arguments: &[&str]) -> String {
        let done = self.command(program).args(arguments).output().unwrap();
        let error = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{program} {arguments:?}: {error}");
        String::from_utf8(done.stdout).unwrap()
    }

    /// Has the kernel redirect.
    pub(crate) fn intercept(&self, spec: &Spec) {
        self.enter(|| towpath_intercept::install(spec).unwrap());
    }

    /// Redirects what is sent from here, but for what its sidecar sends.
    pub(crate) fn redirect_outbound(&self) {
        self.intercept(&Spec { inbound: None, ..Spec::default() });
    }

    /// Redirects what comes in.
    pub(crate) fn redirect_inbound(&self) {
        self.intercept(&Spec { outbound: None, ..Spec::default() });
    }

    /// Does something on it, on a thread of its own.
    pub(crate) fn enter<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        let space = File::open(Path::new("/run/netns").join(&self.name)).unwrap();
        let inside = || {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(space.as_fd(), kind).unwrap();
            what()
        };
        thread::scope(|scope| scope.spawn(inside).join().unwrap())
    }

    /// Connects from here.
    pub(crate) fn connect(&self, to: impl Into<SocketAddr>) -> TcpStream {
        let to = to.into();
        self.enter(|| {
            let tcp = TcpStream::connect(to).unwrap_or_else(|error| panic!("{to}: {error}"));
            tcp.set_read_timeout(Some(PATIENCE)).unwrap();
            tcp
        })
    }

    /// Listens here, on both families, and serves each connection on a thread of its own.
    pub(crate) fn serve(&self, port: u16, serve: impl Fn(TcpStream) + Clone + Send + 'static) {
        let ips: [IpAddr; 2] = [self.v4.into(), self.v6.into()];
        for ip in ips {
            let socket = self.enter(|| TcpListener::bind((ip, port)).unwrap());
            // Ends with the test.
            let serve = serve.clone();
            thread::spawn(move || {
                for tcp in socket.incoming() {
                    let (tcp, serve) = (tcp.unwrap(), serve.clone());
                    thread::spawn(move || serve(tcp));
                }
            });
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}

fn ip(arguments: &[&str]) {
    let done = Command::new("ip").args(arguments).output().unwrap();
    assert!(
        done.status.success(),
        "ip {arguments:?}: {} (these tests need root and: apt-get install iproute2 nftables)",
        String::from_utf8_lossy(&done.stderr)
    );
}

/// A proxy on a machine; killed when it is dropped.
pub(crate) struct Sidecar<'m> {
    machine: &'m Machine,
    child: Child,
    folder: tempfile::TempDir,
}

impl<'m> Sidecar<'m> {
    /// Starts one as its own user.
    pub(crate) fn start(machine: &'m Machine, policies: &str) -> Self {
        Self::start_as(machine, PROXY_USER, policies)
    }

    /// Starts one as this user, without a privilege.
    pub(crate) fn start_as(machine: &'m Machine, user: u32, policies: &str) -> Self {
        let user = user.to_string();
        // To read the program, wherever it was built.
        let capability = "+dac_read_search";
        Self::start_with(
            machine,
            policies,
            &[
                "setpriv",
                "--reuid",
                &user,
                "--regid",
                &user,
                "--clear-groups",
                "--inh-caps",
                capability,
                "--ambient-caps",
                capability,
            ],
        )
    }

    /// Starts one by these words in front.
    pub(crate) fn start_with(machine: &'m Machine, policies: &str, by: &[&str]) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("mesh.yaml"), policies).unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o777)).unwrap();
        let program = [by, &[env!("CARGO_BIN_EXE_towpath-proxy")]].concat();
        let mut command = machine.command(program[0]);
        command.args(&program[1..]).args(["--node", "here", "--admin", ADMIN, "--policies"]);
        command.arg(folder.path()).arg("--access-log").arg(folder.path().join("access.log"));
        command.stderr(File::create(folder.path().join("log")).unwrap());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        assert!(ready.starts_with("ready"), "{ready:?}");
        Self { machine, child, folder }
    }

    /// The sum of all series of a metric with these labels.
    pub(crate) fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let text = self.ask_admin("/metrics");
        let series = text.lines().filter(|line| {
            let has =
                |(label, value): &(&str, &str)| line.contains(&format!("{label}=\"{value}\""));
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(has)
        });
        series.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// How many connections and requests it carries.
    pub(crate) fn under_way(&self) -> usize {
        let answer = self.ask_admin("/drain");
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        let drain: serde_json::Value = serde_json::from_str(body).unwrap();
        drain["transfers"].as_array().unwrap_or_else(|| panic!("{body}")).len()
    }

    fn ask_admin(&self, path: &str) -> String {
        let mut tcp = self.machine.connect(ADMIN.parse::<SocketAddr>().unwrap());
        tcp.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes())
            .unwrap();
        let mut text = String::new();
        tcp.read_to_string(&mut text).unwrap();
        text
    }

    /// The next line of the access log for which this holds.
    pub(crate) fn logged(&self, which: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        eventually("a line of the access log", || {
            let text = std::fs::read_to_string(self.folder.path().join("access.log")).ok()?;
            let whole = text.lines().filter_map(|line| serde_json::from_str(line).ok());
            whole.into_iter().find(|line| which(line))
        })
    }

    /// What it has told so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// Has it drain, and waits until it has ended.
    pub(crate) fn stop(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        self.child.wait().unwrap();
    }

    /// Kills it.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Sidecar<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const ADMIN: &str = "127.0.0.1:9901";

/// Waits for what comes.
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "{what} did not come");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Sends back what comes.
pub(crate) fn echo(mut tcp: TcpStream) {
    let mut from = tcp.try_clone().unwrap();
    // A client that resets is gone.
    let _ = std::io::copy(&mut from, &mut tcp);
}

/// Says this at once, and nothing more.
pub(crate) fn says(text: &'static str) -> impl Fn(TcpStream) + Clone + Send + 'static {
    move |mut tcp| {
        let _ = tcp.write_all(text.as_bytes());
        // Until the client has gone, so that it is not reset.
        let _ = tcp.read_to_end(&mut Vec::new());
    }
}

/// Says this when it has been spoken to.
pub(crate) fn answers(text: &'static str) -> impl Fn(TcpStream) + Clone + Send + 'static {
    move |mut tcp| {
        tcp.read_exact(&mut [0]).unwrap();
        says(text)(tcp);
    }
}

/// Answers each request of HTTP/1.1 with its own name and the head that came.
pub(crate) fn http(name: &'static str) -> impl Fn(TcpStream) + Clone + Send + 'static {
    move |mut tcp| {
        while let Some(head) = read_head(&mut tcp) {
            let body = format!("{name}\n{head}");
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            tcp.write_all(answer.as_bytes()).unwrap();
        }
    }
}

fn read_head(tcp: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if !matches!(tcp.read(&mut byte), Ok(1)) {
            return None;
        }
        head.push(byte[0]);
    }
    Some(String::from_utf8(head).unwrap())
}

/// The body of the answer to a GET for this host.
pub(crate) fn get(tcp: &mut TcpStream, host: &str) -> String {
    tcp.write_all(format!("GET /x HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).unwrap();
    let head = read_head(tcp).unwrap().to_ascii_lowercase();
    let length = head.split_once("content-length: ").unwrap().1.lines().next().unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    tcp.read_exact(&mut body).unwrap();
    String::from_utf8(body).unwrap()
}

/// All that is said until the first pause.
pub(crate) fn heard(tcp: &mut TcpStream) -> String {
    let mut some = [0; 256];
    let n = tcp.read(&mut some).unwrap();
    String::from_utf8(some[..n].to_vec()).unwrap()
}

/// Sends this and reads as much as is expected.
pub(crate) fn exchange(tcp: &mut TcpStream, bytes: &[u8], expected: &[u8]) {
    tcp.write_all(bytes).unwrap();
    let mut answer = vec![0; expected.len()];
    tcp.read_exact(&mut answer).unwrap();
    assert!(answer == expected, "{:?}", String::from_utf8_lossy(&answer));
}

/// Sends all of this, ends its side, and reads what comes back meanwhile, to the end.
pub(crate) fn there_and_back(mut tcp: TcpStream, sent: &[u8]) -> Vec<u8> {
    let mut writing = tcp.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            writing.write_all(sent).unwrap();
            writing.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        tcp.read_to_end(&mut received).unwrap();
        received
    })
}
