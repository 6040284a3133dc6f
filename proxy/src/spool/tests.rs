use std::{future::poll_fn, os::unix::fs::FileExt, path::Path};

use super::{writer::MOST_WAITING, *};

/// In the clear and encrypted: all that holds for one holds for the other.
fn spaces(folder: &Path, limit: u64) -> [Arc<Space>; 2] {
    [false, true].map(|on| Arc::new(Space::new(folder.into(), limit).encrypted(on)))
}

/// Waits for files to be retired, by another thread.
async fn given_back(space: &Space) {
    for _ in 0..10_000 {
        if space.in_use() == 0 && space.memory.held() == 0 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    panic!("{} bytes on disk, {} in memory", space.in_use(), space.memory.held());
}

async fn push(spool: &mut Spool, bytes: impl Into<Bytes>) -> bool {
    poll_fn(|cx| spool.poll_room(cx)).await;
    spool.push(bytes.into())
}

async fn read(spool: &mut Spool, from: u64) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    while from + (all.len() as u64) < spool.len() {
        let at = from + all.len() as u64;
        all.extend_from_slice(&poll_fn(|cx| spool.poll_read(cx, at)).await?);
    }
    Ok(all)
}

fn random(rng: &mut fastrand::Rng, bytes: usize) -> Vec<u8> {
    let mut piece = vec![0; bytes];
    rng.fill(&mut piece);
    piece
}

/// The one file of this folder that is open, though it has no name; made anew if it goes away.
fn file_in(folder: &Path) -> std::fs::File {
    let links = std::fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap().path());
    let mut own =
        links.filter(|link| std::fs::read_link(link).is_ok_and(|to| to.starts_with(folder)));
    let file = std::fs::OpenOptions::new().read(true).write(true).open(own.next().unwrap());
    assert!(own.next().is_none(), "there is one file");
    file.unwrap()
}

#[tokio::test]
async fn what_is_appended_can_be_read_from_anywhere_and_again() {
    let folder = tempfile::tempdir().unwrap();
    for space in spaces(folder.path(), 64 << 20) {
        let mut rng = fastrand::Rng::with_seed(1);
        // The second one writes over what the first has left.
        for round in 0..2 {
            let mut spool = Spool::new(space.clone());
            let mut all = Vec::new();
            for _ in 0..400 {
                let most = if rng.bool() { 100 } else { 80_000 };
                let bytes = rng.usize(1..most);
                let piece = random(&mut rng, bytes);
                all.extend_from_slice(&piece);
                assert!(push(&mut spool, piece).await);
                assert!(spool.writer.waiting() <= MOST_WAITING + 80_000, "memory stays bounded");
            }
            for from in [0, 1, 300_000, all.len() as u64 - 1, 0] {
                let got = read(&mut spool, from).await.unwrap();
                assert!(got == all[from as usize..], "round {round} from {from}");
            }
            assert!(push(&mut spool, &b"more"[..]).await);
            assert_eq!(read(&mut spool, all.len() as u64).await.unwrap(), b"more");
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "no name");
            assert!(space.in_use() >= all.len() as u64);
            drop(spool);
            given_back(&space).await;
        }
    }
}

#[tokio::test]
async fn a_full_space_or_a_disk_that_fails_is_told_and_gives_everything_back() {
    let folder = tempfile::tempdir().unwrap();
    for space in spaces(folder.path(), 2 << 20) {
        let mut first = Spool::new(space.clone());
        assert!(push(&mut first, vec![0; 1_500_000]).await);
        let mut second = Spool::new(space.clone());
        assert!(!push(&mut second, vec![0; 1]).await, "the first has it all");
        assert_eq!(read(&mut first, 0).await.unwrap().len(), 1_500_000);
        drop(first);
        given_back(&space).await;
        assert!(push(&mut second, vec![0; 1]).await);
        let mut third = Spool::new(space.clone());
        assert!(!push(&mut third, vec![0; 1]).await, "what was idle is the second's now");
    }
    for nowhere in spaces(&folder.path().join("none"), 1 << 20) {
        let mut fourth = Spool::new(nowhere.clone());
        fourth.push(vec![0; 1000].into());
        let error = read(&mut fourth, 0).await.unwrap_err();
        assert!(!fourth.push(vec![0; 1].into()) && fourth.has_failed(), "{error}");
        drop(fourth);
        given_back(&nowhere).await;
    }
}

#[tokio::test(start_paused = true)]
async fn idle_files_go_when_nobody_needs_them_or_their_space_is_wanted() {
    let folder = tempfile::tempdir().unwrap();
    for space in spaces(folder.path(), 8 << 20) {
        let mut spools = Vec::new();
        for _ in 0..4 {
            let mut spool = Spool::new(space.clone());
            assert!(push(&mut spool, vec![0; 1_500_000]).await);
            poll_fn(|cx| spool.poll_settled(cx)).await;
            spools.push(spool);
        }
        drop(spools);
        given_back(&space).await;
        assert!(space.used.load(Relaxed) > 0, "files are kept for the next");
        let mut large = Spool::new(space.clone());
        for _ in 0..7 {
            assert!(
                push(&mut large, vec![0; 1_000_000]).await,
                "they make room for what is needed"
            );
        }
        drop(large);
        given_back(&space).await;
        tokio::time::sleep(3 * IDLE).await;
        assert_eq!(space.used.load(Relaxed), 0);
    }
}

#[tokio::test]
async fn what_is_encrypted_on_disk_cannot_be_read_there_nor_changed_unnoticed() {
    let folder = tempfile::tempdir().unwrap();
    let marker = b"the customer's name and account ".as_slice();
    let content = marker.repeat(1 << 15);
    for (space, encrypted) in spaces(folder.path(), 64 << 20).into_iter().zip([false, true]) {
        let mut spool = Spool::new(space.clone());
        assert!(push(&mut spool, content.clone()).await);
        assert!(read(&mut spool, 0).await.unwrap() == content);

        let file = file_in(folder.path());
        let mut on_disk = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut on_disk, 0).unwrap();
        assert!(on_disk.len() >= content.len(), "all of it is there");
        let shows = on_disk.windows(8).any(|some| some == &marker[..8]);
        assert_eq!(shows, !encrypted);

        if encrypted {
            let at = on_disk.len() / 2;
            file.write_all_at(&[on_disk[at] ^ 1], at as u64).unwrap();
            let error = read(&mut spool, 0).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
            let end = content.len() as u64 - 20_000;
            assert!(read(&mut spool, end).await.is_ok(), "another block is as it was");
            file.write_all_at(&[on_disk[at]], at as u64).unwrap();
            assert!(read(&mut spool, 0).await.unwrap() == content);
        }
        drop((file, spool));
        given_back(&space).await;
        space.give_up_idle();
        // Closed by another thread.
        while std::fs::read_dir("/proc/self/fd").unwrap().any(|entry| {
            let link = entry.and_then(|entry| std::fs::read_link(entry.path()));
            link.is_ok_and(|to| to.starts_with(folder.path()))
        }) {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn a_file_cut_short_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    for space in spaces(folder.path(), 64 << 20) {
        let own = tempfile::tempdir_in(folder.path()).unwrap();
        let space = Arc::new(Space::new(own.path().into(), space.limit).encrypted(space.encrypted));
        let mut spool = Spool::new(space);
        assert!(push(&mut spool, vec![7; 1_000_000]).await);
        poll_fn(|cx| spool.poll_settled(cx)).await;
        file_in(own.path()).set_len(500_000).unwrap();
        assert!(read(&mut spool, 0).await.is_err());
    }
}

/// One that waits for memory has its try broken off: for the disk, or a pause, or a slot.
#[tokio::test]
async fn who_waits_for_something_else_than_memory_is_not_woken_in_place_of_others() {
    use std::{
        sync::atomic::AtomicBool,
        task::{Wake, Waker},
    };
    struct Woken(AtomicBool);
    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Relaxed);
        }
    }
    let leaves: [fn(&mut Spool, &mut Context<'_>); 3] = [
        |spool, _| spool.rewind(),
        |spool, cx| assert!(spool.poll_settled(cx).is_ready()),
        |spool, _| *spool = Spool::new(spool.writer.space.clone()),
    ];
    let folder = tempfile::tempdir().unwrap();
    for leave in leaves {
        for told_first in [false, true] {
            let space = Arc::new(Space::new(folder.path().into(), 1 << 20).with_memory(1000));
            space.memory.take(1000);
            let woken = Arc::new(Woken(AtomicBool::new(false)));
            let waker = Waker::from(woken.clone());
            let mut cx = Context::from_waker(&waker);
            let (mut first, mut second) = (Spool::new(space.clone()), Spool::new(space.clone()));
            let mut idle = Context::from_waker(Waker::noop());
            assert!(first.poll_room(&mut idle).is_pending());
            assert!(second.poll_room(&mut cx).is_pending());
            if told_first {
                space.memory.give_back(1000);
            }
            leave(&mut first, &mut idle);
            if !told_first {
                space.memory.give_back(1000);
            }
            assert!(woken.0.load(Relaxed), "told first: {told_first}");
            assert!(second.poll_room(&mut cx).is_ready());
        }
    }
}

/// Sixty transfers share what is little for one of them, and half stop sending at some time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transfers_wait_their_turn_for_memory_and_all_get_it() {
    const MEMORY: u64 = 256 * 1024;
    const PIECE: usize = 30_000;
    let folder = tempfile::tempdir().unwrap();
    for encrypted in [false, true] {
        let space = Space::new(folder.path().into(), 1 << 30).encrypted(encrypted);
        let space = Arc::new(space.with_memory(MEMORY));
        let mut tasks = tokio::task::JoinSet::new();
        for index in 0..60_u64 {
            let space = space.clone();
            tasks.spawn(async move {
                let mut rng = fastrand::Rng::with_seed(index);
                let mut spool = Spool::new(space.clone());
                let mut all = Vec::new();
                let pieces = if index % 2 == 0 { rng.usize(1..20) } else { 40 };
                for _ in 0..pieces {
                    let piece = random(&mut rng, PIECE);
                    all.extend_from_slice(&piece);
                    assert!(push(&mut spool, piece).await);
                    let held = space.memory.held() as u64;
                    assert!(held <= MEMORY + 3 * 64 * 1024, "{held} bytes are held");
                    tokio::task::yield_now().await;
                }
                // Those that stop keep what they have until the others are through.
                (spool, all)
            });
        }
        let done = tokio::time::timeout(std::time::Duration::from_secs(60), tasks.join_all()).await;
        let done = done.expect("everybody gets a turn");
        for (mut spool, all) in done {
            assert!(read(&mut spool, 0).await.unwrap() == all);
        }
        given_back(&space).await;
    }
}
