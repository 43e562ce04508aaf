//! What the kernel says of a process: CPU time, memory, system calls of storage. Linux only.

use std::time::Duration;

use anyhow::Context;

/// USER_HZ, which Linux reports to user space at 100 whatever the kernel's own rate.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU time of a process and of the children it has waited for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu {
    pub own: Duration,
    pub children: Duration,
}

/// Reads `/proc/PID/stat`; the grain is a tick, 10 ms.
pub fn cpu(pid: u32) -> anyhow::Result<Cpu> {
    let fields = stat(pid)?;
    let time = |at: usize| -> anyhow::Result<Duration> {
        let value: f64 = fields.get(at).context("short stat line")?.parse()?;
        Ok(Duration::from_secs_f64(value / TICKS_PER_SECOND))
    };
    Ok(Cpu {
        own: time(11)? + time(12)?,
        children: time(13)? + time(14)?,
    })
}

/// The process and all its living descendants.
pub fn family(pid: u32) -> Vec<u32> {
    let mut parents = Vec::new();
    if let Ok(entries) = std::fs::read_dir("/proc") {
        for entry in entries.flatten() {
            if let Some(child) = entry.file_name().to_str().and_then(|n| n.parse().ok())
                && let Ok(fields) = stat(child)
                && let Some(parent) = fields.get(1).and_then(|parent| parent.parse::<u32>().ok())
            {
                parents.push((child, parent));
            }
        }
    }
    let mut family = vec![pid];
    let mut at = 0;
    while at < family.len() {
        let parent = family[at];
        family.extend(parents.iter().filter(|(_, p)| *p == parent).map(|(c, _)| c));
        at += 1;
    }
    family
}

/// CPU time of a process, its living descendants, and all children any of them has waited for.
pub fn family_cpu(pid: u32) -> Duration {
    family(pid)
        .into_iter()
        .filter_map(|member| cpu(member).ok())
        .map(|cpu| cpu.own + cpu.children)
        .sum()
}

/// Proportional set size over the whole family, KiB.
pub fn family_pss_kib(pid: u32) -> u64 {
    family(pid)
        .into_iter()
        .filter_map(|member| field(member, "smaps_rollup", "Pss:"))
        .sum()
}

/// Largest resident set so far, KiB.
pub fn peak_rss_kib(pid: u32) -> Option<u64> {
    field(pid, "status", "VmHWM:")
}

/// Resident set now, KiB.
pub fn rss_kib(pid: u32) -> Option<u64> {
    field(pid, "status", "VmRSS:")
}

/// Octets that reached the storage layer so far.
pub fn written(pid: u32) -> Option<u64> {
    field(pid, "io", "write_bytes:")
}

/// The fields of the stat line from the state on; the name before it may hold anything.
fn stat(pid: u32) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = text.rsplit_once(')').context("no name in stat")?;
    Ok(rest.split_whitespace().map(str::to_owned).collect())
}

fn field(pid: u32, file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix(name))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_its_own_figures() {
        let me = std::process::id();
        let mut child = std::process::Command::new("sleep")
            .arg("30")
            .spawn()
            .unwrap();
        assert!(family(me).contains(&child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(peak_rss_kib(me).unwrap() >= 100);
        assert!(family_pss_kib(me) > 0);
        let before = cpu(me).unwrap().own;
        let started = std::time::Instant::now();
        while cpu(me).unwrap().own == before {
            assert!(started.elapsed() < Duration::from_secs(10));
        }
    }
}
