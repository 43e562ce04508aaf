//! Policies over a restart: a JSON file, replaced as a whole.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tidegate_mail::Timestamp;
use tidegate_mail::sts::Policy;

use super::Kept;

#[derive(Serialize, Deserialize)]
struct Saved {
    domain: String,
    id: String,
    fetched: Timestamp,
    policy: String,
}

/// The policies of a file that are in force; what can't be read is left out.
pub(super) fn read(file: &Path, now: Timestamp) -> HashMap<Box<str>, Kept> {
    let all: Vec<Saved> = match std::fs::read(file) {
        Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            tracing::warn!(file = %file.display(), %error, "MTA-STS policies could not be read");
            Vec::new()
        }),
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(file = %file.display(), %error, "MTA-STS policies could not be read");
            }
            Vec::new()
        }
    };
    all.into_iter()
        .filter_map(|saved| {
            let policy = Policy::parse(saved.policy.as_bytes()).ok()?;
            let kept = Kept {
                id: saved.id,
                fetched: saved.fetched,
                until: saved.fetched.plus(policy.max_age),
                policy: Some(Arc::new(policy)),
                failed: None,
                refreshing: false,
            };
            kept.in_force(now)?;
            Some((saved.domain.into(), kept))
        })
        .collect()
}

pub(super) fn render(kept: &HashMap<Box<str>, Kept>) -> Vec<u8> {
    let all: Vec<Saved> = kept
        .iter()
        .filter_map(|(domain, kept)| {
            Some(Saved {
                domain: domain.to_string(),
                id: kept.id.clone(),
                fetched: kept.fetched,
                policy: kept.policy.as_ref()?.to_text(),
            })
        })
        .collect();
    // Strings and numbers always are JSON.
    serde_json::to_vec(&all).unwrap_or_default()
}

/// Afterwards the file is the old or the new one, also after a crash.
pub(super) fn write(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = file.with_extension("new");
    let mut writing = File::create(&new)?;
    writing.write_all(bytes)?;
    writing.sync_all()?;
    std::fs::rename(new, file)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tidegate_mail::sts::Mode;
    use tidegate_queue::ports::Clock;

    use super::*;
    use crate::clock::OsClock;

    #[test]
    fn what_is_in_force_comes_back_and_damage_does_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("policies.json");
        let now = OsClock.now();
        assert!(read(&file, now).is_empty());
        let policy = Policy {
            mode: Mode::Enforce,
            max_age: Duration::from_secs(1000),
            mx: vec!["*.example".to_owned()],
        };
        let kept = HashMap::from([(
            "d.example".into(),
            Kept {
                id: "7".to_owned(),
                policy: Some(Arc::new(policy.clone())),
                fetched: now,
                until: now.plus(policy.max_age),
                failed: Some(now),
                refreshing: true,
            },
        )]);
        write(&file, &render(&kept)).unwrap();
        let back = read(&file, now.plus(Duration::from_secs(999)));
        let known = &back["d.example"];
        assert_eq!(known.policy.as_deref(), Some(&policy));
        assert_eq!(
            (known.id.as_str(), known.until),
            ("7", now.plus(policy.max_age))
        );
        assert!(read(&file, now.plus(Duration::from_secs(1000))).is_empty());
        std::fs::write(&file, "{").unwrap();
        assert!(read(&file, now).is_empty());
    }
}
