//! `towpath place`: where places are, what is at a point, and how long the way takes.
//!
//! Asks Apple Maps where there are credentials, else the built-in gazetteer.

use std::{
    fmt::Write as _,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail};
use towpath_control_plane::places::{AppleArgs, Eta, Gazetteer, Limits, MapService};
use towpath_policies::{
    model::Coordinates,
    parse_time,
    places::{kilometres, similar},
};

use crate::output::print;

/// Places shown of an answer.
const SHOWN: usize = 5;

/// Options of `towpath place`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  towpath place find Frankfurt
  towpath place find 'Portland, OR'
  towpath place find eu-central-1
  towpath place at 50.1,8.7
  towpath place eta Frankfurt Munich Berlin --apple-maps-key AuthKey.p8 \\
      --apple-maps-key-id ABC123DEFG --apple-maps-team-id DEF123GHIJ")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Find a place by its name, as `place:` in a policy does
    Find {
        /// A city, a city with its country or state, or a region of a cloud
        #[arg(value_name = "NAME")]
        name: String,
        #[command(flatten)]
        apple: AppleArgs,
    },
    /// Say what is at a point
    At {
        /// Degrees, north and east positive
        #[arg(value_name = "LAT,LON", value_parser = parse_point, allow_hyphen_values = true)]
        point: Coordinates,
        #[command(flatten)]
        apple: AppleArgs,
    },
    /// Say how long it takes by road, with the traffic there is (needs Apple Maps)
    Eta {
        /// Where it starts: a name or LAT,LON
        #[arg(value_name = "FROM", allow_hyphen_values = true)]
        from: String,
        /// Where it goes
        #[arg(value_name = "TO", required = true, allow_hyphen_values = true)]
        to: Vec<String>,
        /// Leave later, e.g. 30m
        #[arg(long, value_name = "DURATION", value_parser = parse_later)]
        leave_in: Option<Duration>,
        #[command(flatten)]
        apple: AppleArgs,
    },
}

/// Runs the command.
///
/// # Errors
/// When there is no answer.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let text = runtime.block_on(async {
        match args.command {
            Command::Find { name, apple } => find(&*service(&apple)?, &name).await,
            Command::At { point, apple } => at(&*service(&apple)?, point).await,
            Command::Eta { from, to, leave_in, apple } => {
                let departure = leave_in.map(|time| SystemTime::now() + time);
                eta(&*service(&apple)?, &from, &to, departure).await
            }
        }
    })?;
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn service(apple: &AppleArgs) -> anyhow::Result<Box<dyn MapService>> {
    Ok(match apple.client(Limits::default())? {
        Some(client) => Box::new(client),
        None => Box::new(Gazetteer),
    })
}

async fn find(service: &dyn MapService, name: &str) -> anyhow::Result<String> {
    let found = service.find(name).await?;
    if found.is_empty() {
        return Err(unknown(name));
    }
    let mut text = String::new();
    for place in found.iter().take(SHOWN) {
        let _ = writeln!(text, "{}  {}", point(place.coordinates), place.name);
    }
    Ok(text)
}

fn unknown(name: &str) -> anyhow::Error {
    let near = similar(name);
    let near = if near.is_empty() {
        String::new()
    } else {
        format!("; did you mean {}?", near.join(" or "))
    };
    anyhow::anyhow!("nobody knows the place {name:?}{near}")
}

async fn at(service: &dyn MapService, here: Coordinates) -> anyhow::Result<String> {
    let found = service.at(here).await?;
    let place = found.first().context("nobody knows what is there")?;
    let far = kilometres(here, place.coordinates);
    Ok(format!("{}  {}, {far:.0} km away\n", point(place.coordinates), place.name))
}

async fn eta(
    service: &dyn MapService,
    from: &str,
    to: &[String],
    departure: Option<SystemTime>,
) -> anyhow::Result<String> {
    let origin = locate(service, from).await?;
    let mut destinations = Vec::with_capacity(to.len());
    for name in to {
        destinations.push(locate(service, name).await?);
    }
    let etas = service.etas(origin, &destinations, departure).await?;
    let width = to.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, eta) in to.iter().zip(etas) {
        let told = eta.map_or_else(|| "there is no way by road".to_owned(), words);
        let _ = writeln!(text, "{name:width$}  {told}");
    }
    Ok(text)
}

/// Where a name or `LAT,LON` is. What is built in costs no call.
async fn locate(service: &dyn MapService, name: &str) -> anyhow::Result<Coordinates> {
    if let Ok(point) = parse_point(name) {
        return Ok(point);
    }
    for asked in [&Gazetteer as &dyn MapService, service] {
        if let Some(place) = asked.find(name).await?.first() {
            return Ok(place.coordinates);
        }
    }
    Err(unknown(name))
}

fn words(eta: Eta) -> String {
    let time = |time: Duration| {
        let minutes = time.as_secs().div_ceil(60);
        match minutes / 60 {
            0 => format!("{minutes} min"),
            hours => format!("{hours} h {:02} min", minutes % 60),
        }
    };
    let kilometres = eta.distance_meters.div_ceil(1000);
    let (now, empty) = (time(eta.expected), time(eta.empty_roads));
    format!("{kilometres} km, {now} with traffic, {empty} on empty roads")
}

fn point(at: Coordinates) -> String {
    format!("{:.3},{:.3}", at.latitude, at.longitude)
}

fn parse_point(text: &str) -> anyhow::Result<Coordinates> {
    let (latitude, longitude) = text.split_once(',').context("expected LAT,LON, like 50.1,8.7")?;
    let degrees = |text: &str, most: f64| match text.trim().parse::<f64>() {
        Ok(degrees) if degrees.abs() <= most => Ok(degrees),
        _ => bail!("expected degrees from -{most} to {most} instead of {text:?}"),
    };
    Ok(Coordinates { latitude: degrees(latitude, 90.0)?, longitude: degrees(longitude, 180.0)? })
}

fn parse_later(text: &str) -> anyhow::Result<Duration> {
    const MOST: Duration = Duration::from_secs(30 * 24 * 3600);
    let time = parse_time(text).filter(|time| *time <= MOST);
    time.context("expected a time of at most 30 days (720h), like 30m or 2h")
}

#[cfg(test)]
mod tests {
    use towpath_control_plane::places::{Answer, Found, PlaceError};

    use super::*;

    /// Knows one place, and roads that are 100 km long but lead nowhere south of the equator.
    struct Roads;

    impl MapService for Roads {
        fn find<'a>(&'a self, name: &'a str) -> Answer<'a, Vec<Found>> {
            let coordinates = Coordinates { latitude: 31.0, longitude: -24.0 };
            let found = Found { name: "There".into(), country: "PT".into(), coordinates };
            Box::pin(async move { Ok(if name == "Lemuria" { vec![found] } else { vec![] }) })
        }

        fn at(&self, _: Coordinates) -> Answer<'_, Vec<Found>> {
            Box::pin(async { Err(PlaceError::Refused("no".into())) })
        }

        fn etas<'a>(
            &'a self,
            _: Coordinates,
            destinations: &'a [Coordinates],
            _: Option<SystemTime>,
        ) -> Answer<'a, Vec<Option<Eta>>> {
            let eta = Eta {
                distance_meters: 99_500,
                expected: Duration::from_secs(3600 + 61),
                empty_roads: Duration::from_secs(59 * 60),
            };
            let eta = move |to: &Coordinates| (to.latitude > 0.0).then_some(eta);
            Box::pin(async move { Ok(destinations.iter().map(eta).collect()) })
        }
    }

    #[tokio::test]
    async fn the_built_in_table_answers_without_credentials() {
        let said = find(&Gazetteer, "frankfurt").await.unwrap();
        assert_eq!(said, "50.116,8.684  Frankfurt am Main, DE\n");
        let said = find(&Gazetteer, "us-west1").await.unwrap();
        assert_eq!(said, "45.595,-121.179  The Dalles, US (Google Cloud us-west1)\n");
        let said = at(&Gazetteer, parse_point("50.033, 8.57").unwrap()).await.unwrap();
        assert!(said.contains(" km away") && said.contains("DE"), "{said}");
        let error = find(&Gazetteer, "Frankfrt").await.unwrap_err().to_string();
        assert!(error.contains("did you mean Frankfurt am Main, DE?"), "{error}");
        let error = eta(&Gazetteer, "Berlin", &["Munich".to_owned()], None).await.unwrap_err();
        assert!(error.to_string().contains("--apple-maps-key"), "{error}");
    }

    #[tokio::test]
    async fn ways_are_told_for_names_and_points() {
        let to = ["Munich", "Lemuria", "-50,8.7"].map(str::to_owned);
        let said = eta(&Roads, "Frankfurt", &to, None).await.unwrap();
        let way = "100 km, 1 h 02 min with traffic, 59 min on empty roads";
        let expected =
            format!("Munich   {way}\nLemuria  {way}\n-50,8.7  there is no way by road\n");
        assert_eq!(said, expected);
        let error = eta(&Roads, "Mu", &to, None).await.unwrap_err().to_string();
        assert!(error.contains("nobody knows the place \"Mu\""), "{error}");
    }

    #[test]
    fn points_are_on_earth() {
        for text in ["", "1", "1,", "91,0", "0,181", "nan,0", "1,2,3", "a,b", "inf,0"] {
            assert!(parse_point(text).is_err(), "{text}");
        }
        assert_eq!(parse_point("-33.9,18.4").unwrap().latitude, -33.9);
    }
}
