//! YAML documents and request paths.
#![no_main]
libfuzzer_sys::fuzz_target!(|text: &str| {
    let _ = countersign_policy::parse(text, "fuzz");
    if let Ok(once) = countersign_policy::normalize(text) {
        assert_eq!(countersign_policy::normalize(&once).as_deref(), Ok(&*once));
    }
});
