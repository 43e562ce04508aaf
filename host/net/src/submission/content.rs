//! A message as it comes in: the trace field, the header with the fields that a submission
//! server adds (RFC 6409 s. 8), the body. One buffer while it is small, a stream to the
//! store when it is not.

use bytes::{Bytes, BytesMut};
use memchr::memchr;
use tidegate_mail::header::HeaderBlock;
use tidegate_mail::{Enhanced, MessageId, Reply, Timestamp};
use tidegate_queue::{Content, ContentWriter, Intake, StoreError};
use tidegate_submit::Part;

use super::memory::Held;

pub struct Message {
    pub id: MessageId,
    /// Trace field and what follows; taken away piece by piece once there is a writer.
    buffer: BytesMut,
    trace_len: usize,
    header: Option<HeaderBlock>,
    writer: Option<Box<dyn ContentWriter>>,
    spool_above: usize,
    held: Held,
    at: Timestamp,
}

impl Message {
    /// `declared`: the SIZE of MAIL, 0 if unknown.
    pub fn begin(
        id: MessageId,
        trace: &str,
        declared: u64,
        spool_above: usize,
        held: Held,
        at: Timestamp,
    ) -> Self {
        let expected = match usize::try_from(declared) {
            Ok(0) => 8 * 1024,
            Ok(size) => size.min(spool_above),
            Err(_) => spool_above,
        };
        // Room for the fields added, too.
        let mut buffer = BytesMut::with_capacity(expected + trace.len() + 256);
        buffer.extend_from_slice(trace.as_bytes());
        Message {
            id,
            buffer,
            trace_len: trace.len(),
            header: None,
            writer: None,
            spool_above,
            held,
            at,
        }
    }

    /// Takes the next piece; an error is the reply to the data.
    pub async fn push(
        &mut self,
        part: Part,
        piece: Bytes,
        intake: &dyn Intake,
        hostname: &str,
    ) -> Result<(), Reply> {
        if part == Part::Body {
            self.end_header(hostname);
        }
        if let Some(writer) = &mut self.writer {
            return writer.append(piece).await.map_err(|e| storage_reply(&e));
        }
        self.buffer.extend_from_slice(&piece);
        let room = self.held.set(self.buffer.len());
        if self.header.is_none() {
            // A header is kept whole, so there is no other way.
            return if room { Ok(()) } else { Err(no_room()) };
        }
        if room && self.buffer.len() <= self.spool_above {
            return Ok(());
        }
        let mut writer = intake
            .content_writer()
            .await
            .map_err(|e| storage_reply(&e))?;
        writer
            .append(self.buffer.split().freeze())
            .await
            .map_err(|e| storage_reply(&e))?;
        self.writer = Some(writer);
        self.buffer = BytesMut::new();
        self.held.set(0);
        Ok(())
    }

    /// What is held is to be kept for as long as the content.
    pub async fn finish(mut self, hostname: &str) -> Result<(HeaderBlock, Content, Held), Reply> {
        self.end_header(hostname);
        let header = self.header.unwrap_or_default();
        let content = match self.writer {
            Some(writer) => writer.finish().await.map_err(|e| storage_reply(&e))?,
            None => Content::Memory(self.buffer.freeze()),
        };
        Ok((header, content, self.held))
    }

    /// Completes the header block, once: what lies in the buffer is all of it.
    fn end_header(&mut self, hostname: &str) {
        if self.header.is_some() {
            return;
        }
        let found = scan(&self.buffer[self.trace_len..]);
        // Where something else than fields begins, so does the body.
        let body = self.buffer.split_off(self.trace_len + found.end);
        if !found.date {
            let field = format!("Date: {}\r\n", self.at.rfc5322());
            self.buffer.extend_from_slice(field.as_bytes());
        }
        if !found.message_id {
            let field = format!("Message-ID: <{}@{hostname}>\r\n", self.id);
            self.buffer.extend_from_slice(field.as_bytes());
        }
        self.buffer.extend_from_slice(b"\r\n");
        self.header = Some(HeaderBlock::parse(&self.buffer));
        let body = match &body[..] {
            [b'\r', b'\n', rest @ ..] => rest,
            rest => rest,
        };
        self.buffer.extend_from_slice(body);
    }
}

struct Found {
    /// Where the fields end.
    end: usize,
    date: bool,
    message_id: bool,
}

fn scan(header: &[u8]) -> Found {
    let mut found = Found {
        end: 0,
        date: false,
        message_id: false,
    };
    while let Some(length) = memchr(b'\n', &header[found.end..]) {
        let line = &header[found.end..found.end + length];
        let folded = found.end > 0 && matches!(line.first(), Some(b' ' | b'\t'));
        if !folded {
            let Some(name) = field_name(line) else {
                return found;
            };
            found.date |= name.eq_ignore_ascii_case(b"date");
            found.message_id |= name.eq_ignore_ascii_case(b"message-id");
        }
        found.end += length + 1;
    }
    found
}

/// RFC 5322 s. 3.6.8, and s. 4.5 for the space before the colon.
fn field_name(line: &[u8]) -> Option<&[u8]> {
    let colon = memchr(b':', line)?;
    let name = line[..colon].trim_ascii_end();
    (!name.is_empty() && name.iter().all(|b| matches!(b, b'!'..=b'~'))).then_some(name)
}

fn no_room() -> Reply {
    tracing::warn!("submission: more mail at once than submission.memory has room for");
    Reply::new(
        452,
        Enhanced::new(4, 3, 1),
        "too much mail at once, try again later",
    )
}

/// Not a fault of the message, so never a 5xx.
fn storage_reply(error: &StoreError) -> Reply {
    tracing::error!(%error, "submission: storing a message failed");
    match error {
        StoreError::Full(_) => Reply::new(
            452,
            Enhanced::new(4, 3, 1),
            "storage is full, try again later",
        ),
        _ => Reply::new(
            451,
            Enhanced::new(4, 3, 0),
            "storage failed, try again later",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> (String, HeaderBlock) {
        let id: MessageId = "1j8k2m3n4p5q6".parse().unwrap();
        let at = Timestamp::from_secs(1_795_489_500);
        let held = crate::submission::memory::Memory::new(1 << 20).hold();
        let mut message = Message::begin(id, "Received: trace\r\n", 0, 1 << 20, held, at);
        message.buffer.extend_from_slice(text.as_bytes());
        message.end_header("mx.example");
        let text = String::from_utf8(message.buffer.to_vec()).unwrap();
        (text, message.header.unwrap())
    }

    #[test]
    fn a_complete_header_is_left_as_it_is() {
        let header = "Date: x\r\nmessage-id : <y>\r\nSubject: a\r\n b\r\n\r\n";
        let (text, block) = message(header);
        assert_eq!(text, format!("Received: trace\r\n{header}"));
        assert_eq!(block.fields().len(), 4);
    }

    #[test]
    fn missing_fields_are_added_at_the_end_of_the_header() {
        let (text, _) = message("Subject: a\r\n\r\n");
        assert_eq!(
            text,
            "Received: trace\r\nSubject: a\r\nDate: Tue, 24 Nov 2026 03:05:00 +0000\r\n\
             Message-ID: <1j8k2m3n4p5q6@mx.example>\r\n\r\n"
        );
        let (text, _) = message("");
        assert!(text.ends_with("@mx.example>\r\n\r\n"), "{text}");
    }

    #[test]
    fn a_body_without_an_empty_line_before_it_gets_one() {
        let rest = "Hello there\r\nTo: nobody\r\n\r\nbye\r\n";
        let (text, block) = message(&format!("Date: x\r\nMessage-ID: <y>\r\n{rest}"));
        assert_eq!(
            text,
            format!("Received: trace\r\nDate: x\r\nMessage-ID: <y>\r\n\r\n{rest}")
        );
        assert_eq!(block.get("to"), None);
    }
}
