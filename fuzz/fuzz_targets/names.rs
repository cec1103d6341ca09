//! SPIFFE IDs and selectors.
#![no_main]
use countersign_identity::{DnsName, Selector, SpiffeId};
libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(id) = SpiffeId::parse(text) {
        assert_eq!(SpiffeId::parse(id.as_str()).as_ref(), Ok(&id));
    }
    let _ = text.parse::<Selector>();
    let _ = text.parse::<DnsName>();
});
