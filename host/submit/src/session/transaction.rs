//! A mail transaction: MAIL, RCPT, DATA and BDAT (RFC 5321 s. 3.3, RFC 3030).

use bytes::{Buf, BytesMut};
use tidegate_mail::{Address, AddressError, BodyType, Enhanced, Envelope, Recipient, Reply};

use super::{Action, Host, Phase, Session};
use crate::data::{Decoder, Fault, Limits, Step};
use crate::{command, output, params};

/// What the session remembers from MAIL to the end of the data.
#[derive(Debug)]
pub(super) struct Transaction {
    pub envelope: Envelope,
    pub declared_size: u64,
    content: Option<Content>,
}

#[derive(Debug)]
struct Content {
    decoder: Decoder,
    /// The driver was told to drop it, or dropped it by itself.
    dropped: bool,
    /// The driver's reason.
    refusal: Option<Reply>,
}

impl Transaction {
    pub fn has_begun(&self) -> bool {
        self.content.is_some()
    }

    pub fn is_being_collected(&self) -> bool {
        self.content.as_ref().is_some_and(|c| !c.dropped)
    }
}

fn fault_reply(fault: Fault, config: &crate::Config) -> Reply {
    let (code, enhanced, text) = match fault {
        Fault::BareLineEnd => (
            554,
            (5, 6, 0),
            "the message has a CR or LF by itself; end lines in CR LF".into(),
        ),
        Fault::Nul => (
            554,
            (5, 6, 0),
            "the message has a NUL; encode it in base64".into(),
        ),
        Fault::LongLine => (
            554,
            (5, 6, 0),
            format!(
                "the message has a line longer than {} bytes; encode it as quoted-printable or base64",
                config.text_line_limit
            ),
        ),
        Fault::TooBig => (
            552,
            (5, 3, 4),
            format!("the message is larger than {} bytes", config.max_size),
        ),
        Fault::LongHeader => (
            552,
            (5, 3, 4),
            format!("the header is larger than {} bytes", config.max_header),
        ),
        Fault::Hops => (
            554,
            (5, 4, 6),
            format!(
                "the message loops: it has more than {} Received fields",
                config.max_hops
            ),
        ),
    };
    Reply::new(
        code,
        Enhanced::new(enhanced.0, enhanced.1, enhanced.2),
        text,
    )
}

impl Session {
    /// Where a client that only floods is cut off, in bytes of one content.
    fn flood_mark(&self) -> u64 {
        self.config
            .max_size
            .saturating_mul(2)
            .saturating_add(1 << 20)
    }

    pub(super) fn mail(&mut self, args: &str, host: &mut dyn Host) -> Option<Action> {
        if !self.greeted {
            return self.error("503 5.5.1 send EHLO first");
        }
        if !self.authenticated {
            return self.error(if self.tls || self.config.allow_plain_auth {
                "530 5.7.0 log in first, with AUTH PLAIN or AUTH LOGIN"
            } else {
                "530 5.7.0 log in first: send STARTTLS, then AUTH"
            });
        }
        if self.transaction.is_some() {
            return self.error("503 5.5.1 MAIL was given already; send RSET to begin anew");
        }
        match self.parse_mail(args) {
            Ok(transaction) => {
                let path = transaction.envelope.reverse_path.as_ref();
                if let Err(reply) = host.mail(path, transaction.declared_size) {
                    return self.refuse(&reply);
                }
                self.transaction = Some(Box::new(transaction));
                self.ok("250 2.1.0 OK")
            }
            Err(reply) => self.refuse(&reply),
        }
    }

    fn parse_mail(&self, args: &str) -> Result<Transaction, Reply> {
        let path = command::after_keyword(args, "FROM:")
            .ok_or_else(|| syntax(501, (5, 5, 4), "the form is MAIL FROM:<address>"))?;
        let (reverse_path, rest) = Address::take_path(path, Some(&self.config.hostname))
            .map_err(|e| address_reply("MAIL FROM", (5, 1, 7), &e))?;
        let rest = parameters(rest)?;
        let params = params::mail(rest, self.tls && self.config.requiretls)?;
        if !params.smtputf8 && !path[..path.len() - rest.len()].is_ascii() {
            return Err(not_ascii("MAIL FROM"));
        }
        let declared_size = params.size.unwrap_or(0);
        if declared_size > self.config.max_size {
            return Err(fault_reply(Fault::TooBig, &self.config));
        }
        Ok(Transaction {
            envelope: Envelope {
                reverse_path,
                envid: params.envid,
                ret: params.ret,
                body: params.body,
                smtputf8: params.smtputf8,
                requiretls: params.requiretls,
                tls_optional: false,
                recipients: Vec::new(),
            },
            declared_size,
            content: None,
        })
    }

    /// A refused recipient does not count as an error: a list with bad entries is an
    /// honest client's, and it is logged in.
    pub(super) fn rcpt(&mut self, args: &str, host: &mut dyn Host) -> Option<Action> {
        let Some(transaction) = self.transaction.as_deref_mut() else {
            return self.error("503 5.5.1 send MAIL first");
        };
        if transaction.has_begun() {
            return self.error("503 5.5.1 RCPT comes before the data");
        }
        if transaction.envelope.recipients.len() >= self.config.max_recipients {
            return self
                .ok("452 4.5.3 too many recipients; send the message again for the rest of them");
        }
        let smtputf8 = transaction.envelope.smtputf8;
        let parsed = parse_rcpt(args, &self.config.hostname, smtputf8)
            .and_then(|recipient| host.rcpt(&recipient).map(|()| recipient));
        match parsed {
            Ok(recipient) => {
                transaction.envelope.recipients.push(recipient);
                self.ok("250 2.1.5 OK")
            }
            Err(reply) => {
                output::reply(&mut self.out, &reply);
                if reply.code == 421 {
                    self.phase = Phase::Closed { abrupt: true };
                }
                None
            }
        }
    }

    pub(super) fn data_command(&mut self, args: &str) -> Option<Action> {
        if !args.is_empty() {
            return self.error("501 5.5.4 DATA takes no argument");
        }
        let limits = self.limits();
        match self.transaction.as_deref_mut() {
            None => self.error("503 5.5.1 send MAIL and RCPT first"),
            Some(t) if t.has_begun() => {
                self.error("503 5.5.1 the message was begun with BDAT; end it with BDAT LAST")
            }
            Some(t) if t.envelope.recipients.is_empty() => {
                self.error("554 5.5.1 no valid recipients")
            }
            Some(t) => {
                t.content = Some(Content::new(limits, true));
                self.phase = Phase::Data;
                output::line(
                    &mut self.out,
                    "354 send the message, end with a dot on a line",
                );
                Some(Action::Begin)
            }
        }
    }

    /// Takes content behind DATA.
    pub(super) fn data(&mut self, input: &mut BytesMut) -> Option<Action> {
        let all = input.len();
        let step = match self.content() {
            Some(content) => content.decoder.step(input, all),
            None => return self.lost(),
        };
        match step {
            Step::Need => Some(Action::Read),
            Step::End => self.end_of_data(),
            step => self.content_step(step),
        }
    }

    pub(super) fn bdat(&mut self, args: &str) -> Option<Action> {
        let Some((size, last)) = command::bdat(args) else {
            // Without the size, the next command can't be told from content.
            return self.fatal("501 5.5.4 the form is BDAT size [LAST]; closing");
        };
        let flood = self.flood_mark();
        let limits = self.limits();
        let refused = match self.transaction.as_deref_mut() {
            None => Some("503 5.5.1 send MAIL and RCPT first"),
            Some(t) if t.envelope.recipients.is_empty() => Some("554 5.5.1 no valid recipients"),
            Some(_) => None,
        };
        if let Some(reply) = refused {
            if size > self.config.max_size {
                return self.fatal(reply);
            }
            self.phase = Phase::Discard { left: size, reply };
            return None;
        }
        let mut begins = false;
        let mut so_far = 0;
        if let Some(t) = self.transaction.as_deref_mut() {
            begins = t.content.is_none();
            so_far = t
                .content
                .get_or_insert_with(|| Content::new(limits, false))
                .decoder
                .size();
        }
        if so_far.saturating_add(size) > flood {
            let reply = fault_reply(Fault::TooBig, &self.config);
            self.close_with(&reply);
            return None;
        }
        self.phase = Phase::Chunk {
            size,
            left: size,
            last,
        };
        begins.then_some(Action::Begin)
    }

    /// Takes content behind BDAT.
    pub(super) fn chunk(&mut self, input: &mut BytesMut) -> Option<Action> {
        let Phase::Chunk { size, left, last } = self.phase else {
            return self.lost();
        };
        let Some(content) = self.content() else {
            return self.lost();
        };
        if left == 0 && last {
            return match content.decoder.finish() {
                Ok(None) => self.end_of_data(),
                Ok(Some((part, bytes))) => self.content_step(Step::Piece(part, bytes)),
                Err(fault) => self.content_step(Step::Fault(fault)),
            };
        }
        if left == 0 {
            let failed = content.dropped || content.decoder.worst().is_some();
            self.phase = Phase::Command;
            if failed {
                return self.failed_content();
            }
            return self.ok(&format!("250 2.0.0 {size} octets received"));
        }
        if input.is_empty() {
            return Some(Action::Read);
        }
        let before = input.len();
        let limit = usize::try_from(left).unwrap_or(usize::MAX);
        let step = content.decoder.step(input, limit);
        self.phase = Phase::Chunk {
            size,
            left: left - (before - input.len()) as u64,
            last,
        };
        match step {
            Step::Need | Step::End => None,
            step => self.content_step(step),
        }
    }

    pub(super) fn discard(&mut self, input: &mut BytesMut) -> Option<Action> {
        let Phase::Discard { left, reply } = self.phase else {
            return self.lost();
        };
        let now = usize::try_from(left).map_or(input.len(), |left| left.min(input.len()));
        input.advance(now);
        let left = left - now as u64;
        if left > 0 {
            self.phase = Phase::Discard { left, reply };
            return Some(Action::Read);
        }
        self.phase = Phase::Command;
        self.error(reply)
    }

    fn content(&mut self) -> Option<&mut Content> {
        self.transaction.as_deref_mut()?.content.as_mut()
    }

    /// A content phase without a content, which no sequence of commands leads to.
    fn lost(&mut self) -> Option<Action> {
        self.fatal("421 4.3.0 internal error; closing")
    }

    /// A piece or a fault.
    fn content_step(&mut self, step: Step) -> Option<Action> {
        let flood = self.flood_mark();
        let Some(content) = self.content() else {
            return self.lost();
        };
        match step {
            Step::Fault(Fault::BareLineEnd) => {
                let reply = fault_reply(Fault::BareLineEnd, &self.config);
                self.close_with(&reply);
                None
            }
            _ if content.decoder.size() > flood => {
                let reply = fault_reply(Fault::TooBig, &self.config);
                self.close_with(&reply);
                None
            }
            _ if content.dropped => None,
            Step::Piece(part, bytes) => Some(Action::Piece(part, bytes)),
            _ => {
                content.dropped = true;
                Some(Action::Abort)
            }
        }
    }

    fn end_of_data(&mut self) -> Option<Action> {
        self.phase = Phase::Command;
        let Some(content) = self.content() else {
            return self.lost();
        };
        if content.dropped || content.decoder.worst().is_some() {
            return self.failed_content();
        }
        let eight_bit = content.decoder.eight_bit();
        let Some(transaction) = self.transaction.take() else {
            return self.lost();
        };
        let mut envelope = transaction.envelope;
        if eight_bit {
            // Many clients do not declare it; the next hop needs to know.
            envelope.body = BodyType::EightBitMime;
        }
        self.phase = Phase::AwaitResult;
        Some(Action::Accept(envelope))
    }

    /// Replies to a content that was thrown away and ends its transaction.
    fn failed_content(&mut self) -> Option<Action> {
        let Some(mut content) = self.transaction.take().and_then(|t| t.content) else {
            return self.lost();
        };
        let reply = match (content.decoder.worst(), content.refusal.take()) {
            (Some(fault), _) => fault_reply(fault, &self.config),
            (None, Some(refusal)) => refusal,
            (None, None) => return self.lost(),
        };
        let _: Option<Action> = self.refuse(&reply);
        (!content.dropped).then_some(Action::Abort)
    }

    /// The driver cannot keep the content and has dropped it; the reply is given when the
    /// data ends.
    pub fn refuse_data(&mut self, reply: Reply) {
        if let Some(content) = self.content() {
            content.dropped = true;
            content.refusal = Some(reply);
        }
    }

    /// Answers [`Action::Accept`] with the reply to the data. Without such a question it has
    /// no effect.
    pub fn data_result(&mut self, reply: &Reply) {
        if !matches!(self.phase, Phase::AwaitResult) {
            return;
        }
        self.phase = Phase::Command;
        output::reply(&mut self.out, reply);
        if reply.is_positive() {
            self.errors = 0;
            self.idle_commands = 0;
        } else if reply.code == 421 {
            self.phase = Phase::Closed { abrupt: true };
        }
    }

    fn limits(&self) -> Limits {
        Limits {
            size: self.config.max_size,
            header: self.config.max_header,
            hops: self.config.max_hops,
            line: self.config.text_line_limit,
            repair: self.config.repair_line_ends,
        }
    }
}

impl Content {
    fn new(limits: Limits, dots: bool) -> Self {
        Content {
            decoder: Decoder::new(limits, dots),
            dropped: false,
            refusal: None,
        }
    }
}

fn parse_rcpt(args: &str, hostname: &str, smtputf8: bool) -> Result<Recipient, Reply> {
    let path = command::after_keyword(args, "TO:")
        .ok_or_else(|| syntax(501, (5, 5, 4), "the form is RCPT TO:<address>"))?;
    let (address, rest) = Address::take_path(path, Some(hostname))
        .map_err(|e| address_reply("RCPT TO", (5, 1, 3), &e))?;
    let Some(address) = address else {
        return Err(syntax(501, (5, 1, 3), "RCPT TO: the address is empty"));
    };
    let rest = parameters(rest)?;
    if !smtputf8 && !path[..path.len() - rest.len()].is_ascii() {
        return Err(not_ascii("RCPT TO"));
    }
    let params = params::rcpt(rest, smtputf8)?;
    Ok(Recipient {
        address,
        notify: params.notify,
        original: params.original,
    })
}

fn syntax(code: u16, (class, subject, detail): (u8, u16, u16), text: &str) -> Reply {
    Reply::new(code, Enhanced::new(class, subject, detail), text)
}

fn address_reply(field: &str, status: (u8, u16, u16), error: &AddressError) -> Reply {
    syntax(501, status, &format!("{field}: {error}"))
}

/// What follows a path is nothing, or parameters behind a space.
fn parameters(rest: &str) -> Result<&str, Reply> {
    if rest.is_empty() || rest.starts_with(' ') {
        return Ok(rest);
    }
    Err(syntax(
        501,
        (5, 5, 4),
        "put a space between the address and its parameters",
    ))
}

/// RFC 6531 s. 3.5.
fn not_ascii(field: &str) -> Reply {
    syntax(
        553,
        (5, 6, 7),
        &format!("{field}: the address is not ASCII; add SMTPUTF8 to MAIL"),
    )
}
