//! The engine on stepped time: 48 hours of retries in milliseconds, on the real embedded
//! store, against a world picked by a seed.
//!
//! A failure prints its seed; `TIDEGATE_SIM_SEED=n` runs that one alone, and
//! `TIDEGATE_SIM_COUNT=n` runs more of them.

mod calls;
mod check;
mod clock;
mod crash;
mod doubts;
mod random;
mod scenario;
mod steady;
mod world;

mod export;
mod lifetimes;
mod measures;
mod notices;
mod orders;
mod parameters;
mod passthrough;
mod quotas;
mod routes;
mod seeds;
mod waits;
mod wording;
