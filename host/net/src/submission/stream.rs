//! A connection in clear or under TLS, read through a buffer that all connections of a
//! thread share, so that one that waits holds none.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Most bytes taken by one read.
const READ: usize = 64 * 1024;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into());
}

pub enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// Lost in a handshake.
    Gone,
}

impl Stream {
    /// Appends what has come; 0 is the end. Cancelling it loses nothing.
    pub async fn read(&mut self, into: &mut BytesMut) -> io::Result<usize> {
        poll_fn(|cx| {
            SCRATCH.with_borrow_mut(|scratch| {
                let mut buf = ReadBuf::new(scratch);
                let polled = match self {
                    Stream::Plain(tcp) => Pin::new(tcp).poll_read(cx, &mut buf),
                    Stream::Tls(tls) => Pin::new(tls).poll_read(cx, &mut buf),
                    Stream::Gone => Poll::Ready(Ok(())),
                };
                polled.map_ok(|()| {
                    into.extend_from_slice(buf.filled());
                    buf.filled().len()
                })
            })
        })
        .await
    }

    /// Writes and flushes all of it.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Stream::Plain(tcp) => tcp.write_all(bytes).await,
            Stream::Tls(tls) => {
                tls.write_all(bytes).await?;
                tls.flush().await
            }
            Stream::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Acknowledges what has come at once. A client that sends its last lines apart, and
    /// with Nagle's algorithm on, holds them back until then: 40 ms with a delayed one.
    pub fn acknowledge_now(&self) {
        let tcp = match self {
            Stream::Plain(tcp) => tcp,
            Stream::Tls(tls) => tls.get_ref().0,
            Stream::Gone => return,
        };
        // Only a matter of speed.
        let _ = tcp.set_quickack(true);
    }

    /// Whether the client has sent something before its turn: anything but a TLS
    /// ClientHello, which the session has an answer for.
    pub fn spoke_early(&self) -> bool {
        let Stream::Plain(tcp) = self else {
            return false;
        };
        let mut first = [std::mem::MaybeUninit::uninit(); 1];
        match socket2::SockRef::from(tcp).peek(&mut first) {
            // SAFETY: peek returned 1, so it has written that one byte.
            Ok(1) => unsafe { first[0].assume_init() != 0x16 },
            _ => false,
        }
    }

    /// Makes the handshake as server. `Ok` describes the connection.
    pub async fn start_tls(
        &mut self,
        acceptor: &TlsAcceptor,
        within: Duration,
    ) -> io::Result<String> {
        let Stream::Plain(tcp) = std::mem::replace(self, Stream::Gone) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        // Boxed, since the handshake would be the largest part of the connection's future.
        let handshake = Box::pin(tokio::time::timeout(within, acceptor.accept(tcp)));
        let tls = handshake.await??;
        let (_, connection) = tls.get_ref();
        let version = match connection.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "TLSv1.2",
        };
        let text = match connection.negotiated_cipher_suite() {
            Some(suite) => format!("{version} {:?}", suite.suite()),
            None => version.to_owned(),
        };
        *self = Stream::Tls(Box::new(tls));
        Ok(text)
    }

    /// Ends the connection. With `drain`, reads off what the client still sends, for so long
    /// and at most so many bytes, since closing with bytes unread resets the connection
    /// and takes the last reply along.
    pub async fn close(self, drain: Option<(Duration, u64)>) {
        let mut tcp = match self {
            Stream::Gone => return,
            Stream::Plain(tcp) => tcp,
            Stream::Tls(mut tls) => {
                // Sends close_notify and ends our side.
                let _ = tokio::time::timeout(Duration::from_secs(1), tls.shutdown()).await;
                tls.into_inner().0
            }
        };
        let Some((within, most)) = drain else {
            return;
        };
        let _ = tcp.shutdown().await;
        let mut left = most;
        let reading = poll_fn(|cx| {
            SCRATCH.with_borrow_mut(|scratch| {
                while left > 0 {
                    let mut buf = ReadBuf::new(scratch);
                    match Pin::new(&mut tcp).poll_read(cx, &mut buf) {
                        Poll::Pending => return Poll::Pending,
                        Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                            left = left.saturating_sub(buf.filled().len() as u64);
                        }
                        Poll::Ready(_) => break,
                    }
                }
                Poll::Ready(())
            })
        });
        let _ = tokio::time::timeout(within, reading).await;
    }
}
