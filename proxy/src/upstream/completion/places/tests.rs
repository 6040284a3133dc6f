use super::*;

const FRANKFURT: (f64, f64) = (50.1, 8.7);
const VIRGINIA: (f64, f64) = (39.0, -77.5);
const FIJI: (f64, f64) = (-17.7, 178.1);

fn at((latitude, longitude): (f64, f64)) -> Coordinates {
    Coordinates { latitude, longitude }
}

/// The cells of endpoints with these regions and coordinates.
fn settle(numbers: &mut Numbers, endpoints: &[(&str, Option<(f64, f64)>)]) -> (Cells, Vec<Cell>) {
    let mut settling = numbers.settle(None);
    let cells = endpoints.iter().map(|(region, place)| settling.endpoint(region, place.map(at)));
    let cells = cells.collect();
    (settling.finish().0, cells)
}

fn world() -> Cells {
    let endpoints = [("eu", Some(FRANKFURT)), ("us", Some(VIRGINIA)), ("", Some(FIJI))];
    settle(&mut Numbers::default(), &endpoints).0
}

fn numbers(cells: &[Cell]) -> Vec<u8> {
    cells.iter().map(|cell| cell.number()).collect()
}

#[test]
fn an_origin_is_the_nearest_place_or_one_named() {
    let cells = world();
    for (value, cell) in [
        ("48.1,11.6", Some(1)),
        (" 45.5 , -73.6 ", Some(2)),
        // Across the date line.
        ("-13.8,-171.8", Some(3)),
        ("90,0", Some(1)),
        ("EU", Some(1)),
        ("us", Some(2)),
        ("", None),
        ("mars", None),
        ("91,0", None),
        ("0,181", None),
        ("NaN,1", None),
        ("inf,1", None),
        ("1,2,3", None),
        ("1", None),
    ] {
        assert_eq!(cells.named(value.as_bytes()), cell.map(Cell), "{value:?}");
    }
    assert_eq!(cells.named(b"\xff\xfe"), None);
    assert_eq!(Cells::default().named(b"48.1,11.6"), None);
}

#[test]
fn the_proxys_own_place_is_one_that_data_comes_from_but_no_endpoints() {
    let mut known = Numbers::default();
    let mut settling = known.settle(Some(at((48.1, 11.6))));
    assert_eq!(settling.endpoint("", Some(at((48.1, 11.6)))), Cell(1));
    assert_eq!(settling.endpoint("us", Some(at(VIRGINIA))), Cell(2));
    assert_eq!(settling.endpoint("", None), Cell::HERE);
    assert_eq!(settling.origin(at((48.2, 11.5))), Some(Cell::HERE));
    let (cells, _) = settling.finish();
    assert_eq!(cells.named(b"47.8,13.0"), Some(Cell::HERE));
    assert_eq!(cells.named(b"45.5,-73.6"), Some(Cell(2)));
    let ms = |endpoint| (cells.round_trip(Cell(endpoint), Cell::HERE) * 1000.0).round();
    assert_eq!((ms(1), ms(2)), (1.0, 103.0));
    assert_eq!(ms(0), 0.0, "of an endpoint without a place nothing is known");
}

#[test]
fn what_is_near_the_proxy_is_beside_it_also_when_an_endpoint_is_nearer() {
    let mut known = Numbers::default();
    let mut settling = known.settle(Some(at((48.1, 11.6))));
    // Augsburg, at 57 km.
    assert_eq!(settling.endpoint("eu", Some(at((48.4, 10.9)))), Cell(1));
    assert_eq!(settling.origin(at((48.4, 10.9))), Some(Cell::HERE));
    let (cells, _) = settling.finish();
    assert_eq!(cells.named(b"48.4,10.9"), Some(Cell::HERE));
    // Ulm, at 120 km.
    assert_eq!(cells.named(b"48.4,10.0"), Some(Cell(1)));
    assert_eq!(cells.named(b"eu"), Some(Cell(1)), "unless it says so");
}

#[test]
fn near_is_within_a_hundred_kilometres() {
    let north = |km: f64| Spot::new(at((km / 111.195, 0.0)));
    assert!(north(0.0).is_near(&north(99.9)) && !north(0.0).is_near(&north(100.1)));
}

#[test]
fn registered_places_have_cells_of_their_own_as_far_as_endpoints_leave_some() {
    let mut known = Numbers::default();
    let mut settling = known.settle(None);
    for region in 0..10 {
        settling.endpoint(&region.to_string(), Some(at((f64::from(region) * 2.0, 0.0))));
    }
    assert_eq!(settling.origin(at((2.1, 0.0))), Some(Cell(2)), "near an endpoint's");
    for n in 0..5_u8 {
        assert_eq!(settling.origin(at((60.0, f64::from(n) * 10.0))), Some(Cell(11 + n)));
    }
    assert_eq!(settling.origin(at((61.0, 61.0))), Some(Cell(15)), "the nearest");
    let (cells, new) = settling.finish();
    assert_eq!((cells.all().count(), new.len()), (CELLS, CELLS - 1));
    assert_eq!(cells.name(Cell(15)), "60.000,40.000");
    // A region that comes goes before them.
    let mut settling = known.settle(None);
    for region in 0..15 {
        settling.endpoint(&region.to_string(), Some(at((f64::from(region) * 2.0, 0.0))));
    }
    assert_eq!(settling.origin(at((60.0, 0.0))), Some(Cell(20)), "the nearest region");
}

#[test]
fn endpoints_of_a_region_share_a_cell_and_its_number_stays() {
    let mut known = Numbers::default();
    let all = [
        ("eu", Some(FRANKFURT)),
        ("us", Some(VIRGINIA)),
        ("us", None),
        ("", Some((50.0, 8.5))),
        ("", None),
        ("new", None),
    ];
    let (first, cells) = settle(&mut known, &all);
    assert_eq!(numbers(&cells), [1, 2, 2, 1, 0, 3], "35 km from Frankfurt is Frankfurt");
    drop(first);
    let (_, cells) = settle(&mut known, &[("new", None), ("eu", None)]);
    assert_eq!(numbers(&cells), [3, 1], "also while others are away");
    let (later, cells) = settle(&mut known, &all);
    assert_eq!(numbers(&cells), [1, 2, 2, 1, 0, 3]);
    assert!(later.round_trip(Cell(1), Cell(2)) > 0.0);
}

#[test]
fn a_region_whose_endpoints_are_away_is_an_origin_as_long_as_there_are_cells_left() {
    let mut known = Numbers::default();
    let both = [("eu", Some(FRANKFURT)), ("us", Some(VIRGINIA))];
    drop(settle(&mut known, &both));
    let (cells, _) = settle(&mut known, &[("us", Some(VIRGINIA))]);
    for said in ["eu", "48.1,11.6"] {
        assert_eq!(cells.named(said.as_bytes()), Some(Cell(1)), "{said}");
    }
    assert!(cells.round_trip(Cell(2), Cell(1)) > 0.09, "where it was is remembered");
    assert!(cells.pairs().any(|pair| pair == (Cell(2), Cell(1))), "and what was measured ages");
    // Of more than there is room for, those that were there last.
    for round in 0..20_u8 {
        drop(settle(&mut known, &[(&format!("r{round}"), None)]));
    }
    let (cells, _) = settle(&mut known, &[("us", None), ("r0", None)]);
    assert_eq!(cells.all().count(), CELLS);
    let named = |region: &str| cells.named(region.as_bytes()).is_some();
    let rounds: Vec<_> = (0..20).filter(|n| named(&format!("r{n}"))).collect();
    assert_eq!(rounds, [&[0][..], &(7..20).collect::<Vec<_>>()].concat());
    assert!(named("us") && !named("eu"));
}

#[test]
fn an_endpoint_without_a_region_is_in_none_that_only_data_came_from() {
    let mut known = Numbers::default();
    let mut settling = known.settle(None);
    settling.endpoint("eu", Some(at(FRANKFURT)));
    settling.region("lab", Some(at(FIJI)));
    drop(settling.finish());
    let endpoints = [("eu", Some(FRANKFURT)), ("", Some(FRANKFURT)), ("", Some(FIJI))];
    let (cells, stands) = settle(&mut known, &endpoints);
    let regions: Vec<_> = stands.iter().map(|cell| cells.region(*cell)).collect();
    assert_eq!(regions, ["eu", "eu", ""]);
    // Data is, as far as it is measured.
    assert_eq!(known.settle(None).origin(at(FIJI)), Some(Cell(2)));
}

#[test]
fn coordinates_that_are_corrected_count() {
    let mut known = Numbers::default();
    let (before, _) = settle(&mut known, &[("eu", Some(FIJI)), ("us", Some(VIRGINIA))]);
    let (after, cells) = settle(&mut known, &[("eu", Some(FRANKFURT)), ("us", None)]);
    assert_eq!(numbers(&cells), [1, 2]);
    let ms = |cells: &Cells| (cells.round_trip(Cell(1), Cell(2)) * 1000.0).round();
    assert_eq!((ms(&before), ms(&after)), (187.0, 99.0));
}

#[test]
fn when_no_cell_is_left_the_nearest_takes_what_comes() {
    let mut known = Numbers::default();
    let mut settling = known.settle(None);
    settling.endpoint("eu", Some(at(FRANKFURT)));
    for region in 0..100 {
        let cell = settling.endpoint(&region.to_string(), None);
        assert_eq!(cell, if region < 14 { Cell(region + 2) } else { Cell::HERE });
    }
    assert_eq!(settling.endpoint("munich", Some(at((48.1, 11.6)))), Cell(1));
    assert_eq!(settling.finish().0.all().count(), CELLS);
}

#[test]
fn regions_may_come_and_go_for_ever_and_each_has_a_cell_of_its_own() {
    let mut known = Numbers::default();
    // The view before is in use until the next one is there.
    let mut before = None;
    for round in 0..100 {
        let names: Vec<_> = (0..15).map(|n| format!("{round}-{n}")).collect();
        let endpoints: Vec<_> = names.iter().map(|name| (name.as_str(), None)).collect();
        let (view, mut cells) = settle(&mut known, &endpoints);
        drop(before.replace(view));
        cells.sort();
        cells.dedup();
        assert!(cells.len() == 15 && !cells.contains(&Cell::HERE), "{round}: {cells:?}");
    }
}

#[test]
fn a_number_that_a_view_still_knows_is_not_given_away() {
    let mut known = Numbers::default();
    let (old, _) = settle(&mut known, &[("old", None)]);
    let views: Vec<_> = (0..100)
        .map(|n| settle(&mut known, &[(&format!("new {n}"), None)]))
        .take_while(|(_, cells)| cells[0] != Cell::HERE)
        .collect();
    assert_eq!(views.len(), NUMBERS - 2);
    assert!(views.iter().all(|(_, cells)| cells[0] != Cell(1)));
    drop(old);
    let mut settling = known.settle(None);
    assert_eq!(settling.endpoint("newest", None), Cell(1));
    assert_eq!(settling.finish().1, [Cell(1)], "and nothing is known of it");
    assert_eq!(settle(&mut known, &[("new 7", None)]).1, [views[7].1[0]]);
}

#[test]
fn distance_lets_expect_a_round_trip() {
    let cells = world();
    let ms = |a, b| (cells.round_trip(Cell(a), Cell(b)) * 1000.0).round();
    assert_eq!(ms(1, 2), 99.0, "6,556 km; 90 ms are usual");
    assert_eq!(ms(2, 1), 99.0);
    assert_eq!(ms(1, 1), 1.0);
    assert_eq!(ms(0, 1), 0.0, "unknown");
    assert_eq!(ms(1, 0), 0.0, "unknown");
}
