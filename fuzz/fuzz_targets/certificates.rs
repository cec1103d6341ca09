//! Certificates, requests and PEM from anyone.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = countersign_x509::CertInfo::parse(bytes);
    let _ = countersign_x509::csr::verify(bytes);
    let _ = countersign_x509::csr::requested_names(bytes);
    let _ = countersign_x509::csr::RequestFacts::parse(bytes);
    let _ = countersign_x509::RevocationList::parse(bytes);
    let _ = countersign_x509::pem::parse(bytes);
    if let Some(parts) = countersign_x509::pem::split_der(bytes) {
        assert_eq!(parts.concat(), bytes);
    }
});
