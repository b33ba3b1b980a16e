//! The target of every name: it judges what the fuzzer thinks of with the entry of its own name.
#![no_main]

#[path = "entries.rs"]
mod entries;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    // Whether it was taken is for the property tests.
    let _taken = entries::entry(env!("CARGO_BIN_NAME"))(data);
});
