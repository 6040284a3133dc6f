//! What the readers make of the trees and texts in `testdata`, and the judge of
//! that.

mod garbage;
mod trees;

use std::{fs, path::Path, time::Duration};

use towpath_gpu::{
    Heat, Problem, Reading, ServerLoad, State, Throttle, Vendor, amd_smi, exposition,
    health::{Judge, Verdict},
    sysfs,
};
use trees::Tree;

const SECOND: Duration = Duration::from_secs(1);

fn text(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/text").join(name);
    fs::read_to_string(path).expect("a text of testdata")
}

fn cards(tree: &str) -> Vec<Reading> {
    sysfs::read(Tree::copy(tree).path()).expect("a tree")
}

fn judge(judge: &mut Judge, at: u32, cards: &[Reading]) -> Verdict {
    judge.observe(SECOND * at, Some(cards), None)
}

/// What a node that was well says when it has become `tree`, two seconds on.
fn fallen(tree: &str) -> (f64, String) {
    let well = tree.split('.').next().expect("a name");
    let mut node = Judge::default();
    let verdict = judge(&mut node, 0, &cards(well));
    assert_eq!((verdict.factor, verdict.reason), (1.0, None), "{well} is well");
    judge(&mut node, 1, &cards(tree));
    let verdict = judge(&mut node, 2, &cards(tree));
    (verdict.factor, verdict.reason.unwrap_or_default())
}

#[test]
fn an_mi300x_is_read_whole_and_the_display_of_its_board_is_not() {
    let cards = cards("mi300x");
    assert_eq!(cards.len(), 2);
    let card = &cards[0];
    assert_eq!(card.id, "0000:0c:00.0");
    assert_eq!(card.vendor, Some(Vendor::Amd));
    assert_eq!(card.name.as_deref(), Some("AMD Instinct MI300X OAM"));
    assert_eq!(card.unique_id.as_deref(), Some("5b1f3c0a97d2e481"));
    assert_eq!(card.vram_vendor.as_deref(), Some("hynix"));
    assert_eq!(card.state, State::Ready);
    assert_eq!(card.busy, Some(0.96));
    assert_eq!(card.vram_total_bytes, Some(192 * 1024 * 1024 * 1024 - (16 << 20)));
    assert_eq!(card.edge, Heat::default(), "it has no such sensor");
    let heat = |now, critical| Heat {
        now: Some(now),
        critical: Some(critical),
        emergency: Some(critical + 5.0),
    };
    assert_eq!((card.junction, card.memory), (heat(88.0, 100.0), heat(74.0, 95.0)));
    assert_eq!((card.power_watts, card.power_cap_watts), (Some(712.0), Some(750.0)));
    assert_eq!(card.energy_joules, Some(81_234_567.0));
    assert_eq!((card.ecc_corrected, card.ecc_uncorrected), (Some(3), Some(0)));
    assert!(card.residency.is_some());
    assert_eq!(card.clocks.map(|clocks| (clocks.now, clocks.most)), Some((1830.0, 2100.0)));
    assert_eq!(card.faults, []);
}

#[test]
fn a_radeon_at_its_limit_of_power_is_well() {
    let cards = cards("rx7900xtx");
    assert_eq!(cards[0].throttle, Some(Throttle::Power));
    assert_eq!(cards[0].name.as_deref(), Some("AMD 1002:744c"), "it has no product name");
    assert_eq!(cards[0].energy_joules, None, "its accumulator says 0");
    assert_eq!(cards[0].faults, []);
    assert_eq!(judge(&mut Judge::default(), 0, &cards).factor, 1.0);
}

#[test]
fn each_fault_has_its_factor_and_a_reason_for_a_person() {
    for (tree, factor, reason) in [
        ("rx7900xtx.vram-full", 0.37, "VRAM 97 %"),
        ("mi250x.hot", 0.7, "0000:c1:00.0: throttled at 104 °C"),
        // 600 of 1000 looks were hot, at half of the clocks: 0.7 of one card, and all of the other.
        ("mi300x.throttled", 0.85, "0000:0c:00.0: throttled at 97 °C"),
        ("mi300x.ras-ue", 0.5, "0000:0c:00.0: uncorrectable ECC"),
        ("mi300x.reset", 0.5, "0000:0c:00.0: is being reset"),
        ("mi300x.gone", 0.5, "0000:0c:00.0: is gone"),
        ("rx7900xtx.asleep", 1.0, ""),
        // What was seen before holds for a while.
        ("rx7900xtx.sensors-gone", 1.0, ""),
        ("rx7900xtx.garbled", 1.0, ""),
    ] {
        let (told, why) = fallen(tree);
        assert!((told - factor).abs() < 0.005, "{tree}: {told} instead of {factor}");
        assert_eq!(why, reason, "{tree}");
    }
}

#[test]
fn files_that_hold_something_else_are_nothing_and_a_fault() {
    let cards = cards("rx7900xtx.garbled");
    let card = &cards[0];
    assert_eq!((card.busy, card.vram_share(), card.hottest()), (None, None, None));
    assert_eq!((card.clocks, card.power_watts, card.junction.critical), (None, None, None));
    assert_eq!(card.unique_id.as_deref(), Some("[31mevil"), "nothing that a terminal obeys");
    let faulty: Vec<&str> = card.faults.iter().map(|fault| fault.what.as_str()).collect();
    assert_eq!(
        faulty,
        [
            "mem_info_vram_used",
            "mem_info_vram_total",
            "pp_dpm_sclk",
            "gpu_metrics",
            "busy",
            "edge",
            "junction",
            "memory",
            "power"
        ]
    );
}

#[test]
fn a_card_that_sleeps_is_not_asked() {
    let cards = cards("rx7900xtx.asleep");
    assert_eq!((cards[0].state, cards[0].busy, cards[0].hottest()), (State::Asleep, None, None));
    assert_eq!(cards[0].faults, []);
}

#[test]
fn a_file_of_more_than_a_page_is_not_taken() {
    let tree = Tree::copy("rx7900xtx");
    tree.write(
        Path::new("card0/device/gpu_busy_percent"),
        format!("71{}", " ".repeat(4095)).as_bytes(),
    );
    let cards = sysfs::read(tree.path()).expect("a tree");
    assert_eq!(
        (cards[0].busy, &cards[0].faults[0].problem),
        (Some(0.71), &Problem::TooMuch("a page"))
    );
}

#[test]
fn sensors_that_are_gone_are_told_and_cost_a_little_once_they_stay_away() {
    let cards = cards("rx7900xtx.sensors-gone");
    let missing: Vec<_> =
        cards[0].faults.iter().map(|fault| (fault.what.as_str(), &fault.problem)).collect();
    assert_eq!(missing, [("gpu_busy_percent", &Problem::Missing), ("hwmon", &Problem::Missing)]);
    let mut node = Judge::default();
    judge(&mut node, 0, &self::cards("rx7900xtx"));
    assert_eq!(judge(&mut node, 29, &cards).factor, 1.0);
    let verdict = judge(&mut node, 31, &cards);
    assert_eq!((verdict.factor, verdict.reason.as_deref()), (0.9, Some("edge is silent")));
}

#[test]
fn a_counter_of_errors_that_cannot_be_read_is_no_fall_and_no_rise_of_their_sum() {
    let tree = Tree::copy("mi300x.ras-ue");
    let file = Path::new("card1/device/ras/umc_err_count");
    let mut node = Judge::default();
    judge(&mut node, 0, &sysfs::read(tree.path()).expect("a tree"));
    for (at, text) in [(1, "ue: many\n"), (2, "ue: 2\nce: 3\n")] {
        tree.write(file, text.as_bytes());
        let cards = sysfs::read(tree.path()).expect("a tree");
        assert_eq!(cards[0].ecc_uncorrected.is_some(), at == 2);
        assert_eq!(judge(&mut node, at, &cards).factor, 1.0);
    }
}

#[test]
fn a_card_that_does_not_say_which_it_is_does_not_become_another() {
    let tree = Tree::copy("rx7900xtx.vram-full");
    tree.remove(Path::new("card0/device/uevent"));
    assert_eq!(sysfs::read(tree.path()), Ok(Vec::new()));
}

#[test]
fn a_folder_that_cannot_be_read_is_no_node_without_cards() {
    assert!(sysfs::read(Path::new("/nowhere/at/all")).is_err());
    let empty = tempfile::tempdir().expect("a folder");
    assert_eq!(sysfs::read(empty.path()), Ok(Vec::new()));
}

#[test]
fn dcgm_is_read_and_a_sensor_it_does_not_have_is_none() {
    let cards = exposition::cards(&text("dcgm.prom")).expect("cards");
    assert_eq!(cards.len(), 2);
    let card = &cards[0];
    assert_eq!((card.id.as_str(), card.vendor), ("0000:1b:00.0", Some(Vendor::Nvidia)));
    assert_eq!(card.name.as_deref(), Some("NVIDIA H100 80GB HBM3"));
    assert_eq!((card.busy, card.edge.now, card.memory.now), (Some(0.87), Some(49.0), Some(58.0)));
    assert_eq!(card.vram_total_bytes, Some((52_614 + 28_411 + 534) << 20));
    assert_eq!((card.power_watts, card.energy_joules), (Some(412.25), Some(184_467_440.737)));
    assert_eq!((card.ecc_uncorrected, card.xid, card.healthy), (Some(0), Some(0), Some(true)));
    assert_eq!(cards[1].memory.now, None);
    assert_eq!(cards[1].faults, []);
    let mut node = Judge::default();
    assert_eq!(judge(&mut node, 0, &cards).factor, 1.0);
    let sick = exposition::cards(&text("dcgm-faults.prom")).expect("cards");
    let verdict = judge(&mut node, 1, &sick);
    assert_eq!(verdict.reason.as_deref(), Some("0000:1b:00.0: uncorrectable ECC"));
    assert!(verdict.factor < 0.1, "the other is hot and full: {verdict:?}");
}

#[test]
fn amd_s_exporter_is_read_with_and_without_a_prefix() {
    let text = text("amd-exporter.prom");
    let cards = exposition::cards(&text).expect("cards");
    assert_eq!(cards.len(), 2);
    let card = &cards[0];
    assert_eq!((card.id.as_str(), card.unique_id.as_deref()), ("0", Some("692432000512")));
    assert_eq!(
        (card.busy, card.junction.now, card.memory.now),
        (Some(0.97), Some(86.0), Some(70.0))
    );
    assert_eq!((card.vram_used_bytes, card.power_watts), (Some(151_004 << 20), Some(701.0)));
    assert_eq!((card.healthy, card.throttle), (Some(true), Some(Throttle::Power)));
    assert_eq!(card.clocks.map(|clocks| clocks.now), Some(1890.0), "not that of the memory");
    assert_eq!(cards[1].ecc_corrected, Some(4));
    let prefixed = text.replace("\ngpu_", "\namd_gpu_");
    assert_eq!(exposition::cards(&prefixed), Ok(cards));
    let sick = exposition::cards(&self::text("amd-exporter-faults.prom")).expect("cards");
    let verdict = judge(&mut Judge::default(), 0, &sick);
    assert_eq!(verdict.reason.as_deref(), Some("0: unhealthy, says its exporter"));
    assert!(
        (verdict.factor - 0.05).abs() < 0.001,
        "104 °C, where it is not told, is near the end: {verdict:?}"
    );
}

#[test]
fn model_servers_are_read() {
    let (waiting, running, kv_cache) = (Some(3.0), Some(24.0), Some(0.62));
    let load = ServerLoad { waiting, running, kv_cache, ..ServerLoad::default() };
    assert_eq!(exposition::server(&text("vllm.prom")), Ok(load));
    let old = exposition::server(&text("vllm-v0.prom")).expect("a load");
    assert_eq!((old.running, old.kv_cache), (Some(8.0), Some(0.31)));
    let triton = exposition::server(&text("triton.prom")).expect("a load");
    assert_eq!((triton.waiting, triton.queued_seconds_total), (Some(40.0), Some(285.98)));
    assert!(triton.busy.is_some_and(|busy| (busy - 0.84).abs() < 1e-9));
}

#[test]
fn a_model_server_that_is_full_costs_its_node_and_its_memory_does_not() {
    let full_cards = cards("rx7900xtx.vram-full");
    let well = exposition::server(&text("vllm.prom")).expect("a load");
    let full = exposition::server(&text("vllm-full.prom")).expect("a load");
    let mut node = Judge::default();
    let verdict = node.observe(SECOND, Some(&full_cards), Some(&well));
    assert_eq!((verdict.factor, verdict.reason), (1.0, None), "vLLM takes nine tenths on purpose");
    let verdict = node.observe(SECOND * 2, Some(&full_cards), None);
    assert_eq!(verdict.factor, 1.0, "and still does when one scrape fails");
    let verdict = node.observe(SECOND * 3, Some(&full_cards), Some(&full));
    assert_eq!(verdict.reason.as_deref(), Some("96 requests wait"));
    assert!((verdict.factor - 0.4).abs() < 0.001, "{verdict:?}");
}

#[test]
fn amd_smi_is_read_as_both_releases_print_it() {
    let cards = amd_smi::parse(&text("amd-smi-rocm6.json")).expect("cards");
    assert_eq!(cards.len(), 2);
    assert_eq!((cards[0].id.as_str(), cards[0].edge.now), ("gpu0", None), "N/A is nothing");
    assert_eq!((cards[0].junction.now, cards[0].throttle), (Some(86.0), Some(Throttle::Power)));
    assert_eq!(cards[0].vram_total_bytes, Some(196_592 << 20));
    assert_eq!(cards[0].energy_joules, Some(81_234_567.25));
    assert_eq!(cards[1].throttle, Some(Throttle::Heat));
    let radeon = amd_smi::parse(&text("amd-smi-rocm7.json")).expect("cards");
    assert_eq!(radeon[0].throttle, Some(Throttle::Unsaid));
    let verdict = judge(&mut Judge::default(), 0, &radeon);
    assert_eq!(verdict.factor, 1.0, "throttled at 63 °C is held down by its power");
}
