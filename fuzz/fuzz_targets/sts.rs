//! See `tidegate_fuzz::sts` for its input and its invariants.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidegate_fuzz::sts(bytes));
