//! Preparing a revision in a process of its own, so that a compiler that crashes, spins or
//! eats memory on somebody's upload takes nothing with it.
//!
//! The gateway starts its own binary with the argument `policy-worker`, writes the upload to
//! its standard input and reads the result from its standard output. The worker limits its
//! own memory and processor time, gives up files, network and other programs, runs at the
//! lowest priority, and is killed when its time is over. One at a time works on uploads, and one
//! on what the gateway itself has to have: an upload may be made to take long.

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, nice, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::sync::Semaphore;

use crate::answer::tidy;
use crate::confine::confine;
use crate::engine::PolicyEngine;
use crate::limits;
use crate::prepare::{Code, Prepared, Refused, Upload, prepare, revision_digest};
use crate::worlds::{Descriptor, World};

/// The sub-command that runs [`main`].
pub const SUBCOMMAND: &str = "policy-worker";

const ADDRESS_SPACE: u64 = 1536 * 1024 * 1024;
const PROCESSOR_SECS: u64 = 20;
/// More than its processor time, since it gives way to everything else on the machine.
const WALL: Duration = Duration::from_secs(120);
/// Compiled code is a few times larger than the snapshot.
const REPLY: u64 = 256 * 1024 * 1024;

static FOR_UPLOADS: Semaphore = Semaphore::const_new(1);
static FOR_OWN: Semaphore = Semaphore::const_new(1);

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Prepared {
        digest: String,
        world: World,
        descriptor: Descriptor,
    },
    Refused(Refused),
}

/// The worker: reads an upload, writes the result. Returns the exit code, which is 0 also
/// for a refusal.
pub fn main() -> i32 {
    match work() {
        Ok(()) => 0,
        Err(e) => {
            eprintln!("policy-worker: {e}");
            1
        }
    }
}

fn work() -> io::Result<()> {
    let bound = |n| Rlimit {
        current: Some(n),
        maximum: Some(n),
    };
    setrlimit(Resource::As, bound(ADDRESS_SPACE))?;
    setrlimit(Resource::Cpu, bound(PROCESSOR_SECS))?;
    setrlimit(Resource::Core, bound(0))?;
    // Only for memory images, which count as files.
    setrlimit(Resource::Fsize, bound(2 * limits::SNAPSHOT as u64))?;
    // Already at a lower priority is as good.
    let _ = nice(19);
    confine()?;
    let mut input = io::stdin().lock();
    let component = read_part(&mut input, limits::UPLOAD)?;
    let config = read_part(&mut input, limits::CONFIG)?;
    let config = String::from_utf8(config).map_err(|_| {
        io::Error::new(io::ErrorKind::InvalidData, "the configuration is not UTF-8")
    })?;
    let upload = Upload {
        component: &component,
        config: &config,
    };
    let result = PolicyEngine::for_preparing()
        .map_err(|e| Refused::Worker(e.to_string()))
        .and_then(|engine| prepare(&engine, &upload));
    let (verdict, code) = match &result {
        Ok(p) => (
            Verdict::Prepared {
                digest: p.digest.clone(),
                world: p.world,
                descriptor: p.descriptor.clone(),
            },
            p.code_bytes()?,
        ),
        Err(refused) => (Verdict::Refused(refused.clone()), [].as_slice().into()),
    };
    let verdict = serde_json::to_vec(&verdict)?;
    let mut output = io::stdout().lock();
    output.write_all(&(verdict.len() as u32).to_be_bytes())?;
    output.write_all(&verdict)?;
    output.write_all(&code)?;
    output.flush()
}

fn read_part(input: &mut impl Read, most: usize) -> io::Result<Vec<u8>> {
    let mut len = [0; 4];
    input.read_exact(&mut len)?;
    let len = u32::from_be_bytes(len) as usize;
    if len > most {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a part of {len} bytes; at most {most}"),
        ));
    }
    let mut part = vec![0; len];
    input.read_exact(&mut part)?;
    Ok(part)
}

/// Prepares an upload in a worker process: `exe policy-worker`.
pub async fn prepare_in_child(exe: &Path, upload: Upload<'_>) -> Result<Prepared, Refused> {
    prepare_by(&FOR_UPLOADS, exe, upload).await
}

/// The same with what was accepted before: it does not wait for uploads.
pub async fn prepare_again_in_child(exe: &Path, upload: Upload<'_>) -> Result<Prepared, Refused> {
    prepare_by(&FOR_OWN, exe, upload).await
}

async fn prepare_by(line: &Semaphore, exe: &Path, upload: Upload<'_>) -> Result<Prepared, Refused> {
    if upload.component.len() > limits::UPLOAD {
        return Err(Refused::TooLarge(format!(
            "{} bytes; at most {}",
            upload.component.len(),
            limits::UPLOAD
        )));
    }
    if upload.config.len() > limits::CONFIG {
        return Err(Refused::TooLarge(format!(
            "a configuration of {} bytes; at most {}",
            upload.config.len(),
            limits::CONFIG
        )));
    }
    let _one = line
        .acquire()
        .await
        .map_err(|e| Refused::Worker(e.to_string()))?;
    let reply = tokio::time::timeout(WALL, converse(exe, upload))
        .await
        .map_err(|_| Refused::Compile(format!("not done after {} s; stopped", WALL.as_secs())))??;
    let damaged = || Refused::Worker("its reply is damaged".to_owned());
    let (len, rest) = reply.split_first_chunk::<4>().ok_or_else(damaged)?;
    let (verdict, code) = rest
        .split_at_checked(u32::from_be_bytes(*len) as usize)
        .ok_or_else(damaged)?;
    match serde_json::from_slice(verdict).map_err(|_| damaged())? {
        Verdict::Refused(refused) => Err(refused),
        Verdict::Prepared {
            digest,
            world,
            descriptor,
        } => {
            if digest != revision_digest(world, &upload) {
                return Err(Refused::Worker("it prepared something else".to_owned()));
            }
            let descriptor = descriptor.check().map_err(Refused::Worker)?;
            Ok(Prepared::new(
                digest,
                world,
                descriptor,
                Code::Held(code.into()),
            ))
        }
    }
}

/// Dropping the future kills the worker.
async fn converse(exe: &Path, upload: Upload<'_>) -> Result<Vec<u8>, Refused> {
    let fail = |what: &str, e: io::Error| Refused::Worker(format!("{what}: {e}"));
    let mut child = Command::new(exe)
        .arg(SUBCOMMAND)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| fail(&exe.display().to_string(), e))?;
    let (Some(mut input), Some(output), Some(errors)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(Refused::Worker("no pipes".to_owned()));
    };
    let write = async {
        for part in [upload.component, upload.config.as_bytes()] {
            input.write_all(&(part.len() as u32).to_be_bytes()).await?;
            input.write_all(part).await?;
        }
        input.shutdown().await?;
        drop(input);
        Ok::<_, io::Error>(())
    };
    let (mut reply, mut words) = (Vec::new(), Vec::new());
    let mut output = output.take(REPLY);
    let mut errors = errors.take(16 * 1024);
    let (wrote, read, _) = tokio::join!(
        write,
        output.read_to_end(&mut reply),
        errors.read_to_end(&mut words)
    );
    let status = child.wait().await.map_err(|e| fail("wait", e))?;
    if !status.success() {
        return Err(Refused::Compile(format!(
            "the compiler stopped ({status}): {}",
            tidy(String::from_utf8_lossy(&words).trim(), limits::TEXT)
        )));
    }
    wrote.map_err(|e| fail("write", e))?;
    read.map_err(|e| fail("read", e))?;
    Ok(reply)
}
