//! A DNS server of a few records, over UDP and TCP on the same port.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, MX, NS, TLSA, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use super::signer::Signer;

#[derive(Clone)]
enum Entry {
    Records(Vec<RData>),
    Code(ResponseCode),
    Silence,
    /// Over UDP only the truncation flag, over TCP the records.
    Truncated(Vec<RData>),
}

/// A running server. Names not told of do not exist.
pub struct Dns {
    pub address: SocketAddr,
    zone: Arc<Zone>,
    queries: Arc<AtomicUsize>,
}

impl Dns {
    pub async fn start() -> Dns {
        // The TCP port is taken first; the same number is free for UDP more often than not.
        let (tcp, udp) = loop {
            let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
                break (tcp, udp);
            }
        };
        let dns = Dns {
            address: tcp.local_addr().unwrap(),
            zone: Arc::default(),
            queries: Arc::default(),
        };
        let (zone, queries) = (dns.zone.clone(), dns.queries.clone());
        tokio::spawn(async move {
            let mut buffer = [0u8; 4096];
            while let Ok((len, from)) = udp.recv_from(&mut buffer).await {
                queries.fetch_add(1, Ordering::SeqCst);
                if let Some(answer) = answer(&zone, &buffer[..len], true) {
                    let _ = udp.send_to(&answer, from).await;
                }
            }
        });
        let zone = dns.zone.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                let zone = zone.clone();
                tokio::spawn(async move {
                    while let Ok(len) = stream.read_u16().await {
                        let mut query = vec![0; usize::from(len)];
                        stream.read_exact(&mut query).await?;
                        if let Some(answer) = answer(&zone, &query, false) {
                            stream.write_u16(answer.len() as u16).await?;
                            stream.write_all(&answer).await?;
                        }
                    }
                    std::io::Result::Ok(())
                });
            }
        });
        dns
    }

    /// Queries over UDP so far.
    pub fn queries(&self) -> usize {
        self.queries.load(Ordering::SeqCst)
    }

    fn set(&self, name: &str, kind: RecordType, entry: Entry) {
        let key = (format!("{name}."), kind);
        self.zone.lock().unwrap().entries.insert(key, entry);
    }

    fn add(&self, name: &str, kind: RecordType, data: RData) {
        let mut zone = self.zone.lock().unwrap();
        let entry = zone
            .entries
            .entry((format!("{name}."), kind))
            .or_insert(Entry::Records(Vec::new()));
        if let Entry::Records(records) | Entry::Truncated(records) = entry {
            records.push(data);
        }
    }

    /// `host` is `.` for a null MX.
    pub fn mx(&self, name: &str, preference: u16, host: &str) -> &Self {
        let mut exchange = Name::from_ascii(host).unwrap();
        exchange.set_fqdn(true);
        self.add(
            name,
            RecordType::MX,
            RData::MX(MX::new(preference, exchange)),
        );
        self
    }

    pub fn ip(&self, name: &str, address: &str) -> &Self {
        match address.parse().unwrap() {
            std::net::IpAddr::V4(v4) => self.add(name, RecordType::A, RData::A(A(v4))),
            std::net::IpAddr::V6(v6) => self.add(name, RecordType::AAAA, RData::AAAA(AAAA(v6))),
        }
        self
    }

    /// The texts at the name, in place of those that were there.
    pub fn txt(&self, name: &str, texts: &[&str]) -> &Self {
        let texts = texts
            .iter()
            .map(|text| RData::TXT(TXT::new(vec![(*text).to_owned()])))
            .collect();
        self.set(name, RecordType::TXT, Entry::Records(texts));
        self
    }

    /// A TLSA record for a port of a host.
    pub fn tlsa(&self, host: &str, port: u16, numbers: [u8; 3], data: &[u8]) -> &Self {
        let [usage, selector, matching] = numbers;
        let tlsa = TLSA::new(
            usage.into(),
            selector.into(),
            matching.into(),
            data.to_vec(),
        );
        let name = format!("_{port}._tcp.{host}");
        self.add(&name, RecordType::TLSA, RData::TLSA(tlsa));
        self
    }

    pub fn cname(&self, name: &str, target: &str) -> &Self {
        let mut target = Name::from_ascii(target).unwrap();
        target.set_fqdn(true);
        self.add(name, RecordType::CNAME, RData::CNAME(CNAME(target)));
        self
    }

    /// Answers whose every name is this one or below it are secure, for those who ask.
    pub fn secure(&self, domain: &str) -> &Self {
        let suffix = format!("{domain}.");
        self.zone.lock().unwrap().secure.push(suffix);
        self
    }

    /// Signs secure answers, and proves what is not there.
    pub fn signs(&self, signer: Signer) -> &Self {
        self.zone.lock().unwrap().signer = Some(signer);
        self
    }

    /// Signs what is said of this name and type with another key.
    pub fn forges(&self, name: &str, kind: RecordType) -> &Self {
        self.zone.lock().unwrap().forged = Some((format!("{name}."), kind, Signer::new()));
        self
    }

    /// The name is that of a zone.
    pub fn delegates(&self, name: &str) -> &Self {
        let server = Name::from_ascii("ns.test.").unwrap();
        self.add(name, RecordType::NS, RData::NS(NS(server)));
        self
    }

    /// Takes the record away.
    pub fn forget(&self, name: &str, kind: RecordType) -> &Self {
        let key = (format!("{name}."), kind);
        self.zone.lock().unwrap().entries.remove(&key);
        self
    }

    /// Whether the name was asked about.
    pub fn asked(&self, name: &str, kind: RecordType) -> bool {
        let key = (format!("{name}."), kind);
        self.zone.lock().unwrap().asked.contains(&key)
    }

    pub fn fails(&self, name: &str, kind: RecordType) -> &Self {
        self.set(name, kind, Entry::Code(ResponseCode::ServFail));
        self
    }

    pub fn silent(&self, name: &str, kind: RecordType) -> &Self {
        self.set(name, kind, Entry::Silence);
        self
    }

    pub fn truncated(&self, name: &str, kind: RecordType) -> &Self {
        self.set(name, kind, Entry::Truncated(Vec::new()));
        self
    }
}

#[derive(Default)]
struct Records {
    entries: HashMap<(String, RecordType), Entry>,
    secure: Vec<String>,
    asked: Vec<(String, RecordType)>,
    signer: Option<Signer>,
    forged: Option<(String, RecordType, Signer)>,
}

impl Records {
    fn is_secure(&self, name: &str) -> bool {
        self.secure
            .iter()
            .any(|suffix| name == suffix || name.ends_with(&format!(".{suffix}")))
    }
}

type Zone = Mutex<Records>;

fn answer(zone: &Zone, query: &[u8], udp: bool) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).ok()?;
    let question = query.queries.first()?.clone();
    let kind = question.query_type();
    let mut owner = question.name().clone();
    let mut name = owner.to_ascii().to_ascii_lowercase();
    let mut zone = zone.lock().unwrap();
    zone.asked.push((name.clone(), kind));
    let mut answer = Message::response(query.metadata.id, OpCode::Query);
    answer.metadata.recursion_available = true;
    answer.add_query(question.clone());
    let mut secure = zone.is_secure(&name);
    for _ in 0..8 {
        let alias = match zone.entries.get(&(name.clone(), RecordType::CNAME)) {
            Some(Entry::Records(records)) if kind != RecordType::CNAME => records[0].clone(),
            _ => break,
        };
        let RData::CNAME(CNAME(target)) = &alias else {
            break;
        };
        let target = target.clone();
        answer.add_answer(Record::from_rdata(owner, 300, alias));
        name = target.to_ascii().to_ascii_lowercase();
        owner = target;
        secure &= zone.is_secure(&name);
    }
    let records = match zone.entries.get(&(name.clone(), kind)) {
        Some(Entry::Records(records)) => records.as_slice(),
        Some(Entry::Code(code)) => {
            answer.metadata.response_code = *code;
            &[]
        }
        Some(Entry::Silence) => return None,
        Some(Entry::Truncated(_)) if udp => {
            answer.metadata.truncation = true;
            &[]
        }
        Some(Entry::Truncated(records)) => records.as_slice(),
        None => {
            if !zone.entries.keys().any(|(known, _)| *known == name) && zone.signer.is_none() {
                answer.metadata.response_code = ResponseCode::NXDomain;
            }
            &[]
        }
    };
    for data in records {
        answer.add_answer(Record::from_rdata(owner.clone(), 300, data.clone()));
    }
    // RFC 6840 s. 5.7, 5.8: only who asks is told.
    let wants = query.edns.as_ref().is_some_and(|e| e.flags().dnssec_ok);
    answer.metadata.authentic_data = secure && (wants || query.metadata.authentic_data);
    let forger = zone
        .forged
        .as_ref()
        .filter(|(of, about, _)| *of == name && *about == kind)
        .map(|(_, _, signer)| signer);
    if let Some(signer) = forger.or(zone.signer.as_ref())
        && wants
    {
        signer.sign(&mut answer, &owner, kind, secure);
    }
    answer.to_vec().ok()
}
