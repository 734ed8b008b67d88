//! See `entry.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tidemark_storage_fuzz::recovery(data));
