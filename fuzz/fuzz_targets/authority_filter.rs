//! HTTP/2 frames from local callers: any cut gives the same, nothing panics.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: (Vec<u8>, usize)| {
    let (bytes, cut) = input;
    let whole = countersign_wire::filter_for_fuzzing(&bytes, 0);
    assert_eq!(whole, countersign_wire::filter_for_fuzzing(&bytes, cut));
});
