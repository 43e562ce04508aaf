//! See `tidegate_fuzz::data` for its input and its invariants.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidegate_fuzz::data(bytes));
