//! One connection of a destination: lines, content and chunks, in clear or over TLS.

use std::io::{self, Read, Write};
use std::net::TcpStream;

/// Either kind of connection, with one read buffer.
pub(super) struct Wire {
    pub stream: Transport,
    pub buffer: Vec<u8>,
}

pub(super) enum Transport {
    Clear(TcpStream),
    Tls(Box<rustls::StreamOwned<rustls::ServerConnection, TcpStream>>),
}

impl Wire {
    pub fn fill(&mut self) -> io::Result<()> {
        let mut chunk = [0; 16 * 1024];
        let length = match &mut self.stream {
            Transport::Clear(stream) => stream.read(&mut chunk)?,
            Transport::Tls(stream) => stream.read(&mut chunk)?,
        };
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.buffer.extend_from_slice(&chunk[..length]);
        Ok(())
    }

    pub fn line(&mut self) -> io::Result<String> {
        let end = self.find(b"\r\n", 0)?;
        let line = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
        self.buffer.drain(..end + 2);
        Ok(line)
    }

    pub fn find(&mut self, needle: &[u8], mut from: usize) -> io::Result<usize> {
        loop {
            if let Some(at) = memchr::memmem::find(&self.buffer[from..], needle) {
                return Ok(from + at);
            }
            from = self.buffer.len().saturating_sub(needle.len() - 1).max(from);
            self.fill()?;
        }
    }

    pub fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < length {
            self.fill()?;
        }
        Ok(self.buffer.drain(..length).collect())
    }

    /// Content up to the lone dot, dots unstuffed.
    pub fn content(&mut self) -> io::Result<Vec<u8>> {
        while self.buffer.len() < 3 {
            self.fill()?;
        }
        if self.buffer.starts_with(b".\r\n") {
            self.buffer.drain(..3);
            return Ok(Vec::new());
        }
        let end = self.find(b"\r\n.\r\n", 0)?;
        let raw: Vec<u8> = self.buffer.drain(..end + 5).collect();
        let mut content = Vec::with_capacity(end + 2);
        for line in raw[..end + 2].split_inclusive(|&byte| byte == b'\n') {
            content.extend_from_slice(line.strip_prefix(b".").unwrap_or(line));
        }
        Ok(content)
    }

    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            Transport::Clear(stream) => stream.write_all(bytes),
            Transport::Tls(stream) => {
                stream.write_all(bytes)?;
                stream.flush()
            }
        }
    }
}
