//! Whatever a source holds, nothing panics, the factor stays between 0 and 1, and
//! a source that breaks never makes a node look better.

use std::time::Duration;

use proptest::{prelude::*, sample::Index};
use towpath_gpu::{
    Clocks, Heat, Reading, Residency, ServerLoad, State, amd_smi, exposition, health::Judge, sysfs,
};

use crate::trees::Tree;

const TREES: [&str; 5] = ["mi300x", "mi250x", "mi250x.hot", "rx7900xtx", "rx7900xtx.vram-full"];

/// What a file can turn into.
#[derive(Clone, Debug)]
enum Spoilt {
    Gone,
    Folder,
    Bytes(Vec<u8>),
    Number(i64),
    Long,
}

fn spoilt() -> impl Strategy<Value = Spoilt> {
    prop_oneof![
        Just(Spoilt::Gone),
        Just(Spoilt::Folder),
        proptest::collection::vec(any::<u8>(), 0..200).prop_map(Spoilt::Bytes),
        any::<i64>().prop_map(Spoilt::Number),
        Just(Spoilt::Long),
    ]
}

fn spoil(tree: &Tree, which: &Index, how: &Spoilt) {
    let files = tree.files();
    let file = which.get(&files);
    tree.remove(file);
    match how {
        Spoilt::Gone => {}
        Spoilt::Folder => std::fs::create_dir(tree.path().join(file)).expect("a folder"),
        Spoilt::Bytes(bytes) => tree.write(file, bytes),
        Spoilt::Number(number) => tree.write(file, format!("{number}\n").as_bytes()),
        Spoilt::Long => tree.write(file, &[b'7'; 100_000]),
    }
}

/// Observes `cards` once a second for `seconds` after `from`, and says the highest factor that was told.
fn watch(judge: &mut Judge, from: u64, seconds: u64, cards: Option<&[Reading]>) -> f64 {
    let mut highest = 0.0_f64;
    for second in from..from + seconds {
        let verdict = judge.observe(Duration::from_secs(second), cards, None);
        assert!((0.0..=1.0).contains(&verdict.factor), "{verdict:?}");
        assert_eq!(verdict.reason.is_none(), verdict.factor == 1.0, "{verdict:?}");
        highest = highest.max(verdict.factor);
    }
    highest
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_bytes_in_any_files_are_read(
        tree in proptest::sample::select(&TREES[..]),
        wounds in proptest::collection::vec((any::<Index>(), spoilt()), 1..40),
    ) {
        let tree = Tree::copy(tree);
        let mut judge = Judge::default();
        watch(&mut judge, 0, 2, Some(&sysfs::read(tree.path()).expect("a tree")));
        for (which, how) in &wounds {
            if !tree.files().is_empty() {
                spoil(&tree, which, how);
            }
        }
        let cards = sysfs::read(tree.path()).expect("a tree");
        prop_assert!(cards.iter().all(|card| card.faults.len() <= 64));
        watch(&mut judge, 2, 60, Some(&cards));
    }

    /// What is lost is not forgotten soon, whatever else is wrong.
    #[test]
    fn files_that_vanish_make_nothing_better(
        tree in proptest::sample::select(&TREES[..]),
        gone in proptest::collection::vec(any::<Index>(), 1..60),
    ) {
        let tree = Tree::copy(tree);
        let mut judge = Judge::default();
        let before = watch(&mut judge, 0, 2, Some(&sysfs::read(tree.path()).expect("a tree")));
        for which in &gone {
            let files = tree.files();
            if !files.is_empty() {
                tree.remove(&files[which.index(files.len())]);
            }
        }
        let cards = sysfs::read(tree.path()).expect("a tree");
        let after = watch(&mut judge, 2, 500, Some(&cards));
        prop_assert!(after <= before, "{before} became {after}");
    }
}

proptest! {
    #[test]
    fn any_text_of_an_exporter_is_read(text in "((DCGM_FI_DEV_|gpu_|vllm:|nv_)[a-zA-Z_:]{0,20}(\\{[^\n]{0,30}\\})? (NaN|[-+]?[0-9.e]{1,8}|\\PC{0,9})\n)*") {
        if let Ok(cards) = exposition::cards(&text) {
            watch(&mut Judge::default(), 0, 3, Some(&cards));
        }
        let _ = exposition::server(&text);
    }

    #[test]
    fn metrics_with_any_number_are_read(values in proptest::collection::vec(any::<f64>(), 24)) {
        let names = [
            "DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_FB_FREE", "DCGM_FI_DEV_XID_ERRORS",
            "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_CLOCKS_EVENT_REASONS",
            "gpu_used_vram", "gpu_total_vram", "gpu_junction_temperature", "gpu_ecc_uncorrect_total", "gpu_health",
        ];
        let mut judge = Judge::default();
        for (at, half) in values.chunks(names.len()).enumerate() {
            let text: String = names.iter().zip(half).map(|(name, value)| format!("{name}{{gpu=\"0\",gpu_id=\"1\"}} {value}\n")).collect();
            let cards = exposition::cards(&text).unwrap_or_default();
            watch(&mut judge, at as u64, 1, Some(&cards));
        }
    }

    #[test]
    fn any_json_of_amd_smi_is_read(text in "[\\[\\]{}\",:a-z0-9_. -]*") {
        let _ = amd_smi::parse(&text);
        let wrapped = format!("[{{\"gpu\":0,\"usage\":{{\"gfx_activity\":{text}}}}}]");
        if let Ok(cards) = amd_smi::parse(&wrapped) {
            watch(&mut Judge::default(), 0, 3, Some(&cards));
        }
    }

    /// Also what no reader of ours would say.
    #[test]
    fn any_readings_at_any_times_are_judged(
        times in proptest::collection::vec((any::<u64>(), proptest::option::of(proptest::collection::vec(reading(), 0..4)), load()), 1..30),
    ) {
        let mut judge = Judge::default();
        for (now, cards, load) in times {
            let verdict = judge.observe(Duration::from_nanos(now), cards.as_deref(), load.as_ref());
            prop_assert!((0.0..=1.0).contains(&verdict.factor), "{:?}", verdict);
            prop_assert!(verdict.busy.is_none_or(|busy| (0.0..=1.0).contains(&busy)));
        }
    }
}

fn load() -> impl Strategy<Value = Option<ServerLoad>> {
    let any = || proptest::option::of(any::<f64>());
    proptest::option::of((any(), any(), any()).prop_map(|(waiting, running, kv_cache)| {
        ServerLoad { waiting, running, kv_cache, ..ServerLoad::default() }
    }))
}

fn reading() -> impl Strategy<Value = Reading> {
    let number = || proptest::option::of(prop_oneof![any::<f64>(), 0.0..120.0_f64]);
    let count = || proptest::option::of(prop_oneof![any::<u64>(), 0..3_u64]);
    let heat = (number(), number(), number()).prop_map(|(now, critical, emergency)| Heat {
        now,
        critical,
        emergency,
    });
    let state = proptest::sample::select(vec![
        State::Ready,
        State::Ready,
        State::Asleep,
        State::Resetting,
        State::Lost,
    ]);
    let clocks = proptest::option::of(
        (any::<f64>(), any::<f64>()).prop_map(|(now, most)| Clocks { now, most }),
    );
    let residency = proptest::option::of(
        (any::<u32>(), any::<u32>()).prop_map(|(looks, hot)| Residency { looks, hot }),
    );
    (("[abc]", state, number(), heat), (count(), count(), count(), count()), clocks, residency)
        .prop_map(
            |(
                (id, state, busy, junction),
                (used, total, ecc_uncorrected, xid),
                clocks,
                residency,
            )| Reading {
                id,
                state,
                busy,
                junction,
                vram_used_bytes: used,
                vram_total_bytes: total,
                ecc_uncorrected,
                xid,
                clocks,
                residency,
                ..Reading::default()
            },
        )
}
