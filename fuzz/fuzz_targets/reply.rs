//! See `tidegate_fuzz::reply` for its input and its invariants.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidegate_fuzz::reply(bytes));
