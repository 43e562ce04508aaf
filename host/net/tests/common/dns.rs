//! A DNS server of a few records, over UDP and TCP on the same port.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, MX};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

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
    zone: Arc<Mutex<HashMap<(String, RecordType), Entry>>>,
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
        self.zone.lock().unwrap().insert(key, entry);
    }

    fn add(&self, name: &str, kind: RecordType, data: RData) {
        let mut zone = self.zone.lock().unwrap();
        let entry = zone
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

type Zone = Mutex<HashMap<(String, RecordType), Entry>>;

fn answer(zone: &Zone, query: &[u8], udp: bool) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).ok()?;
    let question = query.queries.first()?.clone();
    let name = question.name().to_ascii().to_ascii_lowercase();
    let zone = zone.lock().unwrap();
    let mut answer = Message::response(query.metadata.id, OpCode::Query);
    answer.metadata.recursion_available = true;
    answer.add_query(question.clone());
    let records = match zone.get(&(name.clone(), question.query_type())) {
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
            if !zone.keys().any(|(known, _)| *known == name) {
                answer.metadata.response_code = ResponseCode::NXDomain;
            }
            &[]
        }
    };
    for data in records {
        answer.add_answer(Record::from_rdata(
            question.name().clone(),
            300,
            data.clone(),
        ));
    }
    answer.to_vec().ok()
}
