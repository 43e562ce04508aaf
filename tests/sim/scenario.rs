//! One gateway in one world: submit, let time pass, crash, look.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use tidegate_mail::header::HeaderBlock;
use tidegate_mail::{Address, BodyType, Envelope, MessageId, Notify, Recipient, Reply, Timestamp};
use tidegate_queue::directory::{Relay, Server, Tenant, Way};
use tidegate_queue::*;

use crate::clock::SimClock;
use crate::crash::{Crash, FaultyStore};
use crate::world::{ByName, World};

/// A relay with several source addresses.
pub const POOL: &str = "pool";

pub const START: Timestamp = Timestamp::from_secs(1_795_489_500);

pub struct Scenario {
    pub clock: Arc<SimClock>,
    pub world: Arc<World>,
    engine: Option<Arc<Engine>>,
    pub crash: Arc<Crash>,
    settings: Settings,
    policy: Arc<dyn Policy>,
    directory: Arc<ArcSwap<Directory>>,
    /// What the exporters of the settings were given.
    pub exported: Arc<Exported>,
    dir: tempfile::TempDir,
}

/// First and last number of a batch.
type Bounds = (u64, u64);

/// A receiver of exported events; it survives the gateway's crashes.
#[derive(Default)]
pub struct Exported(Mutex<Receiver>);

#[derive(Default)]
struct Receiver {
    taken: Vec<Bounds>,
    tried: Vec<Bounds>,
    refused: BTreeSet<u64>,
    busy: bool,
}

impl Exported {
    fn lock(&self) -> std::sync::MutexGuard<'_, Receiver> {
        self.0.lock().expect("no test panics while holding it")
    }

    /// The batches that were taken, in order.
    pub fn batches(&self) -> Vec<Bounds> {
        self.lock().taken.clone()
    }

    /// Every batch that was handed over.
    pub fn tried(&self) -> Vec<Bounds> {
        self.lock().tried.clone()
    }

    /// From here on no batch with one of these is taken.
    pub fn refuse(&self, numbers: &[u64]) {
        self.lock().refused = numbers.iter().copied().collect();
    }

    /// Nothing is taken while it is.
    pub fn busy(&self, busy: bool) {
        self.lock().busy = busy;
    }
}

impl Sink for Exported {
    fn deliver(&self, batch: ExportBatch) -> Fut<'_, Result<(), SinkError>> {
        let mut receiver = self.lock();
        let bounds = (batch.first, batch.last);
        receiver.tried.push(bounds);
        let error = SinkError::for_now("log", "not taken");
        let answer = if receiver.busy {
            Err(error)
        } else if receiver
            .refused
            .range(batch.first..=batch.last)
            .next()
            .is_some()
        {
            let again = Again::Never;
            Err(SinkError { again, ..error })
        } else {
            receiver.taken.push(bounds);
            Ok(())
        };
        Box::pin(std::future::ready(answer))
    }

    fn place(&self) -> String {
        "the test".to_owned()
    }

    fn knows_batches(&self) -> bool {
        true
    }
}

/// A submission in a few words.
pub struct Mail<'a> {
    /// Empty: the null reverse-path.
    pub from: &'a str,
    pub to: &'a [(&'a str, Notify)],
    pub headers: &'a str,
    /// `None`: one with the queue id.
    pub subject: Option<&'a str>,
    pub bulk: bool,
}

impl Scenario {
    pub async fn new() -> Self {
        Scenario::with(Settings::default(), Arc::new(ByName::default())).await
    }

    pub async fn with(mut settings: Settings, policy: Arc<dyn Policy>) -> Self {
        settings.hostname = "gateway.test".into();
        let clock = Arc::new(SimClock::new(START));
        let dir = tempfile::tempdir().expect("a temporary directory");
        let crash = Arc::new(Crash::default());
        let world = World::new(clock.clone(), crash.clone());
        let exported = Arc::new(Exported::default());
        let directory = Arc::new(ArcSwap::from_pointee(directory(false)));
        let mut scenario = Scenario {
            clock,
            world,
            engine: None,
            crash,
            settings,
            policy,
            directory,
            exported,
            dir,
        };
        scenario.open().await.expect("the engine opens");
        scenario
    }

    pub fn engine(&self) -> &Arc<Engine> {
        self.engine.as_ref().expect("the gateway runs")
    }

    pub fn store(&self) -> Arc<dyn Store> {
        self.engine().store().clone()
    }

    /// Throws the gateway's memory away and starts it again on what is on the disk.
    pub async fn restart(&mut self) {
        self.crash.disarm();
        self.open().await.expect("the engine opens");
    }

    /// The same with the planned crash still to come, which may be within the start.
    pub async fn restart_armed(&mut self) {
        if self.open().await.is_err() {
            assert!(self.crash.happened());
            self.restart().await;
        }
    }

    async fn open(&mut self) -> StoreResult<()> {
        self.engine = None;
        let store = FaultyStore::open(self.dir.path().into(), self.crash.clone()).await;
        let mut sinks: HashMap<String, Arc<dyn Sink>> = HashMap::new();
        for name in &self.settings.exporters {
            sinks.insert(name.clone(), self.exported.clone());
        }
        let engine = Engine::open(Parts {
            settings: self.settings.clone(),
            store,
            clock: self.clock.clone(),
            resolver: self.world.clone(),
            transport: self.world.clone(),
            policy: self.policy.clone(),
            sinks,
            directory: self.directory.clone(),
            unseal: Arc::new(|_| None),
            node: 0,
        })
        .await?;
        self.engine = Some(engine);
        Ok(())
    }

    /// Another directory, as after a change by an operator.
    pub fn put_directory(&self, change: impl FnOnce(&mut Tenant, &mut Vec<Relay>)) {
        self.directory
            .store(Arc::new(directory_with(false, change)));
        self.engine().directory_changed();
    }

    /// Suspends the tenant's bulk mail.
    pub fn suspend_bulk(&self) {
        self.directory.store(Arc::new(directory(true)));
    }

    pub async fn submit(&self, mail: Mail<'_>) -> (MessageId, Reply) {
        self.submit_with(mail, |_| {}).await
    }

    /// The envelope may be changed before it is submitted.
    pub async fn submit_with(
        &self,
        mail: Mail<'_>,
        change: impl FnOnce(&mut Envelope),
    ) -> (MessageId, Reply) {
        let (id, text) = self.content(&mail);
        let content = Content::Memory(Bytes::from(text.clone()));
        self.submit_content(id, mail, &text, content, change).await
    }

    /// The same with a content that streams into the store as it arrives.
    pub async fn submit_streamed(&self, mail: Mail<'_>) -> StoreResult<(MessageId, Reply)> {
        let (id, text) = self.content(&mail);
        let mut writer = self.store().content_writer().await?;
        for piece in text.as_bytes().chunks(50) {
            writer.append(Bytes::copy_from_slice(piece)).await?;
        }
        let content = writer.finish().await?;
        let submitted = self.submit_content(id, mail, &text, content, |_| {});
        Ok(submitted.await)
    }

    fn content(&self, mail: &Mail<'_>) -> (MessageId, String) {
        let id = self.engine().new_id();
        let subject = match mail.subject {
            Some(subject) => subject.to_owned(),
            None => format!("sim {id}"),
        };
        let text = format!(
            "From: <{}>\r\nSubject: {subject}\r\nMessage-ID: <{id}@crm.test>\r\n{}\r\nhello {id}\r\n",
            mail.from, mail.headers
        );
        (id, text)
    }

    async fn submit_content(
        &self,
        id: MessageId,
        mail: Mail<'_>,
        text: &str,
        content: Content,
        change: impl FnOnce(&mut Envelope),
    ) -> (MessageId, Reply) {
        let mut submission = Submission {
            id,
            tenant: "acme".into(),
            origin: Origin::default(),
            bulk: mail.bulk,
            envelope: Envelope {
                reverse_path: (!mail.from.is_empty())
                    .then(|| Address::parse(mail.from).expect("a valid sender")),
                envid: None,
                ret: None,
                body: BodyType::SevenBit,
                smtputf8: false,
                requiretls: false,
                tls_optional: false,
                recipients: mail
                    .to
                    .iter()
                    .map(|(address, notify)| Recipient {
                        address: Address::parse(address).expect("a valid recipient"),
                        notify: *notify,
                        original: None,
                    })
                    .collect(),
            },
            header: HeaderBlock::parse(text.as_bytes()),
            content,
        };
        change(&mut submission.envelope);
        (id, self.engine().submit(submission).await)
    }

    /// Lets time pass until `end`, step by step; returns the number of steps.
    pub async fn run_until(&self, end: Timestamp) -> u32 {
        let mut steps = 0;
        loop {
            let now = self.clock.now();
            let next = self.engine().run_due(now).await;
            steps += 1;
            assert!(steps < 200_000, "time does not move on");
            if self.crash.happened() || next >= end {
                self.clock.set(end.max(now));
                return steps;
            }
            self.clock.set(next.max(now.plus(Duration::from_millis(1))));
        }
    }

    pub async fn pass(&self, time: Duration) -> u32 {
        self.run_until(self.clock.now().plus(time)).await
    }
}

fn directory(bulk_suspended: bool) -> Directory {
    directory_with(bulk_suspended, |_, _| {})
}

fn directory_with(
    bulk_suspended: bool,
    change: impl FnOnce(&mut Tenant, &mut Vec<Relay>),
) -> Directory {
    let mut tenant = Tenant {
        id: "acme".into(),
        domains: vec!["acme.test".into()],
        relays: vec![],
        suspended: false,
        bulk_suspended,
        wording: None,
        record_inputs: true,
        bulk_quota: None,
    };
    let server = Server {
        tenant: "acme".into(),
        name: "own".into(),
        host: "own-server.test".into(),
        port: 25,
        tls: TlsMode::None,
        user: None,
        sealed_password: None,
    };
    let pool = Relay {
        name: POOL.into(),
        way: Way::Mx {
            sources: ["192.0.2.101", "192.0.2.102", "192.0.2.103"]
                .map(|ip| ip.parse().expect("an address"))
                .to_vec(),
        },
    };
    let mut relays = vec![pool];
    change(&mut tenant, &mut relays);
    Directory::new(vec![tenant], vec![], vec![server], relays)
}
