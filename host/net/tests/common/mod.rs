//! Peers for the client's tests: SMTP servers that misbehave on purpose, a small DNS,
//! certificates, and jobs.
#![allow(dead_code)] // Each test file uses a part.

pub mod certs;
pub mod dns;
pub mod https;
pub mod peer;
pub mod signer;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidegate_mail::{Address, BodyType, Notify, Outcome, Recipient};
use tidegate_net::clock::OsClock;
use tidegate_net::resolver::{DnsConfig, DnsResolver};
use tidegate_net::smtp::{Smtp, SmtpConfig, Timeouts};
use tidegate_queue::ports::{
    Destination, Endpoint, HandOff, Job, JobRecipient, MxHost, Target, TlsMode, Transport,
};

/// Long enough for a slow machine, short enough for a test that waits for it.
pub const SHORT: Duration = Duration::from_millis(400);

pub fn timeouts() -> Timeouts {
    let long = Duration::from_secs(20);
    Timeouts {
        connect: long,
        tls: long,
        opening: long,
        attempt: long,
        banner: long,
        ehlo: long,
        mail: long,
        rcpt: long,
        envelope: long,
        data: long,
        block: long,
        content: long,
        dot: long,
    }
}

pub fn config(port: u16) -> SmtpConfig {
    let mut config = SmtpConfig::new("gate.example");
    config.mx_port = port;
    config.allow_private = true;
    config.timeouts = timeouts();
    config
}

/// A resolver whose server does not exist; for targets that need none.
pub fn no_dns() -> Arc<DnsResolver> {
    dns_at("127.0.0.1:9".parse().unwrap())
}

pub fn dns_at(server: SocketAddr) -> Arc<DnsResolver> {
    let config = DnsConfig {
        servers: vec![server],
        timeout: SHORT,
        attempts: 1,
        ..DnsConfig::default()
    };
    Arc::new(DnsResolver::new(config, Arc::new(OsClock)).unwrap())
}

pub fn smtp(config: SmtpConfig) -> Smtp {
    Smtp::new(config, no_dns(), Arc::new(OsClock)).unwrap()
}

pub fn loopback(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, last))
}

/// MX hosts `mx1.example`, `mx2.example`... at these addresses.
pub fn mx(addresses: &[IpAddr]) -> Target {
    let hosts = addresses
        .iter()
        .enumerate()
        .map(|(n, ip)| MxHost::new(format!("mx{}.example", n + 1), 10, vec![*ip]))
        .collect();
    Target::Mx(Arc::new(Destination {
        domain: "example".to_owned(),
        site: "example".into(),
        hosts,
        valid_until: tidegate_mail::Timestamp::FAR_FUTURE,
    }))
}

pub fn endpoint(port: u16, tls: TlsMode) -> Endpoint {
    Endpoint {
        host: "127.0.0.1".to_owned(),
        port,
        tls,
        auth: None,
        allow_private: true,
        of_tenant: true,
    }
}

pub fn recipient(address: &str) -> Recipient {
    Recipient {
        address: Address::parse(address).unwrap(),
        notify: Notify::Absent,
        original: None,
    }
}

/// A job for these recipients at 127.0.0.1.
pub fn job(recipients: &[&str]) -> Job {
    Job {
        target: mx(&[loopback(1)]),
        reverse_path: Some(Address::parse("crm@sender.example").unwrap()),
        envid: None,
        ret: None,
        body: BodyType::SevenBit,
        smtputf8: false,
        requiretls: false,
        tls_optional: false,
        content: Arc::new(Bytes::from_static(b"Subject: hi\r\n\r\nHello.\r\n")),
        recipients: recipients
            .iter()
            .enumerate()
            .map(|(n, address)| JobRecipient {
                index: n as u32 * 10,
                recipient: recipient(address),
            })
            .collect(),
        source: None,
        messages_per_connection: 100,
    }
}

/// Delivers, and checks what is true of every answer.
pub async fn deliver(smtp: &Smtp, job: Job) -> HandOff {
    let indexes: Vec<u32> = job.recipients.iter().map(|r| r.index).collect();
    let limit = Duration::from_secs(60);
    let done = tokio::time::timeout(limit, smtp.deliver(job))
        .await
        .expect("a delivery ends");
    let answered: Vec<u32> = done.results.iter().map(|r| r.index).collect();
    assert_eq!(answered, indexes, "one result each, in order");
    done
}

/// `verdict stage status text` of each recipient.
pub fn summary(done: &HandOff) -> Vec<String> {
    done.results.iter().map(|r| line(&r.outcome)).collect()
}

pub fn line(o: &Outcome) -> String {
    let said = match (&o.reply, o.fault) {
        (_, Some(fault)) => format!("{fault:?}"),
        (Some(reply), None) => reply.code.to_string(),
        (None, None) => "-".to_owned(),
    };
    format!("{:?} {} {} {said}", o.verdict, o.stage.as_str(), o.status)
}

/// A certificate for these names, signed by itself: server configuration and PEM.
pub fn certificate(names: &[&str]) -> (Arc<rustls::ServerConfig>, String) {
    let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    (Arc::new(config), made.cert.pem())
}
