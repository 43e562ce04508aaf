//! What a full disk, a failing sync, a crash and damage leave behind, in SQLite and its
//! segments.

mod common;

use std::fs::File;
use std::io::{self, BufRead, BufReader, IoSlice, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use common::*;
use tidegate_mail::{End, EventKind, MessageId, Owes};
use tidegate_queue::*;
use tidegate_store::{Disk, Options, RealDisk};

/// Fails one kind of call from the n-th on, with the error given, until told otherwise.
#[derive(Default)]
struct Faulty {
    creates: AtomicI64,
    writes: AtomicI64,
    syncs: AtomicI64,
    reads: AtomicI64,
    errno: AtomicI64,
}

const NEVER: i64 = i64::MAX;

impl Faulty {
    fn new(errno: i32) -> Arc<Faulty> {
        Arc::new(Faulty {
            creates: AtomicI64::new(NEVER),
            writes: AtomicI64::new(NEVER),
            syncs: AtomicI64::new(NEVER),
            reads: AtomicI64::new(NEVER),
            errno: AtomicI64::new(i64::from(errno)),
        })
    }

    fn pass(&self, left: &AtomicI64) -> io::Result<()> {
        if left.load(Ordering::SeqCst) == NEVER || left.fetch_sub(1, Ordering::SeqCst) > 0 {
            return Ok(());
        }
        let errno = self.errno.load(Ordering::SeqCst) as i32;
        Err(io::Error::from_raw_os_error(errno))
    }
}

impl Disk for Faulty {
    fn create(&self, path: &Path, bytes: u64) -> io::Result<File> {
        self.pass(&self.creates)?;
        RealDisk.create(path, bytes)
    }

    fn write(&self, file: &File, buffers: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.pass(&self.writes)?;
        RealDisk.write(file, buffers, offset)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.pass(&self.syncs)?;
        RealDisk.sync(file)
    }

    fn read(&self, file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.pass(&self.reads)?;
        RealDisk.read(file, buffer, offset)
    }
}

const ENOSPC: i32 = 28;
const EIO: i32 = 5;

fn faulty(errno: i32) -> (Place, Arc<Faulty>) {
    let disk = Faulty::new(errno);
    let mut place = Place::sqlite();
    place.options = Options {
        disk: disk.clone(),
        ..options()
    };
    (place, disk)
}

/// Accepts messages of 5,000 bytes until one is refused; those accepted, and the error.
async fn fill(
    store: &Arc<dyn Store>,
    source: &tidegate_mail::IdSource,
) -> (Vec<MessageId>, StoreError) {
    let mut accepted = Vec::new();
    loop {
        let id = source.next(T0);
        let new = message(id, T0, &["a@x.example"], pattern(5000, id.as_i64() as u8));
        match store.accept(new).await {
            Ok(()) => accepted.push(id),
            Err(error) => return (accepted, error),
        }
        assert!(accepted.len() < 20_000, "it never gets full");
    }
}

async fn assert_whole(store: &Arc<dyn Store>, ids: &[MessageId]) {
    let queued: Vec<MessageId> = load_all(store, 1000)
        .await
        .into_iter()
        .map(|r| r.id.message)
        .collect();
    assert_eq!(queued, ids);
    for message in store.messages(ids.to_vec()).await.unwrap() {
        let reader = store.content(&message);
        let content = read_all(&*reader, 1 << 20).await.unwrap();
        assert!(
            content == pattern(5000, message.id.as_i64() as u8),
            "content of {}",
            message.id
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_finds_no_room_refuses_its_batch_alone() {
    let (place, disk) = faulty(ENOSPC);
    let opened = place.open().await;
    let source = ids();
    let mut kept = Vec::new();
    for _ in 0..3 {
        disk.writes.store(4, Ordering::SeqCst);
        let (accepted, error) = fill(&opened.store, &source).await;
        assert!(matches!(error, StoreError::Full(_)), "{error}");
        assert!(!accepted.is_empty());
        kept.extend(accepted);
        disk.writes.store(NEVER, Ordering::SeqCst);
        let id = source.next(T0);
        let new = message(id, T0, &["a@x.example"], pattern(5000, id.as_i64() as u8));
        opened.store.accept(new).await.unwrap();
        kept.push(id);
    }
    assert_whole(&opened.store, &kept).await;
    let opened = place.reopen(opened).await;
    assert_whole(&opened.store, &kept).await;
    // Nothing of the refused ones is in the log.
    let query = LogQuery {
        limit: 1000,
        ..LogQuery::default()
    };
    assert_eq!(opened.store.search(query).await.unwrap().len(), kept.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_room_for_a_segment_mail_is_refused_until_there_is() {
    let (place, disk) = faulty(ENOSPC);
    let opened = place.open().await;
    let source = ids();
    disk.creates.store(1, Ordering::SeqCst);
    let (kept, error) = fill(&opened.store, &source).await;
    assert!(matches!(error, StoreError::Full(_)), "{error}");
    // Deliveries go on, and what they free is used again without a new segment.
    for id in &kept {
        let gone = delivered(&opened.store, recipient(*id, 0), T0);
        opened.store.settle(vec![gone]).await.unwrap();
    }
    opened.store.events(0, 1).await.unwrap();
    let id = source.next(T0);
    let new = message(id, T0, &["a@x.example"], pattern(5000, id.as_i64() as u8));
    opened.store.accept(new).await.unwrap();
    assert_whole(&opened.store, &[id]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_at_its_limit_refuses_and_recovers() {
    let mut place = Place::sqlite();
    place.options.max_database_bytes = Some(1024 * 1024);
    let opened = place.open().await;
    let source = ids();
    let (kept, error) = fill(&opened.store, &source).await;
    assert!(matches!(error, StoreError::Full(_)), "{error}");
    assert!(!kept.is_empty());
    assert_whole(&opened.store, &kept).await;
    let opened = {
        let mut place = place;
        opened.store.close().await;
        place.options.max_database_bytes = None;
        let opened = place.open().await;
        assert_whole(&opened.store, &kept).await;
        let id = source.next(T0);
        let new = message(id, T0, &["a@x.example"], pattern(5000, id.as_i64() as u8));
        opened.store.accept(new).await.unwrap();
        opened
    };
    assert_eq!(
        opened.store.counts().await.unwrap().messages,
        kept.len() as u64 + 1
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contents_at_their_limit_refuse_and_recover() {
    let mut place = Place::sqlite();
    place.options.max_content_bytes = Some(1024 * 1024);
    let opened = place.open().await;
    let source = ids();
    let (kept, error) = fill(&opened.store, &source).await;
    assert!(matches!(error, StoreError::Full(_)), "{error}");
    assert!(kept.len() > 150, "{}", kept.len());
    let gone = kept
        .iter()
        .map(|id| delivered(&opened.store, recipient(*id, 0), T0));
    opened.store.settle(gone.collect()).await.unwrap();
    // Freed space is used again once the settlement is synced.
    opened.store.events(0, 1).await.unwrap();
    let (again, _) = fill(&opened.store, &source).await;
    assert!(again.len() > 75, "{}", again.len());
    assert_whole(&opened.store, &again).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_sync_is_fatal_until_the_store_is_opened_again() {
    let (place, disk) = faulty(EIO);
    let opened = place.open().await;
    let source = ids();
    let first = source.next(T0);
    let new = message(
        first,
        T0,
        &["a@x.example"],
        pattern(5000, first.as_i64() as u8),
    );
    opened.store.accept(new).await.unwrap();
    disk.syncs.store(0, Ordering::SeqCst);
    let (accepted, error) = fill(&opened.store, &source).await;
    assert!(accepted.is_empty());
    assert!(matches!(error, StoreError::Failed(_)), "{error}");
    disk.syncs.store(NEVER, Ordering::SeqCst);
    // It does not try again on the same file.
    let (accepted, error) = fill(&opened.store, &source).await;
    assert!(accepted.is_empty());
    assert!(matches!(error, StoreError::Failed(_)), "{error}");
    let settled = vec![delivered(&opened.store, recipient(first, 0), T0)];
    let refused = opened.store.settle(settled).await;
    assert!(matches!(refused, Err(StoreError::Failed(_))), "{refused:?}");
    assert!(opened.store.content_writer().await.is_err());
    drop(opened);
    // What was refused is not seen again; what was accepted is there.
    let opened = place.open().await;
    assert_whole(&opened.store, &[first]).await;
    let events = opened.store.events(0, 100).await.unwrap();
    assert!(events.iter().all(|e| e.event.message == first));
}

/// A message whose recipient owes a notice, and the notice that pays that.
async fn owing(
    store: &Arc<dyn Store>,
    source: &tidegate_mail::IdSource,
) -> (MessageId, NewMessage) {
    let id = source.next(T0);
    let new = message(id, T0, &["a@x.example"], "text");
    store.accept(new).await.unwrap();
    let settled = |owes, kind| {
        let state = done(T0, End::Bounced, owes);
        settlement(store, recipient(id, 0), state, kind, T0)
    };
    let failed = settled(Owes::Failure, EventKind::Bounced);
    store.settle(vec![failed]).await.unwrap();
    let mut notice = message(
        source.next(T0),
        T0,
        &["anna@sender.example"],
        pattern(5000, 1),
    );
    notice.pays = vec![settled(Owes::None, EventKind::DsnSent)];
    (id, notice)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_notice_whose_content_could_not_be_synced_is_still_owed() {
    let (place, disk) = faulty(EIO);
    let opened = place.open().await;
    let (id, notice) = owing(&opened.store, &ids()).await;
    disk.syncs.store(0, Ordering::SeqCst);
    let refused = opened.store.accept(notice.clone()).await;
    assert!(matches!(refused, Err(StoreError::Failed(_))), "{refused:?}");
    disk.syncs.store(NEVER, Ordering::SeqCst);
    drop(opened);
    let opened = place.open().await;
    let owed = opened.store.owing(10).await.unwrap();
    assert_eq!(owed, [(recipient(id, 0), Owes::Failure)]);
    // And is paid with a second try.
    opened.store.accept(notice).await.unwrap();
    assert!(opened.store.owing(10).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_notice_that_paid_a_debt_is_never_dropped_at_a_start() {
    let mut place = Place::sqlite();
    let opened = place.open().await;
    let (_, notice) = owing(&opened.store, &ids()).await;
    let id = notice.id;
    opened.store.accept(notice).await.unwrap();
    let found = opened.store.messages(vec![id]).await.unwrap();
    opened.store.close().await;
    // It was synced before its commit, so this is damage, which is told.
    damage(&place, &found[0]);
    place.options.boot = "another".to_owned();
    let opened = place.open().await;
    assert_eq!(opened.store.messages(vec![id]).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_disk_that_can_not_be_read_at_a_start_costs_no_mail() {
    let (mut place, disk) = faulty(EIO);
    let opened = place.open().await;
    let id = ids().next(T0);
    let new = message(id, T0, &["a@x.example"], pattern(5000, id.as_i64() as u8));
    opened.store.accept(new).await.unwrap();
    opened.store.close().await;
    place.options.boot = "another".to_owned();
    disk.reads.store(0, Ordering::SeqCst);
    let opened = place.open().await;
    assert!(disk.reads.load(Ordering::SeqCst) < 0, "it looked");
    disk.reads.store(NEVER, Ordering::SeqCst);
    assert_whole(&opened.store, &[id]).await;
}

/// Calls follow each other without a pause in which the writer would have nothing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settlements_are_synced_in_time_however_many_come() {
    let mut place = Place::sqlite();
    place.options.sync_interval = std::time::Duration::from_millis(20);
    let opened = place.open().await;
    let id = ids().next(T0);
    let to = ["a@x.example"; 8];
    let new = message(id, T0, &to, "text");
    opened.store.accept(new).await.unwrap();
    let before = opened.store.counts().await.unwrap().syncs;
    let since = std::time::Instant::now();
    let busy = (0..8u32).map(|index| {
        let store = opened.store.clone();
        tokio::spawn(async move {
            loop {
                let state = deferred(T0, 1);
                let later =
                    settlement(&store, recipient(id, index), state, EventKind::Deferred, T0);
                store.settle(vec![later]).await.unwrap();
                if store.counts().await.unwrap().syncs >= before + 5 {
                    return;
                }
                let waited = since.elapsed();
                assert!(waited.as_secs() < 15, "nothing was synced in {waited:?}");
            }
        })
    });
    for task in busy.collect::<Vec<_>>() {
        task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_another_program_has_locked_is_busy_and_recovers() {
    use sqlx::{ConnectOptions, Connection, Executor};
    let place = Place::sqlite();
    let opened = place.open().await;
    let source = ids();
    let mut other = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(place.dir.path().join("queue.db"))
        .connect()
        .await
        .unwrap();
    other.execute("BEGIN IMMEDIATE").await.unwrap();
    let new = message(source.next(T0), T0, &["a@x.example"], "text");
    let refused = opened.store.accept(new.clone()).await;
    assert!(matches!(refused, Err(StoreError::Busy(_))), "{refused:?}");
    other.execute("ROLLBACK").await.unwrap();
    other.close().await.unwrap();
    opened.store.accept(new).await.unwrap();
    assert_eq!(opened.store.counts().await.unwrap().messages, 1);
}

/// A stream's bytes may be what a failed sync of a refused batch was about.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_sync_of_a_refused_batch_is_not_forgotten() {
    let (place, disk) = faulty(EIO);
    let opened = place.open().await;
    let source = ids();
    let first = source.next(T0);
    let new = message(first, T0, &["a@x.example"], pattern(5000, 1));
    opened.store.accept(new).await.unwrap();
    let mut writer = opened.store.content_writer().await.unwrap();
    writer.append(Bytes::from(pattern(9000, 2))).await.unwrap();
    let content = writer.finish().await.unwrap();
    // One failing sync, in the batch of a message that is refused for its id.
    disk.syncs.store(0, Ordering::SeqCst);
    let again = message(first, T0, &["a@x.example"], pattern(5000, 1));
    let refused = opened.store.accept(again).await;
    assert!(refused.is_err());
    while disk.syncs.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    disk.syncs.store(NEVER, Ordering::SeqCst);
    let mut new = message(source.next(T0), T0, &["a@x.example"], "");
    new.content = content;
    let refused = opened.store.accept(new).await;
    assert!(matches!(refused, Err(StoreError::Failed(_))), "{refused:?}");
}

#[tokio::test]
async fn a_second_gateway_is_told_who_has_the_directory() {
    let place = Place::sqlite();
    let _first = place.open().await;
    match place.try_open().await {
        Err(StoreError::Conflict(text)) => {
            assert!(text.contains("another gateway"), "{text}");
            assert!(text.contains(place.dir.path().to_str().unwrap()), "{text}");
        }
        other => panic!("{:?}", other.map(drop)),
    }
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_refused() {
    use sqlx::{ConnectOptions, Connection, Executor};
    let place = Place::sqlite();
    let opened = place.open().await;
    opened.store.close().await;
    let mut conn = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(place.dir.path().join("queue.db"))
        .connect()
        .await
        .unwrap();
    conn.execute("INSERT INTO migration (number, name) VALUES (9999, 'later')")
        .await
        .unwrap();
    conn.close().await.unwrap();
    match place.try_open().await {
        Err(StoreError::Conflict(text)) => assert!(text.contains("newer version"), "{text}"),
        other => panic!("{:?}", other.map(drop)),
    }
}

/// Flips a byte within the record of a message.
fn damage(place: &Place, message: &QueuedMessage) {
    let numbers: Vec<u64> = message
        .content
        .0
        .split('.')
        .map(|n| n.parse().unwrap())
        .collect();
    let path = place
        .dir
        .path()
        .join(format!("segments/{:06}.seg", numbers[0]));
    let mut file = File::options().read(true).write(true).open(path).unwrap();
    let at = numbers[2] + 32 + numbers[3] / 2;
    let mut byte = [0u8];
    file.seek(SeekFrom::Start(at)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&[byte[0] ^ 1]).unwrap();
}

#[tokio::test]
async fn a_damaged_record_is_dropped_only_if_it_was_never_acknowledged() {
    let mut place = Place::sqlite();
    let opened = place.open().await;
    let source = ids();
    let mut ids = Vec::new();
    for _ in 0..3 {
        let id = source.next(T0);
        let new = message(id, T0, &["a@x.example"], pattern(5000, id.as_i64() as u8));
        opened.store.accept(new).await.unwrap();
        ids.push(id);
    }
    let found = opened.store.messages(ids.clone()).await.unwrap();
    opened.store.close().await;
    // The second was followed by a commit, so its content had been synced: damage to it
    // is told, and the recipient stays.
    damage(&place, &found[1]);
    damage(&place, &found[2]);
    // So is the last, as long as the machine ran on: the system had its content.
    let opened = place.open().await;
    assert_eq!(load_all(&opened.store, 10).await.len(), 3);
    opened.store.close().await;
    // After a crash of the machine it may be what that left of a commit.
    place.options.boot = "another".to_owned();
    let opened = place.open().await;
    let queue = load_all(&opened.store, 10).await;
    let left: Vec<MessageId> = queue.iter().map(|r| r.id.message).collect();
    assert_eq!(left, ids[..2]);
    let found = opened.store.messages(ids.clone()).await.unwrap();
    let good = opened.store.content(&found[0]);
    assert_eq!(read_all(&*good, 9000).await.unwrap().len(), 5000);
    let bad = opened.store.content(&found[1]);
    let error = bad.read(0, 9000).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(error.to_string().contains("checksum"), "{error}");
    assert_eq!(opened.store.counts().await.unwrap().messages, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_are_recycled_and_given_back() {
    let place = Place::sqlite();
    let opened = place.open().await;
    let source = ids();
    let files = || {
        std::fs::read_dir(place.dir.path().join("segments"))
            .unwrap()
            .count()
    };
    let body = Bytes::from(pattern(50_000, 3));
    // Some thirty segments' worth passes through; three live messages at a time.
    let mut live = std::collections::VecDeque::new();
    for _ in 0..300 {
        let id = source.next(T0);
        let new = message(id, T0, &["a@x.example"], body.clone());
        opened.store.accept(new).await.unwrap();
        live.push_back(id);
        if live.len() > 3 {
            let id = live.pop_front().unwrap();
            let gone = delivered(&opened.store, recipient(id, 0), T0);
            opened.store.settle(vec![gone]).await.unwrap();
        }
    }
    assert!(files() <= 7, "{} segments", files());
    let opened = place.reopen(opened).await;
    for message in opened.store.messages(live.into()).await.unwrap() {
        let reader = opened.store.content(&message);
        assert!(read_all(&*reader, 1 << 20).await.unwrap() == body);
    }
}

/// What the process that is killed does: it accepts and settles without end, and prints
/// the id of each message that was acknowledged, and of each that is about to be settled.
async fn accept_until_killed(dir: &Path) {
    let (store, _) = tidegate_store::open("sqlite", dir, options())
        .await
        .unwrap();
    let start: i64 = std::env::var("TIDEGATE_CRASH_FROM")
        .unwrap()
        .parse()
        .unwrap();
    let source = Arc::new(ids());
    let at = tidegate_mail::Timestamp(T0.0 + start);
    let print = |word: &str, id: MessageId| {
        // One write, so that lines of several tasks do not mix.
        let line = format!("{word} {id}\n");
        io::stdout().write_all(line.as_bytes()).unwrap();
    };
    let mut tasks = Vec::new();
    for task in 0..8 {
        let (store, source) = (store.clone(), source.clone());
        tasks.push(tokio::spawn(async move {
            for n in 0.. {
                let id = source.next(at);
                let new = message(id, at, &["a@x.example"], pattern(5000, id.as_i64() as u8));
                store.accept(new).await.unwrap();
                print("accepted", id);
                if (n + task) % 3 == 0 {
                    print("settled", id);
                    let gone = delivered(&store, recipient(id, 0), at);
                    store.settle(vec![gone]).await.unwrap();
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_the_process_is_killed() {
    if let Ok(dir) = std::env::var("TIDEGATE_CRASH_DIR") {
        return accept_until_killed(Path::new(&dir)).await;
    }
    let this_test = "nothing_acknowledged_is_lost_when_the_process_is_killed";
    let place = Place::sqlite();
    let (mut accepted, mut settled) = (Vec::new(), std::collections::HashSet::new());
    for round in 0..8u32 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([this_test, "--exact", "--nocapture", "--test-threads=1"])
            .env("TIDEGATE_CRASH_DIR", place.dir.path())
            .env("TIDEGATE_CRASH_FROM", (round * 1000).to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Killed after a number of lines: no wait, and never at the same point.
        for _ in 0..(40 + round * 173) {
            let line = lines.next().expect("the child goes on").unwrap();
            note(&line, &mut accepted, &mut settled);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines.map_while(Result::ok) {
            note(&line, &mut accepted, &mut settled);
        }
        let opened = place.open().await;
        let queue: std::collections::HashSet<MessageId> = load_all(&opened.store, 1000)
            .await
            .iter()
            .map(|r| r.id.message)
            .collect();
        for id in &accepted {
            assert!(
                queue.contains(id) || settled.contains(id),
                "round {round}: {id} is lost"
            );
        }
        let ids: Vec<MessageId> = queue.iter().copied().collect();
        for message in opened.store.messages(ids).await.unwrap() {
            let reader = opened.store.content(&message);
            let content = read_all(&*reader, 1 << 20).await.unwrap();
            assert!(content == pattern(5000, message.id.as_i64() as u8));
        }
        let counts = opened.store.counts().await.unwrap();
        assert_eq!(counts.messages as usize, queue.len());
        opened.store.close().await;
    }
    assert!(accepted.len() > 1000, "{}", accepted.len());
}

fn note(
    line: &str,
    accepted: &mut Vec<MessageId>,
    settled: &mut std::collections::HashSet<MessageId>,
) {
    // The harness puts its own words before the first line.
    if let Some((_, id)) = line.rsplit_once("accepted ") {
        accepted.push(id.parse().unwrap());
    } else if let Some((_, id)) = line.rsplit_once("settled ") {
        settled.insert(id.parse().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_recipients_are_loaded_again() {
    let place = Place::sqlite();
    let opened = place.open().await;
    let source = ids();
    let to: Vec<String> = (0..1000)
        .map(|n| format!("p{n}@d{}.example", n % 50))
        .collect();
    let to: Vec<&str> = to.iter().map(String::as_str).collect();
    for _ in 0..100 {
        let id = source.next(T0);
        opened
            .store
            .accept(message(id, T0, &to, "text"))
            .await
            .unwrap();
        let later = settlement(
            &opened.store,
            recipient(id, 7),
            deferred(T0, 1),
            EventKind::Deferred,
            T0,
        );
        opened.store.settle(vec![later]).await.unwrap();
    }
    let opened = place.reopen(opened).await;
    let since = std::time::Instant::now();
    let queue = load_all(&opened.store, 10_000).await;
    let took = since.elapsed();
    assert_eq!(queue.len(), 100_000);
    assert!(queue.windows(2).all(|pair| pair[0].id < pair[1].id));
    assert_eq!(queue.iter().filter(|r| r.state.attempts == 1).count(), 100);
    // Equal names are one allocation.
    assert!(Arc::ptr_eq(&queue[0].domain, &queue[50].domain));
    // Generous: an unoptimised build on a busy machine.
    assert!(took.as_secs() < 20, "{took:?}");
}
