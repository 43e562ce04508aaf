//! A way to PostgreSQL that breaks at a commit.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::Notify;

use crate::common::Place;

pub struct Breaker {
    /// Of the place's database, by way of the breaker.
    pub url: String,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    next: AtomicU8,
    held: Mutex<u32>,
    go: Notify,
    gone: Notify,
}

const PASS: u8 = 0;
const HOLD: u8 = 1;
const END: u8 = 2;

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A simple query of this text ends so.
const COMMIT: &[u8] = b"COMMIT\0";

impl Breaker {
    pub async fn before(place: &Place) -> Breaker {
        let options: sqlx::postgres::PgConnectOptions = place.database().parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let text = place.database().split('?').next().unwrap();
        let (scheme, rest) = text.split_once("://").unwrap();
        let (host, database) = rest.rsplit_once('/').unwrap();
        let user = host.rsplit_once('@').map_or("", |(user, _)| user);
        let url = format!("{scheme}://{user}@127.0.0.1:{port}/{database}?sslmode=disable");
        let state = Arc::new(State::default());
        let breaker = Breaker {
            url,
            state: state.clone(),
        };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server: Box<dyn Stream> = match options.get_socket() {
                    Some(dir) => {
                        let path = dir.join(format!(".s.PGSQL.{}", options.get_port()));
                        Box::new(UnixStream::connect(path).await.unwrap())
                    }
                    None => {
                        let address = (options.get_host(), options.get_port());
                        Box::new(TcpStream::connect(address).await.unwrap())
                    }
                };
                tokio::spawn(carry(client, server, state.clone()));
            }
        });
        breaker
    }

    /// The next commit breaks off, and reaches the server only when it is let go.
    pub fn hold_commit(&self) {
        self.state.next.store(HOLD, Ordering::SeqCst);
    }

    /// Returns once the server has made the commit that was held.
    pub async fn let_go(&self) {
        assert_eq!(*self.state.held.lock().unwrap(), 1, "a commit is held");
        self.state.go.notify_one();
        self.state.gone.notified().await;
    }

    /// The next commit is made, and answered with the end of the session.
    pub fn end_session_after_commit(&self) {
        self.state.next.store(END, Ordering::SeqCst);
    }
}

async fn carry(mut client: TcpStream, mut server: Box<dyn Stream>, state: Arc<State>) {
    let (mut asked, mut answered) = (vec![0u8; 65_536], vec![0u8; 65_536]);
    loop {
        let (from_client, length) = tokio::select! {
            got = client.read(&mut asked) => (true, got.unwrap_or(0)),
            got = server.read(&mut answered) => (false, got.unwrap_or(0)),
        };
        if length == 0 {
            return;
        }
        if !from_client {
            if client.write_all(&answered[..length]).await.is_err() {
                return;
            }
            continue;
        }
        let next = match asked[..length].ends_with(COMMIT) {
            true => state.next.swap(PASS, Ordering::SeqCst),
            false => PASS,
        };
        if next == HOLD {
            drop(client);
            *state.held.lock().unwrap() += 1;
            state.go.notified().await;
            server.write_all(&asked[..length]).await.unwrap();
            assert!(server.read(&mut answered).await.unwrap() > 0);
            state.gone.notify_one();
            return;
        }
        if server.write_all(&asked[..length]).await.is_err() {
            return;
        }
        if next == END {
            assert!(server.read(&mut answered).await.unwrap() > 0);
            let fields = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0";
            let mut error = vec![b'E'];
            error.extend_from_slice(&(4 + fields.len() as u32).to_be_bytes());
            error.extend_from_slice(fields);
            client.write_all(&error).await.unwrap();
            return;
        }
    }
}
