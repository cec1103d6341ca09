//! Tokens and bundles from anyone.
#![no_main]
use countersign_identity::{BundleSet, TrustDomain, UnixTime};
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let set = BundleSet::default();
        assert!(countersign_jose::validate(text, "a", &set, UnixTime::from_secs(0)).is_err());
        let _ = countersign_wire::join::JoinString::parse(text);
    }
    if let Ok(td) = TrustDomain::new("a.test") {
        let _ = countersign_jose::bundle_from_jwks(&td, bytes);
    }
});
