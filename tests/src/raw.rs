//! SMTP as text: for what no well-behaved client library sends.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

/// A reply: its code, and the text of all its lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub code: u16,
    pub lines: Vec<String>,
}

impl Reply {
    pub fn text(&self) -> String {
        self.lines.join("\n")
    }

    /// The queue id in the reply to the data.
    pub fn queue_id(&self) -> Option<String> {
        queue_id(&self.text())
    }
}

/// Finds the queue id in the text of a reply to the data: 13 characters of base 32.
pub fn queue_id(text: &str) -> Option<String> {
    text.split(|c: char| !c.is_ascii_alphanumeric())
        .rev()
        .find(|word| {
            word.len() == 13
                && word.starts_with(|c: char| c.is_ascii_digit())
                && word
                    .bytes()
                    .all(|b| b"0123456789abcdefghjkmnpqrstvwxyz".contains(&b))
        })
        .map(str::to_owned)
}

/// A connection. Every wait ends after 30 seconds.
pub struct Raw {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Raw {
    pub fn connect(address: SocketAddr) -> anyhow::Result<Raw> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(10))
            .with_context(|| format!("connect to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Raw {
            stream,
            buffer: Vec::new(),
        })
    }

    /// Greeting, EHLO and AUTH PLAIN.
    pub fn login(address: SocketAddr, user: &str, password: &str) -> anyhow::Result<Raw> {
        let mut raw = Raw::connect(address)?;
        raw.expect(220)?;
        raw.say("EHLO crm.test", 250)?;
        let token = BASE64.encode(format!("\0{user}\0{password}"));
        raw.say(&format!("AUTH PLAIN {token}"), 235)?;
        Ok(raw)
    }

    pub fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        Ok(self.stream.write_all(bytes)?)
    }

    pub fn reply(&mut self) -> anyhow::Result<Reply> {
        let mut lines = Vec::new();
        loop {
            let end = loop {
                match memchr::memmem::find(&self.buffer, b"\r\n") {
                    Some(end) => break end,
                    None => self.fill()?,
                }
            };
            let line = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
            self.buffer.drain(..end + 2);
            let code = line
                .get(..3)
                .and_then(|code| code.parse().ok())
                .with_context(|| format!("not a reply: {line:?}"))?;
            lines.push(line.get(4..).unwrap_or("").to_owned());
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(Reply { code, lines });
            }
        }
    }

    pub fn expect(&mut self, code: u16) -> anyhow::Result<Reply> {
        let reply = self.reply()?;
        if reply.code != code {
            bail!("expected {code}, got {} {}", reply.code, reply.text());
        }
        Ok(reply)
    }

    pub fn send(&mut self, line: &str) -> anyhow::Result<Reply> {
        self.write(format!("{line}\r\n").as_bytes())?;
        self.reply()
    }

    /// Sends a line and demands this code.
    pub fn say(&mut self, line: &str, code: u16) -> anyhow::Result<Reply> {
        self.write(format!("{line}\r\n").as_bytes())?;
        self.expect(code).with_context(|| format!("after {line:?}"))
    }

    /// A whole transaction; the reply to the data, or the first refusal.
    pub fn submit(&mut self, from: &str, to: &[&str], content: &str) -> anyhow::Result<Reply> {
        self.say(&format!("MAIL FROM:<{from}>"), 250)?;
        for address in to {
            self.say(&format!("RCPT TO:<{address}>"), 250)?;
        }
        self.say("DATA", 354)?;
        let mut wire = content.replace("\r\n.", "\r\n..");
        if !wire.ends_with("\r\n") {
            wire.push_str("\r\n");
        }
        wire.push_str(".\r\n");
        self.write(wire.as_bytes())?;
        self.reply()
    }

    /// Whether the peer closes within this time.
    pub fn at_end(&mut self, within: Duration) -> bool {
        let _ = self.stream.set_read_timeout(Some(within));
        loop {
            match self.fill() {
                Ok(()) => {}
                Err(error) => {
                    return !error.downcast_ref::<std::io::Error>().is_some_and(|error| {
                        matches!(
                            error.kind(),
                            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                        )
                    });
                }
            }
        }
    }

    fn fill(&mut self) -> anyhow::Result<()> {
        let mut chunk = [0; 4096];
        let length = self.stream.read(&mut chunk)?;
        if length == 0 {
            bail!("the peer closed the connection");
        }
        self.buffer.extend_from_slice(&chunk[..length]);
        Ok(())
    }
}
