//! What calls cost, and which of them gave no answer.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::PAIRS;

/// Microseconds of a call: how often each was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Costs(BTreeMap<u32, u64>);

/// Microseconds of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    pub p50: u32,
    pub p99: u32,
    pub max: u32,
}

/// Calls that gave no answer: traps, overruns, invalid answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Failures(Vec<Failed>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    pub what: String,
    pub calls: u64,
}

impl Failures {
    pub(super) fn enter(&mut self, what: &str) {
        if let Some(failed) = self.0.iter_mut().find(|f| f.what == what) {
            failed.calls += 1;
        } else if self.0.len() < PAIRS {
            self.0.push(Failed {
                what: what.to_owned(),
                calls: 1,
            });
        } else if let Some(last) = self.0.last_mut() {
            last.calls += 1;
        }
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Failed> {
        self.0.iter()
    }

    /// Calls in all.
    pub fn calls(&self) -> u64 {
        self.0.iter().map(|f| f.calls).sum()
    }
}

impl Costs {
    pub(super) fn enter(&mut self, micros: u32, times: u64) {
        *self.0.entry(micros).or_default() += times;
    }

    pub(super) fn add(&mut self, other: &Costs) {
        for (micros, times) in &other.0 {
            self.enter(*micros, *times);
        }
    }

    pub(super) fn sum_up(&self) -> Cost {
        Cost {
            p50: self.percentile(50),
            p99: self.percentile(99),
            max: self.0.keys().next_back().copied().unwrap_or(0),
        }
    }

    fn percentile(&self, percent: u64) -> u32 {
        let all: u64 = self.0.values().sum();
        let wanted = (all * percent).div_ceil(100);
        let mut seen = 0;
        for (micros, times) in &self.0 {
            seen += times;
            if seen >= wanted {
                return *micros;
            }
        }
        0
    }
}
