//! What is to be intercepted.

use std::{fmt, fmt::Display, str::FromStr};

use crate::{Error, Network, nft, rules};

/// The user the proxy runs as, unless told: as `towpath inject` has it.
pub const PROXY_USER: u32 = 1802;
/// The mark of packets that are left alone, unless told: of the proxy's own connections, for one.
pub const MARK: u32 = 0x746f;
/// Longest option in a record: a comment in the kernel holds 127 bytes.
const MAX_OPTION: usize = 110;

/// Which connections are sent to the proxy, and where it listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// The port that outbound connections are sent to; `None` leaves them alone.
    pub outbound: Option<u16>,
    /// The port that inbound connections are sent to; `None` leaves them alone.
    pub inbound: Option<u16>,
    /// Inbound connections reach the proxy unchanged, and the proxy may connect to the application
    /// from the client's address.
    pub tproxy: bool,
    /// The port that DNS requests are sent to, over UDP and TCP; `None` leaves them alone. They arrive
    /// at 127.0.0.1 and ::1, and answers over UDP find back only from there: bind to those, not
    /// to any address.
    pub dns: Option<u16>,
    /// What happens to outbound connections over loopback.
    pub loopback: Loopback,
    /// IPv6 is intercepted as IPv4 is; otherwise it is left alone.
    pub ipv6: bool,
    /// What happens while nobody listens at the proxy's ports.
    pub fail: Fail,
    /// The user of the proxy, whose connections are left alone.
    pub proxy_user: Option<u32>,
    /// The group of the proxy, whose connections are left alone.
    pub proxy_group: Option<u32>,
    /// Packets with this mark are left alone.
    pub mark: u32,
    /// Other users whose outbound connections are left alone.
    pub exclude_users: Vec<u32>,
    /// Other groups whose outbound connections are left alone.
    pub exclude_groups: Vec<u32>,
    /// Outbound connections to these ports are left alone.
    pub exclude_outbound_ports: Vec<u16>,
    /// Inbound connections to these ports are left alone.
    pub exclude_inbound_ports: Vec<u16>,
    /// Outbound connections to these networks are left alone.
    pub exclude_outbound_networks: Vec<Network>,
    /// Inbound connections from these networks are left alone.
    pub exclude_inbound_networks: Vec<Network>,
    /// If there are any: outbound connections to all other ports are left alone.
    pub only_outbound_ports: Vec<u16>,
    /// If there are any: inbound connections to all other ports are left alone.
    pub only_inbound_ports: Vec<u16>,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            outbound: Some(15001),
            inbound: Some(15006),
            tproxy: false,
            dns: None,
            loopback: Loopback::Leave,
            ipv6: true,
            fail: Fail::Closed,
            proxy_user: Some(PROXY_USER),
            proxy_group: None,
            mark: MARK,
            exclude_users: Vec::new(),
            exclude_groups: Vec::new(),
            exclude_outbound_ports: Vec::new(),
            exclude_inbound_ports: Vec::new(),
            exclude_outbound_networks: Vec::new(),
            exclude_inbound_networks: Vec::new(),
            only_outbound_ports: Vec::new(),
            only_inbound_ports: Vec::new(),
        }
    }
}

/// What happens to outbound connections over the loopback interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Loopback {
    /// They are left alone.
    #[default]
    Leave,
    /// Those to 127.0.0.0/8 and ::1 are left alone, those to other addresses are sent to the proxy.
    Own,
    /// They are sent to the proxy like any other.
    All,
}

/// What happens while nobody listens at the proxy's ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fail {
    /// Connections are refused.
    #[default]
    Closed,
    /// Connections go where they would without interception.
    Open,
}

impl Spec {
    /// The nftables text that installs it: one transaction, whatever was there before.
    #[must_use]
    pub fn ruleset(&self) -> String {
        nft::ruleset(self, &rules::chains(self))
    }

    /// Says what cannot be.
    ///
    /// # Errors
    /// When options contradict each other, or no kernel can do it.
    pub fn check(&self) -> Result<(), Error> {
        let refuse = |what: &str, help| Err(Error::Options { what: what.to_owned(), help });
        if self.outbound.is_none() && self.inbound.is_none() {
            return refuse("nothing is to be intercepted", "leave one direction in");
        }
        let mut ports: Vec<u16> =
            [self.outbound, self.inbound, self.dns].into_iter().flatten().collect();
        if ports.contains(&0) {
            return refuse("0 is no port", "name the port at which the proxy listens");
        }
        ports.sort_unstable();
        if ports.windows(2).any(|two| two[0] == two[1]) {
            return refuse(
                "outbound, inbound and DNS would be sent to one port",
                "the proxy tells them apart by their ports: give each its own",
            );
        }
        if self.tproxy && self.inbound.is_none() {
            return refuse("TPROXY is for inbound connections", "leave inbound ones in");
        }
        if self.dns.is_some() && self.outbound.is_none() {
            return refuse("DNS requests are outbound", "leave outbound connections in");
        }
        if self.mark == 0 {
            return refuse("mark 0 is no mark", "all packets have it until they are given another");
        }
        if self.tproxy && [rules::INBOUND_MARK, rules::RETURN_MARK].contains(&self.mark) {
            return refuse("this mark is one that TPROXY uses itself", "take another one");
        }
        if self.fail == Fail::Open && !(self.tproxy && self.outbound.is_none()) {
            return refuse(
                "the kernel cannot fail open here",
                "REDIRECT does not know whether anybody listens. Either have what supervises the \
                 sidecar run `towpath intercept remove` when it ends (systemd: ExecStopPost=), or \
                 intercept inbound connections only, with --tproxy: that does know",
            );
        }
        Ok(())
    }

    /// The options of `towpath intercept install` that say it, each short enough for a comment in
    /// the kernel; [`Spec::from_options`] reads them.
    #[must_use]
    pub fn options(&self) -> Vec<String> {
        let mut options = Vec::new();
        match self.outbound {
            Some(port) => options.push(format!("--outbound-port={port}")),
            None => options.push("--no-outbound".to_owned()),
        }
        match self.inbound {
            Some(port) => options.push(format!("--inbound-port={port}")),
            None => options.push("--no-inbound".to_owned()),
        }
        let or_none = |id: Option<u32>| id.map_or_else(|| "none".to_owned(), |id| id.to_string());
        options.push(format!("--proxy-user={}", or_none(self.proxy_user)));
        options.push(format!("--proxy-group={}", or_none(self.proxy_group)));
        options.push(format!("--mark={:#x}", self.mark));
        options.push(format!("--loopback={}", self.loopback));
        options.push(format!("--fail={}", self.fail));
        options.extend(self.tproxy.then(|| "--tproxy".to_owned()));
        options.extend((!self.ipv6).then(|| "--no-ipv6".to_owned()));
        options.extend(self.dns.map(|port| format!("--dns={port}")));
        listed(&mut options, "--exclude-user", &self.exclude_users);
        listed(&mut options, "--exclude-group", &self.exclude_groups);
        listed(&mut options, "--exclude-outbound-ports", &self.exclude_outbound_ports);
        listed(&mut options, "--exclude-inbound-ports", &self.exclude_inbound_ports);
        listed(&mut options, "--exclude-outbound-networks", &self.exclude_outbound_networks);
        listed(&mut options, "--exclude-inbound-networks", &self.exclude_inbound_networks);
        listed(&mut options, "--only-outbound-ports", &self.only_outbound_ports);
        listed(&mut options, "--only-inbound-ports", &self.only_inbound_ports);
        options
    }

    /// Reads what [`Spec::options`] wrote.
    ///
    /// # Errors
    /// When an option is not known, or its value is none.
    pub fn from_options<'a>(options: impl IntoIterator<Item = &'a str>) -> Result<Self, Error> {
        let mut spec = Self::default();
        for option in options {
            spec.take(option)
                .ok_or_else(|| Error::Record { what: format!("`{option}` is not known") })?;
        }
        Ok(spec)
    }

    fn take(&mut self, option: &str) -> Option<()> {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        match name {
            "--outbound-port" => self.outbound = Some(value.parse().ok()?),
            "--inbound-port" => self.inbound = Some(value.parse().ok()?),
            "--no-outbound" => self.outbound = None,
            "--no-inbound" => self.inbound = None,
            "--proxy-user" => self.proxy_user = id_or_none(value)?,
            "--proxy-group" => self.proxy_group = id_or_none(value)?,
            "--mark" => self.mark = u32::from_str_radix(value.strip_prefix("0x")?, 16).ok()?,
            "--loopback" => self.loopback = value.parse().ok()?,
            "--fail" => self.fail = value.parse().ok()?,
            "--tproxy" => self.tproxy = true,
            "--no-ipv6" => self.ipv6 = false,
            "--dns" => self.dns = Some(value.parse().ok()?),
            "--exclude-user" => extend(&mut self.exclude_users, value)?,
            "--exclude-group" => extend(&mut self.exclude_groups, value)?,
            "--exclude-outbound-ports" => extend(&mut self.exclude_outbound_ports, value)?,
            "--exclude-inbound-ports" => extend(&mut self.exclude_inbound_ports, value)?,
            "--exclude-outbound-networks" => extend(&mut self.exclude_outbound_networks, value)?,
            "--exclude-inbound-networks" => extend(&mut self.exclude_inbound_networks, value)?,
            "--only-outbound-ports" => extend(&mut self.only_outbound_ports, value)?,
            "--only-inbound-ports" => extend(&mut self.only_inbound_ports, value)?,
            _ => return None,
        }
        Some(())
    }
}

/// One option, or several of one name when the list is long.
fn listed<T: Display>(options: &mut Vec<String>, name: &str, values: &[T]) {
    let mut option = String::new();
    for value in values {
        let value = value.to_string();
        if !option.is_empty() && option.len() + 1 + value.len() > MAX_OPTION {
            options.push(std::mem::take(&mut option));
        }
        option += &if option.is_empty() { format!("{name}={value}") } else { format!(",{value}") };
    }
    options.extend((!option.is_empty()).then_some(option));
}

fn extend<T: FromStr>(list: &mut Vec<T>, values: &str) -> Option<()> {
    for value in values.split(',') {
        list.push(value.parse().ok()?);
    }
    Some(())
}

/// Having none is a value, too, and not the same as a mistake.
fn id_or_none(text: &str) -> Option<Option<u32>> {
    if text == "none" { Some(None) } else { text.parse().ok().map(Some) }
}

impl Display for Loopback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Leave => "leave",
            Self::Own => "own",
            Self::All => "all",
        })
    }
}

impl FromStr for Loopback {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "leave" => Ok(Self::Leave),
            "own" => Ok(Self::Own),
            "all" => Ok(Self::All),
            _ => Err("leave, own or all".to_owned()),
        }
    }
}

impl Display for Fail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Open { "open" } else { "closed" })
    }
}

impl FromStr for Fail {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "closed" => Ok(Self::Closed),
            "open" => Ok(Self::Open),
            _ => Err("closed or open".to_owned()),
        }
    }
}
