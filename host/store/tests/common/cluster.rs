//! A throw-away PostgreSQL cluster for tests: one per process, gone with it.
//!
//! `TIDEGATE_TEST_POSTGRES` names a server to use instead (a URL whose user may create
//! databases). Otherwise Debian's package `postgresql` must be installed: a test that
//! can't start a server fails and says so.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection};

pub struct Cluster {
    /// Everything up to the database's name, and what follows it.
    url: (String, String),
    /// Ends the server when its standard input closes, that is with this process.
    _guard: Option<Child>,
}

static CLUSTER: OnceLock<Cluster> = OnceLock::new();
static DATABASES: AtomicU32 = AtomicU32::new(0);

fn binary(name: &str) -> PathBuf {
    let mut places: Vec<PathBuf> = Vec::new();
    if let Ok(versions) = std::fs::read_dir("/usr/lib/postgresql") {
        places.extend(versions.flatten().map(|v| v.path().join("bin")));
    }
    places.sort();
    places.reverse();
    let path = std::env::var_os("PATH").unwrap_or_default();
    places.extend(std::env::split_paths(&path));
    places
        .into_iter()
        .map(|place| place.join(name))
        .find(|file| file.exists())
        .unwrap_or_else(|| {
            panic!(
                "{name} is not installed: `apt-get install postgresql` (Debian), or name a server in TIDEGATE_TEST_POSTGRES"
            )
        })
}

/// PostgreSQL refuses to run as root: then an unprivileged user runs it.
fn command(program: &Path, user: Option<&str>) -> Command {
    match user {
        None => Command::new(program),
        Some(user) => {
            let mut command = Command::new("setpriv");
            command
                .args(["--reuid", user, "--regid", user, "--init-groups"])
                .arg(program);
            command
        }
    }
}

fn run(command: &mut Command) {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

impl Cluster {
    pub fn get() -> &'static Cluster {
        CLUSTER.get_or_init(Cluster::start)
    }

    fn start() -> Cluster {
        if let Ok(url) = std::env::var("TIDEGATE_TEST_POSTGRES") {
            let (url, rest) = match url.split_once('?') {
                Some((url, rest)) => (url.to_owned(), format!("?{rest}")),
                None => (url, String::new()),
            };
            let base = url.trim_end_matches('/').to_owned();
            return Cluster {
                url: (base, rest),
                _guard: None,
            };
        }
        let (initdb, postgres) = (binary("initdb"), binary("postgres"));
        // Short: a socket's path has at most 107 bytes.
        let dir = std::env::temp_dir().join(format!("tgpg-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir(&dir).unwrap();
        let user = rustix::process::geteuid().is_root().then(|| {
            let known = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
            if known.lines().any(|line| line.starts_with("postgres:")) {
                "postgres"
            } else {
                "nobody"
            }
        });
        if let Some(user) = user {
            run(Command::new("chown").arg(user).arg(&dir));
        }
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        let data = dir.join("data");
        run(command(&initdb, user)
            .args([
                "--no-sync",
                "--auth=trust",
                "--username=tidegate",
                "--encoding=UTF8",
            ])
            .args(["--locale=C", "-D"])
            .arg(&data)
            .current_dir("/"));
        let mut server = command(&postgres, user);
        server.arg("-D").arg(&data).arg("-k").arg(&dir).args([
            "-c",
            "listen_addresses=",
            "-c",
            "shared_buffers=32MB",
            "-c",
            "max_connections=200",
            "-c",
            "logging_collector=off",
        ]);
        let mut guard = Command::new("sh");
        guard
            .arg("-c")
            .arg("\"$@\" </dev/null >\"$DIR/log\" 2>&1 & server=$!; read -r _; kill -QUIT $server; wait $server; rm -rf \"$DIR\"")
            .arg("sh")
            .arg(server.get_program())
            .args(server.get_args())
            .env("DIR", &dir)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let guard = guard.spawn().expect("sh starts");
        let socket = dir.join(".s.PGSQL.5432");
        let since = Instant::now();
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(
                since.elapsed() < Duration::from_secs(60),
                "PostgreSQL did not start: {}",
                std::fs::read_to_string(dir.join("log")).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Cluster {
            url: (
                "postgres://tidegate@localhost".into(),
                format!("?host={}", dir.display()),
            ),
            _guard: Some(guard),
        }
    }

    pub fn url(&self, database: &str) -> String {
        format!("{}/{database}{}", self.url.0, self.url.1)
    }

    pub async fn connect(&self, database: &str) -> PgConnection {
        let options: sqlx::postgres::PgConnectOptions = self.url(database).parse().unwrap();
        let since = Instant::now();
        loop {
            match options.connect().await {
                Ok(connection) => return connection,
                // The socket is there a moment before the server takes connections.
                Err(error) => assert!(since.elapsed() < Duration::from_secs(60), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A new, empty database; its name.
    pub async fn database(&self) -> String {
        let number = DATABASES.fetch_add(1, Ordering::Relaxed);
        let name = format!("tidegate_{}_{number}", std::process::id());
        let mut admin = self.connect("postgres").await;
        let sql = format!("CREATE DATABASE {name}");
        admin
            .execute(sqlx::raw_sql(AssertSqlSafe(sql)))
            .await
            .unwrap();
        admin.close().await.unwrap();
        name
    }
}
