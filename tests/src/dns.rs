//! An authoritative name server over UDP and TCP, with zones that a test changes as it runs.
//!
//! Answers carry a TTL of one second. A name that is not in the zone does not exist. It knows no
//! delegation; of DNSSEC it knows what a validating server says of its answers, the AD bit.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, MX, SOA, TLSA, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

const TTL: u32 = 1;

/// What the server does with questions about a name.
#[derive(Clone, Debug)]
enum Entry {
    Records(Vec<RData>),
    Fails(ResponseCode),
    Silent,
}

#[derive(Default)]
struct Zone {
    names: HashMap<String, Entry>,
    /// For every name not listed: a lean stand-in for a whole world of domains.
    otherwise: Option<Vec<RData>>,
    /// Answers about these domains and all below them are secure.
    secure: Vec<String>,
    asked: u64,
}

/// Stops when dropped.
pub struct Dns {
    address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    stop: Arc<AtomicBool>,
}

impl Dns {
    /// Listens on one free port of 127.0.0.1 for both transports.
    pub fn start() -> anyhow::Result<Dns> {
        let (tcp, udp) = both_transports().context("name server")?;
        let address = udp.local_addr()?;
        let dns = Dns {
            address,
            zone: Arc::default(),
            stop: Arc::default(),
        };
        udp.set_read_timeout(Some(Duration::from_millis(200)))?;
        let (zone, stop) = (dns.zone.clone(), dns.stop.clone());
        std::thread::spawn(move || serve_udp(&udp, &zone, &stop));
        let (zone, stop) = (dns.zone.clone(), dns.stop.clone());
        std::thread::spawn(move || serve_tcp(&tcp, &zone, &stop));
        Ok(dns)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many questions were asked so far.
    pub fn asked(&self) -> u64 {
        self.zone().asked
    }

    /// Adds an MX record; the host's address is a matter of [`Dns::host`].
    pub fn mx(&self, domain: &str, preference: u16, host: &str) -> &Self {
        self.add(domain, RData::MX(MX::new(preference, name(host))))
    }

    /// RFC 7505: the domain takes no mail.
    pub fn null_mx(&self, domain: &str) -> &Self {
        self.add(domain, RData::MX(MX::new(0, Name::root())))
    }

    /// Adds an address record.
    pub fn host(&self, host: &str, address: impl Into<IpAddr>) -> &Self {
        self.add(host, address_record(address.into()))
    }

    pub fn txt(&self, host: &str, text: &str) -> &Self {
        self.add(host, RData::TXT(TXT::new(vec![text.to_owned()])))
    }

    /// From here on answers about the domain and all below it are secure, for those who ask.
    pub fn secure(&self, domain: &str) -> &Self {
        self.zone().secure.push(key(domain));
        self
    }

    /// A TLSA record for a port of a host: usage, selector, matching type and data.
    pub fn tlsa(&self, host: &str, port: u16, numbers: [u8; 3], data: &[u8]) -> &Self {
        let [usage, selector, matching] = numbers;
        let data = data.to_vec();
        let tlsa = TLSA::new(usage.into(), selector.into(), matching.into(), data);
        self.add(&format!("_{port}._tcp.{host}"), RData::TLSA(tlsa))
    }

    pub fn cname(&self, alias: &str, target: &str) -> &Self {
        self.add(alias, RData::CNAME(CNAME(name(target))))
    }

    /// The name exists, without any record of interest.
    pub fn empty(&self, domain: &str) -> &Self {
        self.zone()
            .names
            .insert(key(domain), Entry::Records(Vec::new()));
        self
    }

    /// Every question about the name yields SERVFAIL.
    pub fn servfail(&self, domain: &str) -> &Self {
        self.zone()
            .names
            .insert(key(domain), Entry::Fails(ResponseCode::ServFail));
        self
    }

    /// No question about the name is answered.
    pub fn silent(&self, domain: &str) -> &Self {
        self.zone().names.insert(key(domain), Entry::Silent);
        self
    }

    /// Forgets the name: NXDOMAIN from here on.
    pub fn remove(&self, domain: &str) -> &Self {
        self.zone().names.remove(&key(domain));
        self
    }

    /// Every other name is a host at this address, so an implicit MX.
    pub fn every_other_name(&self, address: impl Into<IpAddr>) -> &Self {
        self.zone().otherwise = Some(vec![address_record(address.into())]);
        self
    }

    fn add(&self, host: &str, data: RData) -> &Self {
        {
            let mut zone = self.zone();
            match zone
                .names
                .entry(key(host))
                .or_insert(Entry::Records(Vec::new()))
            {
                Entry::Records(records) => records.push(data),
                fault => *fault = Entry::Records(vec![data]),
            }
        }
        self
    }

    fn zone(&self) -> std::sync::MutexGuard<'_, Zone> {
        self.zone.lock().expect("no holder panics")
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread in accept(2).
        drop(TcpStream::connect_timeout(
            &self.address,
            Duration::from_millis(200),
        ));
    }
}

fn both_transports() -> std::io::Result<(TcpListener, UdpSocket)> {
    let mut tries = 0;
    loop {
        let tcp = TcpListener::bind("127.0.0.1:0")?;
        match UdpSocket::bind(tcp.local_addr()?) {
            Ok(udp) => return Ok((tcp, udp)),
            Err(error) if tries == 20 => return Err(error),
            Err(_) => tries += 1,
        }
    }
}

fn key(host: &str) -> String {
    host.trim_end_matches('.').to_ascii_lowercase()
}

fn name(host: &str) -> Name {
    let mut name = Name::from_ascii(host).expect("a domain name");
    name.set_fqdn(true);
    name
}

fn address_record(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(v4) => RData::A(A(v4)),
        IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
    }
}

fn serve_udp(socket: &UdpSocket, zone: &Mutex<Zone>, stop: &AtomicBool) {
    let mut packet = [0; 4096];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((length, peer)) = socket.recv_from(&mut packet)
            && let Some(reply) = answer(&packet[..length], zone)
        {
            // A peer that went away is its own affair.
            let _ = socket.send_to(&reply, peer);
        }
    }
}

fn serve_tcp(listener: &TcpListener, zone: &Arc<Mutex<Zone>>, stop: &AtomicBool) {
    for stream in listener.incoming() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        if let Ok(stream) = stream {
            let zone = zone.clone();
            std::thread::spawn(move || serve_stream(stream, &zone));
        }
    }
}

fn serve_stream(mut stream: TcpStream, zone: &Mutex<Zone>) -> Option<()> {
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .ok()?;
    loop {
        let mut length = [0; 2];
        stream.read_exact(&mut length).ok()?;
        let mut packet = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut packet).ok()?;
        if let Some(reply) = answer(&packet, zone) {
            let mut framed = u16::try_from(reply.len()).ok()?.to_be_bytes().to_vec();
            framed.extend(reply);
            stream.write_all(&framed).ok()?;
        }
    }
}

fn answer(packet: &[u8], zone: &Mutex<Zone>) -> Option<Vec<u8>> {
    let request = Message::from_vec(packet).ok()?;
    let query = request.queries.first()?.clone();
    let mut reply = Message::new(request.metadata.id, MessageType::Response, OpCode::Query);
    reply.metadata.authoritative = true;
    reply.metadata.recursion_desired = request.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.add_query(query.clone());

    let mut zone = zone.lock().expect("no holder panics");
    zone.asked += 1;
    let asked = key(&query.name().to_ascii());
    // RFC 6840 s. 5.7: only who asks is told.
    reply.metadata.authentic_data = request.metadata.authentic_data
        && zone.secure.iter().any(|domain| {
            asked
                .strip_suffix(domain.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        });
    let mut owner = query.name().clone();
    // Follows aliases, but not in circles.
    for _ in 0..8 {
        let records = match zone.names.get(&key(&owner.to_ascii())) {
            Some(Entry::Silent) => return None,
            Some(Entry::Fails(code)) => {
                reply.metadata.response_code = *code;
                return reply.to_vec().ok();
            }
            Some(Entry::Records(records)) => records,
            None => match &zone.otherwise {
                Some(records) => records,
                None => {
                    reply.metadata.response_code = ResponseCode::NXDomain;
                    break;
                }
            },
        };
        let mut alias = None;
        for data in records {
            match data {
                RData::CNAME(target) if query.query_type() != RecordType::CNAME => {
                    alias = Some(target.0.clone());
                }
                data if data.record_type() == query.query_type() => {}
                _ => continue,
            }
            reply.add_answer(Record::from_rdata(owner.clone(), TTL, data.clone()));
        }
        match alias {
            Some(target) => owner = target,
            None => break,
        }
    }
    if !reply
        .answers
        .iter()
        .any(|record| record.record_type() == query.query_type())
    {
        // Negative answers are cached for as long as the SOA says (RFC 2308).
        let soa = SOA::new(name("ns.test"), name("hostmaster.test"), 1, 60, 60, 60, TTL);
        reply.add_authority(Record::from_rdata(owner.base_name(), TTL, RData::SOA(soa)));
    }
    reply.to_vec().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::Query;

    fn ask(server: SocketAddr, host: &str, kind: RecordType) -> Message {
        let mut query = Message::query();
        query.add_query(Query::query(name(host), kind));
        let bytes = query.to_vec().unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        udp.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        udp.send_to(&bytes, server).unwrap();
        let mut packet = [0; 512];
        let length = udp.recv(&mut packet).unwrap();
        let over_udp = Message::from_vec(&packet[..length]).unwrap();

        let mut tcp = TcpStream::connect(server).unwrap();
        let mut framed = (bytes.len() as u16).to_be_bytes().to_vec();
        framed.extend(&bytes);
        tcp.write_all(&framed).unwrap();
        let mut length = [0; 2];
        tcp.read_exact(&mut length).unwrap();
        let mut packet = vec![0; u16::from_be_bytes(length).into()];
        tcp.read_exact(&mut packet).unwrap();
        assert_eq!(Message::from_vec(&packet).unwrap(), over_udp);
        over_udp
    }

    #[test]
    fn answers_what_the_zone_says() {
        let dns = Dns::start().unwrap();
        dns.mx("example.test", 10, "mx.example.test")
            .host("mx.example.test", [127, 0, 0, 2])
            .cname("alias.test", "mx.example.test")
            .null_mx("silent.test")
            .servfail("broken.test");
        let at = dns.address();

        let reply = ask(at, "Example.TEST", RecordType::MX);
        assert!(matches!(&reply.answers[0].data, RData::MX(mx) if mx.preference == 10));
        let reply = ask(at, "alias.test", RecordType::A);
        assert_eq!(reply.answers.len(), 2);
        let reply = ask(at, "mx.example.test", RecordType::AAAA);
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
        assert!(reply.answers.is_empty() && reply.authorities.len() == 1);
        let reply = ask(at, "silent.test", RecordType::MX);
        assert!(matches!(&reply.answers[0].data, RData::MX(mx) if mx.exchange.is_root()));
        let reply = ask(at, "broken.test", RecordType::MX);
        assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
        let reply = ask(at, "nowhere.test", RecordType::MX);
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
        dns.every_other_name([127, 0, 0, 9]);
        let reply = ask(at, "nowhere.test", RecordType::A);
        assert_eq!(reply.answers.len(), 1);
    }
}
