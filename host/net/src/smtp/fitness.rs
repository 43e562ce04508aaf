//! Whether a message can go to a peer as it is, decided before MAIL from what the peer
//! announced: SIZE, 8BITMIME, SMTPUTF8, REQUIRETLS.

use tidegate_mail::{Address, BodyType, Fault, Outcome, Stage, TlsInfo};
use tidegate_queue::ports::{ContentReader, Job};

use super::body;
use super::capabilities::Capabilities;
use super::command::MailParameters;

/// What is known of a peer.
#[derive(Clone, Copy)]
pub struct Peer<'a> {
    pub caps: &'a Capabilities,
    pub tls: Option<&'a TlsInfo>,
}

/// The message can't go to this peer.
#[derive(Debug)]
pub enum Unfit {
    /// Another host may do.
    Host(Outcome),
    /// It is the message.
    Message(Outcome),
}

/// The parameters of MAIL. A recipient that alone can't go to the peer gets its outcome.
pub async fn parameters<'j>(
    job: &'j Job,
    peer: Peer<'_>,
    outcomes: &mut [Option<Outcome>],
) -> Result<MailParameters<'j>, Unfit> {
    let caps = peer.caps;
    let local = |fault| Outcome::from_fault(Stage::Local, fault);
    // RFC 8689 s. 4.2.1: both, or not to this host.
    let verified = peer.tls.is_some_and(|tls| tls.verified != "none");
    if job.requiretls && !(caps.requiretls && verified) {
        return Err(Unfit::Host(local(Fault::RequireTlsUnsupported)));
    }
    let size = job.content.size();
    if let Some(max) = caps.size.filter(|max| *max > 0 && size > *max) {
        let detail = format!("{size} bytes; the server takes {max}");
        return Err(Unfit::Message(local(Fault::TooLarge).with_detail(detail)));
    }
    let international = |address: &Address| address.is_international();
    let from_international = job.reverse_path.as_ref().is_some_and(international);
    if !caps.smtputf8 {
        if from_international {
            return Err(Unfit::Message(local(Fault::SmtpUtf8Unsupported)));
        }
        if job.smtputf8 {
            // RFC 6531 s. 3.2: header fields as RFC 6532 has them go to nobody else either.
            match has_ascii_header(&*job.content).await {
                Ok(true) => {}
                Ok(false) => return Err(Unfit::Message(local(Fault::SmtpUtf8Unsupported))),
                Err(detail) => {
                    let outcome = local(Fault::ContentUnreadable).with_detail(detail);
                    return Err(Unfit::Message(outcome));
                }
            }
        }
        for (slot, to) in outcomes.iter_mut().zip(&job.recipients) {
            if slot.is_none() && international(&to.recipient.address) {
                *slot = Some(local(Fault::SmtpUtf8Unsupported));
            }
        }
    }
    let mut eight_bit = job.body == BodyType::EightBitMime;
    if eight_bit && !caps.eight_bit_mime {
        match is_seven_bit(&*job.content).await {
            // Declared 8-bit, in fact 7-bit: may go anywhere.
            Ok(true) => eight_bit = false,
            Ok(false) => return Err(Unfit::Message(local(Fault::EightBitUnsupported))),
            Err(detail) => {
                let outcome = local(Fault::ContentUnreadable).with_detail(detail);
                return Err(Unfit::Message(outcome));
            }
        }
    }
    let smtputf8 = caps.smtputf8
        && (job.smtputf8
            || from_international
            || job
                .recipients
                .iter()
                .any(|r| international(&r.recipient.address)));
    Ok(MailParameters {
        size: caps.size.map(|_| size),
        body: eight_bit.then_some(BodyType::EightBitMime),
        smtputf8,
        requiretls: job.requiretls,
        ret: job.ret.filter(|_| caps.dsn),
        envid: job.envid.as_deref().filter(|_| caps.dsn),
    })
}

/// Whether all is ASCII until the empty line.
async fn has_ascii_header(content: &dyn ContentReader) -> Result<bool, String> {
    let mut offset = 0;
    // How much of CRLF CRLF was just read; the content begins behind a line end.
    let mut end = 2;
    while offset < content.size() {
        let block = body::block(content, offset).await?;
        for byte in &block {
            end = match (end, byte) {
                (_, 0x80..) => return Ok(false),
                (0 | 2, b'\r') | (1 | 3, b'\n') => end + 1,
                (_, b'\r') => 1,
                _ => 0,
            };
            if end == 4 {
                return Ok(true);
            }
        }
        offset += block.len() as u64;
    }
    Ok(true)
}

async fn is_seven_bit(content: &dyn ContentReader) -> Result<bool, String> {
    let mut offset = 0;
    while offset < content.size() {
        let block = body::block(content, offset).await?;
        if !block.is_ascii() {
            return Ok(false);
        }
        offset += block.len() as u64;
    }
    Ok(true)
}
