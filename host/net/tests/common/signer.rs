//! Signs the answers of a DNS server as if all names were in the root zone.

use std::path::Path;
use std::time::{Duration, SystemTime};

use base64::Engine;
use hickory_proto::dnssec::crypto::EcdsaSigningKey;
use hickory_proto::dnssec::rdata::sig::SigInput;
use hickory_proto::dnssec::rdata::{DNSKEY, DNSSECRData, NSEC, RRSIG};
use hickory_proto::dnssec::{Algorithm, DnssecSigner, PublicKey, SigningKey, TBS};
use hickory_proto::op::Message;
use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType, SerialNumber};

pub struct Signer(DnssecSigner);

const ALGORITHM: Algorithm = Algorithm::ECDSAP256SHA256;

impl Signer {
    pub fn new() -> Signer {
        let der = EcdsaSigningKey::generate_pkcs8(ALGORITHM).unwrap();
        let key = EcdsaSigningKey::from_pkcs8(&der, ALGORITHM).unwrap();
        let dnskey = DNSKEY::from_key(&key.to_public_key().unwrap());
        let day = Duration::from_secs(86_400);
        Signer(DnssecSigner::new(dnskey, Box::new(key), Name::root(), day))
    }

    /// Writes the key as a trust anchor.
    pub fn write_anchor(&self, file: &Path) {
        let key = self.0.key().to_public_key().unwrap();
        let key = base64::engine::general_purpose::STANDARD.encode(key.public_bytes());
        std::fs::write(file, format!(". 3600 IN DNSKEY 257 3 13 {key}\n")).unwrap();
    }

    fn signature(&self, set: &[Record]) -> Record {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_secs() as u32;
        let first = &set[0];
        let input = SigInput {
            type_covered: first.record_type(),
            algorithm: ALGORITHM,
            num_labels: first.name.num_labels(),
            original_ttl: first.ttl,
            sig_expiration: SerialNumber::new(now + 3600),
            sig_inception: SerialNumber::new(now - 3600),
            key_tag: self.0.calculate_key_tag().unwrap(),
            signer_name: Name::root(),
        };
        let tbs = TBS::from_input(&first.name, DNSClass::IN, &input, set.iter()).unwrap();
        let rrsig = RRSIG::from_sig(input, self.0.sign(&tbs).unwrap());
        let data = RData::DNSSEC(DNSSECRData::RRSIG(rrsig));
        Record::from_rdata(first.name.clone(), first.ttl, data)
    }

    fn signed(&self, records: Vec<Record>) -> Vec<Record> {
        let mut out = Vec::new();
        for set in records.chunk_by(|a, b| a.name == b.name && a.record_type() == b.record_type()) {
            out.extend_from_slice(set);
            out.push(self.signature(set));
        }
        out
    }

    /// Adds signatures where `secure` says so, the zone's key, and proofs of what is not there.
    pub fn sign(&self, answer: &mut Message, owner: &Name, kind: RecordType, secure: bool) {
        if kind == RecordType::DNSKEY && owner.is_root() {
            let data = RData::DNSSEC(DNSSECRData::DNSKEY(self.0.dnskey().clone()));
            answer.add_answer(Record::from_rdata(Name::root(), 300, data));
        }
        let delegation = kind == RecordType::DS && !secure;
        if !answer.answers.is_empty() {
            if secure || owner.is_root() {
                answer.answers = self.signed(std::mem::take(&mut answer.answers));
            }
        } else if secure || delegation {
            // Nothing else at this name, and nothing between it and the next.
            let next = Name::from_labels(
                std::iter::once(&b"\0"[..])
                    .chain(owner.iter())
                    .map(<[u8]>::to_vec),
            )
            .unwrap();
            let types = delegation.then_some(RecordType::NS);
            let nsec = RData::DNSSEC(DNSSECRData::NSEC(NSEC::new_cover_self(next, types)));
            let soa = SOA::new(Name::root(), Name::root(), 1, 60, 60, 60, 300);
            answer.authorities = self.signed(vec![
                Record::from_rdata(Name::root(), 300, RData::SOA(soa)),
                Record::from_rdata(owner.clone(), 300, nsec),
            ]);
        }
    }
}
