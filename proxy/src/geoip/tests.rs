use proptest::prelude::*;

use super::{
    writer::{Value, city, database},
    *,
};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn networks() -> Vec<(IpAddr, u8, Value)> {
    let place = |location| Value::Map(vec![("location", Value::Map(location))]);
    let degrees = Value::Double;
    vec![
        (ip("203.0.113.0"), 24, city(50.1, 8.7)),
        (ip("198.51.100.128"), 25, city(-33.9, 151.2)),
        (ip("192.0.2.1"), 32, Value::Map(vec![("country", Value::Text("DE"))])),
        (ip("192.0.2.2"), 32, place(vec![("latitude", degrees(1.0))])),
        (
            ip("192.0.2.3"),
            32,
            place(vec![("latitude", Value::Text("1")), ("longitude", degrees(1.0))]),
        ),
        (ip("192.0.2.4"), 32, city(91.0, 0.0)),
        (ip("192.0.2.5"), 32, city(f64::NAN, 0.0)),
        (ip("192.0.2.6"), 32, Value::Text("DE")),
    ]
}

fn with_v6() -> Vec<u8> {
    let mut networks = networks();
    networks.push((ip("2001:db8::"), 32, city(35.7, 139.7)));
    database(6, &networks)
}

struct File(tempfile::TempDir);

impl File {
    fn new(bytes: &[u8]) -> Self {
        let file = Self(tempfile::tempdir().unwrap());
        file.write(bytes);
        file
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("places.mmdb")
    }

    /// As those who publish files do: another one takes its place.
    fn write(&self, bytes: &[u8]) {
        let next = self.0.path().join("next");
        fs::write(&next, bytes).unwrap();
        fs::rename(next, self.path()).unwrap();
    }
}

fn latitude(places: &ClientPlaces, address: &str) -> Option<f64> {
    places.find(ip(address)).map(|at| at.latitude)
}

#[test]
fn addresses_are_where_the_database_says() {
    for (version, bytes) in [(4, database(4, &networks())), (6, with_v6())] {
        let file = File::new(&bytes);
        let places = ClientPlaces::open(&file.path()).unwrap();
        for (address, expected) in [
            ("203.0.113.7", Some(50.1)),
            ("::ffff:203.0.113.7", Some(50.1)),
            ("198.51.100.200", Some(-33.9)),
            ("198.51.100.1", None),
            ("127.0.0.1", None),
            ("2001:db8::1", (version == 6).then_some(35.7)),
            ("2001:db9::1", None),
            // Records that say nothing, or nonsense.
            ("192.0.2.1", None),
            ("192.0.2.2", None),
            ("192.0.2.3", None),
            ("192.0.2.4", None),
            ("192.0.2.5", None),
            ("192.0.2.6", None),
        ] {
            assert_eq!(latitude(&places, address), expected, "{address} by version {version}");
        }
    }
}

#[test]
fn a_file_that_cannot_be_used_is_told_with_its_name() {
    let whole = with_v6();
    let file = File::new(&[]);
    for (bytes, why) in [
        (&b""[..], "is no sound database"),
        (b"127.0.0.1 Frankfurt\n", "is no sound database"),
        (&whole[..whole.len() / 2], "is no sound database"),
        (&whole[..whole.len() - 20], "is no sound database"),
        // The beginning of the data is overwritten.
        (&[&[0xFF; 60], &whole[60..]].concat(), "is no sound database"),
    ] {
        file.write(bytes);
        let error = ClientPlaces::open(&file.path()).unwrap_err().to_string();
        assert!(error.contains("places.mmdb") && error.contains(why), "{error}");
    }
    let missing = ClientPlaces::open(&file.0.path().join("none")).unwrap_err().to_string();
    assert!(missing.contains("none: No such file"), "{missing}");
}

#[test]
fn a_database_of_something_else_is_told_apart() {
    let record = |value: Value| database(6, &[(ip("203.0.113.0"), 24, value)]);
    let code = Value::Map(vec![("iso_code", Value::Text("DE"))]);
    let country = record(Value::Map(vec![("country", code)]));
    let network = record(Value::Map(vec![("autonomous_system_number", Value::Uint32(64_496))]));
    for (bytes, tells) in
        [(country, false), (network, false), (database(4, &[]), false), (with_v6(), true)]
    {
        assert_eq!(tells_places(&Reader::from_source(bytes).unwrap()), tells);
    }
}

#[test]
fn a_changed_file_counts_and_a_bad_one_leaves_what_was_read_before() {
    let file = File::new(&database(4, &[(ip("203.0.113.0"), 24, city(1.0, 1.0))]));
    let places = ClientPlaces::open(&file.path()).unwrap();
    assert!(!places.reload().unwrap());
    file.write(&database(4, &[(ip("203.0.113.0"), 24, city(2.0, 1.0))]));
    assert!(places.reload().unwrap());
    assert_eq!(latitude(&places, "203.0.113.7"), Some(2.0));
    file.write(b"cut");
    assert!(places.reload().is_err());
    assert!(!places.reload().unwrap(), "the same is not told twice");
    assert!(!lock(&places.read).is_due(stamp::of(&file.path())), "nor looked through again");
    assert_eq!(latitude(&places, "203.0.113.7"), Some(2.0));
    fs::remove_file(file.path()).unwrap();
    assert!(places.reload().is_err());
    assert!(lock(&places.read).is_due(stamp::of(&file.path())), "one that is missing may come");
    assert_eq!(latitude(&places, "203.0.113.7"), Some(2.0));
    file.write(&database(4, &[(ip("203.0.113.0"), 24, city(3.0, 1.0))]));
    assert!(places.reload().unwrap());
    assert_eq!(latitude(&places, "203.0.113.7"), Some(3.0));
}

proptest! {
    /// Damaged in a few places, and read all the same.
    #[test]
    fn no_database_brings_the_proxy_down(
        version in prop_oneof![Just(4), Just(6)],
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..12),
        cut in any::<proptest::sample::Index>(),
        cuts in any::<bool>(),
    ) {
        let mut bytes = if version == 4 { database(4, &networks()) } else { with_v6() };
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if cuts {
            bytes.truncate(cut.index(bytes.len()));
        }
        // Also one that is not looked through beforehand.
        if let Ok(database) = Reader::from_source(bytes) {
            let _ = database.verify();
            for address in ["203.0.113.7", "198.51.100.200", "192.0.2.3", "2001:db8::1", "::1"] {
                let found = locate(&database, ip(address));
                prop_assert!(found.is_none_or(|at| at.on_earth()));
            }
        }
    }
}
