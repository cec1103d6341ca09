//! Request targets in every mode: the strict normal form is stable and holds nothing that could be read anew.
#![no_main]
use countersign_policy::{Normalization, normalize_as};

libfuzzer_sys::fuzz_target!(|text: &str| {
    for mode in [
        Normalization::None,
        Normalization::Base,
        Normalization::MergeSlashes,
        Normalization::DecodeAndMergeSlashes,
    ] {
        let _ = normalize_as(text, mode);
    }
    if let Ok(once) = normalize_as(text, Normalization::Strict) {
        assert_eq!(normalize_as(&once, Normalization::Strict).as_deref(), Ok(&*once));
        let path = once.split('?').next().unwrap_or_default();
        assert!(!path.contains("//") && !path.contains("/../") && !path.contains('\\'));
    }
});
