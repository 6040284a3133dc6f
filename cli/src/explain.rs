//! `towpath explain`: when each endpoint of a service would complete a request, and why.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    process::ExitCode,
};

use anyhow::Context as _;
use towpath_policies::model::{Class, Region};
use towpath_proxy::explain::{Explanation, Prediction};

use crate::{
    admin::{self, plain},
    output::print,
};

/// Options of `towpath explain`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  towpath explain --service transform --origin 48.1,11.6 --size 2GiB
  towpath explain --service transform --registered acme
  towpath explain --service transform --client 203.0.113.7
  towpath explain --service transform --origin us-east --format json
  towpath explain --service transform --origin us-east --size 2GiB --class background")]
pub(crate) struct Args {
    /// The service a request is for; its BalancerPolicy must say `policy: CompletionTime`
    #[arg(long, value_name = "SERVICE")]
    service: String,

    /// Where its data comes from: LATITUDE,LONGITUDE in degrees, or a region [default: beside the proxy]
    #[arg(long, value_name = "PLACE", allow_hyphen_values = true)]
    origin: Option<String>,

    /// Or the tenant or device that it is of, for which a policy has registered a place
    #[arg(long, value_name = "NAME", conflicts_with = "origin")]
    registered: Option<String>,

    /// Or the address of its client, which the proxy looks up (--geoip)
    #[arg(long, value_name = "IP", conflicts_with_all = ["origin", "registered"])]
    client: Option<IpAddr>,

    /// Bytes that it brings: 65536, 64KiB, 2GiB
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = size)]
    size: u64,

    /// What kind of freight it is: bulk and background are weighed by what they emit and cost too
    #[arg(long, value_enum, default_value_t = Kind::Interactive)]
    class: Kind,

    /// Admin address of the proxy
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9901")]
    admin: SocketAddr,

    /// text is a table, json is all there is
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    Interactive,
    Bulk,
    Background,
}

impl Kind {
    fn name(self) -> &'static str {
        let class = match self {
            Self::Interactive => Class::Interactive,
            Self::Bulk => Class::Bulk,
            Self::Background => Class::Background,
        };
        class.name()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Text,
    Json,
}

fn size(text: &str) -> Result<u64, String> {
    towpath_policies::parse_bytes(text).ok_or_else(|| "bytes like 65536, 64KiB or 2GiB".to_owned())
}

/// Asks a proxy, and shows what it says.
///
/// # Errors
/// When it cannot be reached, does not know the service, or the service is balanced otherwise.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (service, class) = (escaped(&args.service), args.class.name());
    let mut path = format!("/explain?service={service}&size={}&class={class}", args.size);
    if let Some(origin) = &args.origin {
        let _ = write!(path, "&origin={}", escaped(origin));
    }
    if let Some(name) = &args.registered {
        let _ = write!(path, "&registered={}", escaped(name));
    }
    if let Some(client) = args.client {
        let _ = write!(path, "&client={}", escaped(&client.to_string()));
    }
    let body = runtime.block_on(admin::ask(args.admin, &path, "proxy"))?;
    let explanation: Explanation = serde_json::from_slice(&body).with_context(|| {
        format!(
            "http://{}/explain: not an explanation (is this a proxy's admin address?)",
            args.admin
        )
    })?;
    print(&match args.format {
        Format::Text => text(&explanation),
        Format::Json => format!("{:#}\n", serde_json::to_value(&explanation)?),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// For the query of a URI (RFC 3986 §2.1).
fn escaped(text: &str) -> String {
    text.bytes().fold(String::new(), |mut escaped, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(byte.into());
        } else {
            let _ = write!(escaped, "%{byte:02X}");
        }
        escaped
    })
}

fn text(explanation: &Explanation) -> String {
    let Explanation { origin, priced_from, bytes, endpoints } = explanation;
    let from = match origin.as_str() {
        "" => "beside the proxy".to_owned(),
        region => format!("the part of the world of {}", plain(region)),
    };
    let priced = match priced_from.as_str() {
        // Nobody knows, or as the origin says.
        "" => String::new(),
        region if region == origin => String::new(),
        Region::ANY => ", at the prices of none of the regions".to_owned(),
        region => format!(", at the prices of {}", plain(region)),
    };
    let mut page = format!("{} from {from}{priced}\n\n", amount(*bytes));
    // Most meshes count neither: their table stays as it was.
    let any = |shown: fn(&Prediction) -> bool| endpoints.iter().any(shown);
    let green = [
        any(|e| e.terms.carbon > 0.0),
        any(|e| e.terms.price > 0.0),
        any(|e| e.footprint.grams.is_some()),
        any(|e| e.footprint.cents.is_some()),
    ];
    let shown = |column: usize| !(7..11).contains(&column) || green[column - 7];
    let head = [
        "endpoint", "region", "network", "transfer", "queue", "health", "failures", "carbon",
        "price", "grams", "cents", "seconds", "why",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(endpoints.iter().map(row));
    let widths: [usize; 13] = std::array::from_fn(|column| {
        rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)
    });
    for row in &rows {
        let mut line = String::new();
        let cells = row.iter().zip(widths).enumerate().filter(|(column, _)| shown(*column));
        for (column, (cell, width)) in cells {
            let _ = match column {
                0 | 1 | 12 => write!(line, "{cell:<width$}  "),
                _ => write!(line, "{cell:>width$}  "),
            };
        }
        page += line.trim_end();
        page.push('\n');
    }
    if let Some(verdict) = verdict(endpoints) {
        let _ = write!(page, "\n{verdict}\n");
    }
    page
}

fn row(endpoint: &Prediction) -> [String; 13] {
    let terms = &endpoint.terms;
    let mut why = Vec::new();
    if let Some(out) = &endpoint.out {
        why.push(plain(out));
    }
    match endpoint.goodput_bytes_per_second {
        Some(goodput) => why.push(format!("{}/s", amount(goodput))),
        None => why.push("not measured yet".to_owned()),
    }
    if endpoint.bytes_in_flight > 0 {
        #[expect(clippy::cast_precision_loss, reason = "for a person")]
        why.push(format!("{} in flight", amount(endpoint.bytes_in_flight as f32)));
    }
    if endpoint.requests_in_flight > 0 {
        why.push(format!("{} requests", endpoint.requests_in_flight));
    }
    if endpoint.health < 1.0 {
        why.push(format!("at {:.0} % of its goodput by its reports", endpoint.health * 100.0));
    }
    let [network, transfer, queue, health, failures, carbon, price] =
        terms.named().map(|(_, part)| seconds(part));
    let figure = |figure: Option<f32>| figure.map_or_else(|| "?".to_owned(), seconds);
    let (grams, cents) = (figure(endpoint.footprint.grams), figure(endpoint.footprint.cents));
    let total = seconds(endpoint.seconds);
    let (name, region) = (plain(&endpoint.name), plain(&endpoint.region));
    let why = why.join(", ");
    [
        name, region, network, transfer, queue, health, failures, carbon, price, grams, cents,
        total, why,
    ]
}

/// Who wins, and what it wins by.
fn verdict(endpoints: &[Prediction]) -> Option<String> {
    let mut usable = endpoints.iter().filter(|endpoint| endpoint.out.is_none());
    let Some(best) = usable.next() else {
        return Some("none of them may be used".to_owned());
    };
    let next = usable.find(|next| next.priority == best.priority)?;
    let (a, b) = (best.terms.named(), next.terms.named());
    let gains = a.into_iter().zip(b).map(|((term, a), (_, b))| (term, b - a));
    let (term, gain) = gains.max_by(|(_, a), (_, b)| a.total_cmp(b))?;
    Some(if gain > 0.0 {
        format!(
            "{} {} {} by {} s, above all by {term} ({} s)",
            plain(&best.name),
            // It may well take longer.
            if best.terms.time() <= next.terms.time() { "is sooner than" } else { "goes before" },
            plain(&next.name),
            seconds(next.seconds - best.seconds),
            seconds(gain)
        )
    } else {
        format!("{} and {} are even", plain(&best.name), plain(&next.name))
    })
}

fn seconds(seconds: f32) -> String {
    match seconds {
        s if s >= 100.0 => format!("{s:.0}"),
        s if s >= 1.0 => format!("{s:.2}"),
        s => format!("{s:.4}"),
    }
}

fn amount(bytes: f32) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut rest = bytes;
    let mut unit = 0;
    while rest >= 1000.0 && unit + 1 < units.len() {
        rest /= 1000.0;
        unit += 1;
    }
    if unit == 0 || rest >= 100.0 {
        format!("{rest:.0} {}", units[unit])
    } else {
        format!("{rest:.1} {}", units[unit])
    }
}

#[cfg(test)]
mod tests {
    use towpath_proxy::explain::{Footprint, Parts};

    use super::*;

    fn endpoint(name: &str, network: f32, transfer: f32) -> Prediction {
        let (queue, health, failures, carbon, price) = (0.0001, 0.0, 0.0, 0.0, 0.0);
        let terms = Parts { network, transfer, queue, health, failures, carbon, price };
        Prediction {
            name: name.to_owned(),
            address: "10.0.0.1:80".to_owned(),
            region: "eu".to_owned(),
            priority: 0,
            out: None,
            requests_in_flight: 0,
            bytes_in_flight: 0,
            goodput_bytes_per_second: None,
            health: 1.0,
            seconds: terms.network + terms.transfer + terms.queue,
            terms,
            footprint: Footprint::default(),
        }
    }

    #[test]
    fn the_table_says_who_wins_and_why() {
        let mut busy = endpoint("iad\u{1b}[2J", 0.099, 25.4);
        busy.goodput_bytes_per_second = Some(1.5e8);
        busy.bytes_in_flight = 1_500_000_000;
        busy.requests_in_flight = 3;
        busy.health = 0.25;
        let mut gone = endpoint("syd", 0.2, 1.0);
        gone.out = Some("it is ejected".to_owned());
        let endpoints = vec![endpoint("fra", 0.0005, 20.1), busy, gone];
        let explanation = Explanation {
            origin: "eu".to_owned(),
            priced_from: String::new(),
            bytes: 2_147_483_648.0,
            endpoints,
        };
        assert_eq!(
            text(&explanation),
            "\
2.1 GB from the part of the world of eu

endpoint  region  network  transfer   queue  health  failures  seconds  why
fra       eu       0.0005     20.10  0.0001  0.0000    0.0000    20.10  not measured yet
iad\u{fffd}[2J   eu       0.0990     25.40  0.0001  0.0000    0.0000    25.50  150 MB/s, 1.5 GB in flight, 3 requests, at 25 % of its goodput by its reports
syd       eu       0.2000      1.00  0.0001  0.0000    0.0000     1.20  it is ejected, not measured yet

fra is sooner than iad\u{fffd}[2J by 5.40 s, above all by transfer (5.30 s)
"
        );
    }

    #[test]
    fn what_is_emitted_and_paid_is_shown_where_it_is_known() {
        let mut dirty = endpoint("fra", 0.0005, 2.0);
        dirty.footprint = Footprint { grams: Some(0.38), cents: Some(0.0) };
        dirty.terms.carbon = 3.8;
        dirty.seconds = dirty.terms.total();
        let mut clean = endpoint("osl", 0.025, 2.5);
        clean.footprint = Footprint { grams: Some(0.03), cents: None };
        clean.terms.carbon = 0.3;
        clean.seconds = clean.terms.total();
        let explanation = Explanation {
            origin: "eu".to_owned(),
            priced_from: String::new(),
            bytes: 1e9,
            endpoints: vec![clean, dirty],
        };
        assert_eq!(
            text(&explanation),
            "\
1.0 GB from the part of the world of eu

endpoint  region  network  transfer   queue  health  failures  carbon   grams   cents  seconds  why
osl       eu       0.0250      2.50  0.0001  0.0000    0.0000  0.3000  0.0300       ?     2.83  not measured yet
fra       eu       0.0005      2.00  0.0001  0.0000    0.0000    3.80  0.3800  0.0000     5.80  not measured yet

osl goes before fra by 2.98 s, above all by carbon (3.50 s)
"
        );
    }

    #[test]
    fn whose_prices_bytes_have_is_said_where_it_is_not_the_origin() {
        for (origin, priced_from, head) in [
            ("", "", "1.0 GB from beside the proxy"),
            ("", "lab", "1.0 GB from beside the proxy, at the prices of lab"),
            ("eu", "eu", "1.0 GB from the part of the world of eu"),
            (
                "48.100,11.600",
                "*",
                "1.0 GB from the part of the world of 48.100,11.600, at the prices of none of the regions",
            ),
        ] {
            let (origin, priced_from) = (origin.to_owned(), priced_from.to_owned());
            let explanation = Explanation { origin, priced_from, bytes: 1e9, endpoints: vec![] };
            let page = text(&explanation);
            assert_eq!(page.lines().next(), Some(head));
        }
    }

    #[test]
    fn a_query_keeps_what_is_asked() {
        assert_eq!(escaped("48.1,11.6&x=ü"), "48.1%2C11.6%26x%3D%C3%BC");
    }
}
