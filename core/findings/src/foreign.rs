//! Errors in the words of other stacks: what they mean, whose side has to be looked at, and how.

use crate::Code;

/// What an error of another stack means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// Who says so: `Go`, `OpenSSL`, …
    pub stack: &'static str,
    /// All of these are in the text, in any order and case.
    pub words: &'static [&'static str],
    /// Our name for it.
    pub code: Code,
    /// In one or two sentences: who refused whom, and why.
    pub meaning: &'static str,
    /// What to look at, in order.
    pub look: &'static [&'static str],
}

const INSPECT: &str = "see what the port presents: countersign id inspect HOST:PORT";
const VERIFY: &str =
    "see where the chain breaks: countersign id verify CHAIN.pem --bundle BUNDLE.pem";
const CLOCK: &str = "compare the clocks of both ends (date -u; chronyc tracking)";
const CHAIN: &str = "let the server send its whole chain, leaf first, without the root";
const TRUST: &str = "give the side that complains the CA bundle that issued the other side's certificate, not the certificate itself";
const CLIENT_LOG: &str = "look at the server's log for the same moment: the reason is there, the client only gets the alert";
const CLIENT_CERT: &str =
    "give the client a certificate and its key, from the CA that the server trusts";
const NAMES: &str = "compare the name that is dialled with the certificate's SANs; the subject's CN does not count any more";
const VERSIONS: &str = "find a version and cipher that both speak: openssl s_client -connect HOST:PORT -tls1_2, then -tls1_3";
const PLAIN: &str = "one side speaks plaintext: check the scheme and the port, and whether a proxy ends TLS in between";
const ROTATE: &str = "renew the certificate, and find out why that did not happen by itself";

macro_rules! foreign {
    ($( $stack:literal [$($word:literal),+] $code:ident $meaning:literal => [$($look:expr),+]; )*) => {
        /// Everything that is known, by stack.
        pub const FOREIGN: &[Foreign] = &[
            $( Foreign {
                stack: $stack, words: &[$($word),+], code: Code::$code, meaning: $meaning, look: &[$($look),+],
            }, )*
        ];
    };
}

foreign! {
    "Go" ["x509: certificate signed by unknown authority"] UnknownAuthority
        "this side verified the other side's certificate and has no root for it, or the other side left out an intermediate" => [INSPECT, TRUST, CHAIN, VERIFY];
    "Go" ["x509: certificate has expired or is not yet valid", "is after"] CertificateExpired
        "the other side's certificate has expired by this side's clock" => [INSPECT, CLOCK, ROTATE];
    "Go" ["x509: certificate has expired or is not yet valid", "is before"] CertificateNotYetValid
        "the other side's certificate is not valid yet by this side's clock: one of the clocks is wrong, or it was issued for later" => [CLOCK, INSPECT];
    "Go" ["x509: certificate is valid for", "not"] HostnameMismatch
        "the other side's certificate is good, and is for another name" => [INSPECT, NAMES];
    "Go" ["x509: cannot validate certificate for", "doesn't contain any IP SANs"] HostnameMismatch
        "an IP address was dialled, and the certificate names none" => [NAMES, "dial the name, or issue the certificate with an IP SAN"];
    "Go" ["x509: certificate relies on legacy Common Name field"] HostnameMismatch
        "the certificate has a CN and no SANs, which Go does not take any more" => ["reissue it with SANs", INSPECT];
    "Go" ["x509: certificate specifies an incompatible key usage"] WrongExtendedKeyUsage
        "the certificate may not be used in this role: a server's for a client, or the other way round" => [INSPECT, "issue it with clientAuth for clients, serverAuth for servers; SVIDs have both"];
    "Go" ["x509: certificate is not authorized to sign other certificates"] ChainConstraintViolated
        "something in the chain issued a certificate and is no CA" => [VERIFY];
    "Go" ["tls: private key does not match public key"] KeyCertificateMismatch
        "certificate and key of this process are not a pair" => ["compare them: openssl x509 -noout -pubkey -in C.pem; openssl pkey -pubout -in K.pem", "rotate both files together, or by an atomic rename of a directory"];
    "Go" ["remote error: tls: bad certificate"] RefusedByPeer
        "the other side refused this side's certificate: none was sent, it chains to another CA, or it has expired" => [CLIENT_LOG, CLIENT_CERT];
    "Go" ["remote error: tls: certificate required"] NoClientCertificate
        "the server demands a client certificate, and none was sent" => [CLIENT_CERT, "a client sends none if its issuer is not among the CAs that the server names"];
    "Go" ["remote error: tls: unknown certificate authority"] UnknownAuthority
        "the other side has no root for this side's certificate" => [CLIENT_LOG, TRUST];
    "Go" ["remote error: tls: expired certificate"] CertificateExpired
        "the other side says that this side's certificate has expired" => [ROTATE, CLOCK];
    "Go" ["remote error: tls: unknown certificate"] RefusedByPeer
        "the other side refused this side's certificate for a reason of its own" => [CLIENT_LOG];
    "Go" ["tls: client didn't provide a certificate"] NoClientCertificate
        "a client came without a certificate to a server that demands one" => [CLIENT_CERT];
    "Go" ["tls: failed to verify certificate", "unknown authority"] UnknownAuthority
        "the other side's certificate chains to no root of this side" => [INSPECT, TRUST, CHAIN];
    "Go" ["tls: first record does not look like a TLS handshake"] PeerNotTls
        "TLS was spoken to a port that is plaintext" => [PLAIN];
    "Go" ["http: server gave HTTP response to HTTPS client"] PeerNotTls
        "HTTPS was spoken to a port that is plaintext HTTP" => [PLAIN];
    "Go" ["remote error: tls: protocol version not supported"] TlsVersionMismatch
        "the two share no TLS version" => [VERSIONS];
    "Go" ["tls: no supported versions satisfy"] TlsVersionMismatch
        "MinVersion and MaxVersion of this side leave no version" => [VERSIONS];
    "Go" ["remote error: tls: handshake failure"] TlsParameterMismatch
        "the two share no cipher, curve or signature scheme, or the server has no certificate for the name that was asked for" => [VERSIONS, INSPECT];
    "Go" ["TLS handshake timeout"] HandshakeTimeout
        "TCP was accepted and the handshake did not end in time: a proxy that waits, an overloaded peer, an MTU problem, or a port that speaks something else" => [PLAIN, "try from the same host: openssl s_client -connect HOST:PORT"];
    "Go" ["x509svid: could not", "verify"] UnknownAuthority
        "go-spiffe found no bundle that the peer's SVID chains to" => [VERIFY, "federate the trust domains if the peer is of another one"];
    "Go" ["unexpected ID"] WrongSpiffeId
        "go-spiffe verified the peer, and it is another one than was authorized" => [INSPECT, "correct AuthorizeID, or the address that is dialled"];

    "OpenSSL" ["unable to get local issuer certificate"] MissingIntermediate
        "this side cannot build the chain: an intermediate was not sent, or the root is not trusted" => [INSPECT, CHAIN, TRUST];
    "OpenSSL" ["unable to verify the first certificate"] MissingIntermediate
        "the server sent its leaf only, and its issuer is not known here" => [CHAIN, VERIFY];
    "OpenSSL" ["self-signed certificate in certificate chain"] UnknownAuthority
        "the chain ends in a root that this side does not trust" => [TRUST, INSPECT];
    "OpenSSL" ["self signed certificate in certificate chain"] UnknownAuthority
        "the chain ends in a root that this side does not trust" => [TRUST, INSPECT];
    "OpenSSL" ["self-signed certificate"] UnknownAuthority
        "the other side presents a certificate that it made itself" => [INSPECT, TRUST];
    "OpenSSL" ["certificate has expired"] CertificateExpired
        "a certificate of the chain has expired by this side's clock; it may be an intermediate" => [INSPECT, CLOCK, ROTATE];
    "OpenSSL" ["certificate is not yet valid"] CertificateNotYetValid
        "a certificate of the chain is not valid yet by this side's clock" => [CLOCK];
    "OpenSSL" ["hostname mismatch"] HostnameMismatch
        "the certificate is good, and is for another name" => [NAMES, INSPECT];
    "OpenSSL" ["ip address mismatch"] HostnameMismatch
        "an IP address was dialled that the certificate does not name" => [NAMES];
    "OpenSSL" ["unsuitable certificate purpose"] WrongExtendedKeyUsage
        "the certificate may not be used in this role" => [INSPECT];
    "OpenSSL" ["invalid ca certificate"] ChainConstraintViolated
        "something in the chain issued a certificate and is no CA" => [VERIFY];
    "OpenSSL" ["key values mismatch"] KeyCertificateMismatch
        "certificate and key that were loaded are not a pair" => ["compare them: openssl x509 -noout -pubkey -in C.pem; openssl pkey -pubout -in K.pem"];
    "OpenSSL" ["peer did not return a certificate"] NoClientCertificate
        "a client came without a certificate to a server that demands one" => [CLIENT_CERT];
    "OpenSSL" ["certificate required"] NoClientCertificate
        "the server demands a client certificate, and none was sent" => [CLIENT_CERT];
    "OpenSSL" ["alert unknown ca"] UnknownAuthority
        "the other side has no root for this side's certificate" => [CLIENT_LOG, TRUST];
    "OpenSSL" ["alert certificate expired"] CertificateExpired
        "the other side says that this side's certificate has expired" => [ROTATE, CLOCK];
    "OpenSSL" ["alert bad certificate"] RefusedByPeer
        "the other side refused this side's certificate" => [CLIENT_LOG];
    "OpenSSL" ["alert certificate unknown"] RefusedByPeer
        "the other side refused this side's certificate for a reason of its own" => [CLIENT_LOG];
    "OpenSSL" ["alert certificate revoked"] CertificateRevoked
        "the other side says that this side's certificate is revoked" => [CLIENT_LOG, ROTATE];
    "OpenSSL" ["wrong version number"] PeerNotTls
        "the answer was not TLS: the port is plaintext, or a proxy answered" => [PLAIN];
    "OpenSSL" ["packet length too long"] PeerNotTls
        "the answer was not TLS: the port is plaintext" => [PLAIN];
    "OpenSSL" ["http request"] PeerNotTls
        "somebody spoke plaintext HTTP to this TLS port" => [PLAIN];
    "OpenSSL" ["unsupported protocol"] TlsVersionMismatch
        "the two share no TLS version" => [VERSIONS];
    "OpenSSL" ["alert protocol version"] TlsVersionMismatch
        "the two share no TLS version" => [VERSIONS];
    "OpenSSL" ["no shared cipher"] TlsParameterMismatch
        "the two share no cipher suite; a server without a usable key says so too" => [VERSIONS];
    "OpenSSL" ["alert handshake failure"] TlsParameterMismatch
        "the two share no parameters, or the server demands a client certificate (TLS 1.2)" => [VERSIONS, CLIENT_CERT];
    "OpenSSL" ["unexpected eof while reading"] RefusedByPeer
        "the other side closed the connection without a word; in TLS 1.3 often after it refused the client's certificate" => [CLIENT_LOG];

    "Python" ["eof occurred in violation of protocol"] RefusedByPeer
        "the other side closed the connection without a word; in TLS 1.3 often after it refused the client's certificate, or got none" => [CLIENT_LOG, CLIENT_CERT];
    "curl" ["no alternative certificate subject name matches"] HostnameMismatch
        "the certificate is good, and is for another name" => [NAMES, INSPECT];

    "Java" ["unable to find valid certification path to requested target"] UnknownAuthority
        "the trust store of this JVM has no root for the other side, or an intermediate is missing" => ["see which trust store is in use: -Djavax.net.debug=ssl:trustmanager", TRUST, CHAIN];
    "Java" ["certificateexpiredexception"] CertificateExpired
        "a certificate of the chain has expired" => [INSPECT, CLOCK, ROTATE];
    "Java" ["certificatenotyetvalidexception"] CertificateNotYetValid
        "a certificate of the chain is not valid yet" => [CLOCK];
    "Java" ["no subject alternative", "found"] HostnameMismatch
        "the certificate is good, and is for another name" => [NAMES];
    "Java" ["no name matching", "found"] HostnameMismatch
        "the certificate is good, and is for another name" => [NAMES];
    "Java" ["received fatal alert: bad_certificate"] RefusedByPeer
        "the other side refused this side's certificate, or got none" => [CLIENT_LOG, CLIENT_CERT];
    "Java" ["received fatal alert: certificate_required"] NoClientCertificate
        "the server demands a client certificate, and none was sent" => [CLIENT_CERT];
    "Java" ["received fatal alert: certificate_unknown"] RefusedByPeer
        "the other side does not trust this side's certificate" => [CLIENT_LOG, TRUST];
    "Java" ["received fatal alert: unknown_ca"] UnknownAuthority
        "the other side has no root for this side's certificate" => [CLIENT_LOG, TRUST];
    "Java" ["received fatal alert: handshake_failure"] TlsParameterMismatch
        "the two share no parameters, or the server demands a client certificate (TLS 1.2)" => [VERSIONS, CLIENT_CERT];
    "Java" ["received fatal alert: protocol_version"] TlsVersionMismatch
        "the two share no TLS version" => [VERSIONS];
    "Java" ["empty client certificate chain"] NoClientCertificate
        "a client came without a certificate to a server that demands one" => [CLIENT_CERT];
    "Java" ["unrecognized ssl message, plaintext connection"] PeerNotTls
        "TLS was spoken to a port that is plaintext, or the other way round" => [PLAIN];
    "Java" ["extended key usage does not permit"] WrongExtendedKeyUsage
        "the certificate may not be used in this role" => [INSPECT];

    "rustls" ["invalid peer certificate: unknownissuer"] UnknownAuthority
        "this side has no root for the other side's certificate, or an intermediate is missing" => [INSPECT, TRUST, CHAIN];
    "rustls" ["invalid peer certificate: expired"] CertificateExpired
        "the other side's certificate has expired by this side's clock" => [INSPECT, CLOCK, ROTATE];
    "rustls" ["invalid peer certificate: certificate expired"] CertificateExpired
        "the other side's certificate has expired by this side's clock" => [INSPECT, CLOCK, ROTATE];
    "rustls" ["invalid peer certificate: notvalidyet"] CertificateNotYetValid
        "the other side's certificate is not valid yet by this side's clock" => [CLOCK];
    "rustls" ["certificate not valid for name"] HostnameMismatch
        "the certificate is good, and is for another name" => [NAMES];
    "rustls" ["invalid peer certificate: notvalidforname"] HostnameMismatch
        "the certificate is good, and is for another name" => [NAMES];
    "rustls" ["invalid peer certificate: badsignature"] BadSignature
        "a signature in the chain is wrong: two CAs of the same name, or a damaged file" => [VERIFY];
    "rustls" ["causedasendentity"] CaUsedAsLeaf
        "the other side presents a CA certificate as its own" => [INSPECT, "issue a leaf with CA:FALSE"];
    "rustls" ["peer sent no certificates"] NoClientCertificate
        "a client came without a certificate to a server that demands one" => [CLIENT_CERT];
    "rustls" ["received fatal alert: certificaterequired"] NoClientCertificate
        "the server demands a client certificate, and none was sent" => [CLIENT_CERT];
    "rustls" ["received fatal alert: unknownca"] UnknownAuthority
        "the other side has no root for this side's certificate" => [CLIENT_LOG, TRUST];
    "rustls" ["received fatal alert: badcertificate"] RefusedByPeer
        "the other side refused this side's certificate" => [CLIENT_LOG];
    "rustls" ["received corrupt message of type invalidcontenttype"] PeerNotTls
        "the answer was not TLS: the port is plaintext" => [PLAIN];
    "rustls" ["keymismatch"] KeyCertificateMismatch
        "certificate and key of this process are not a pair" => ["compare them: openssl x509 -noout -pubkey -in C.pem; openssl pkey -pubout -in K.pem"];

    "Envoy" ["openssl_internal", "certificate_verify_failed"] UnknownAuthority
        "Envoy verified the other side's certificate, and it failed: issuer, SAN matcher or lifetime; the response flag and %DOWNSTREAM_TRANSPORT_FAILURE_REASON% say which" => ["counters of the listener or cluster: ssl.fail_verify_error, ssl.fail_verify_san, ssl.fail_verify_no_cert", INSPECT];
    "Envoy" ["verify cert failed: x509_verify_cert"] UnknownAuthority
        "the chain that Envoy was shown ends at no trusted root, or has expired; the words behind it say which" => [TRUST, VERIFY];
    "Envoy" ["verify san list"] WrongSpiffeId
        "the chain is good, and no SAN matches match_typed_subject_alt_names" => [INSPECT, "correct the matcher, or the identity that is dialled"];
    "Envoy" ["peer_did_not_return_a_certificate"] NoClientCertificate
        "a client came without a certificate to a listener with require_client_certificate" => [CLIENT_CERT];
    "Envoy" ["tls_error", "wrong_version_number"] PeerNotTls
        "Envoy spoke TLS to a plaintext upstream; in Istio a DestinationRule and the server's mode disagree" => [PLAIN, "in a mesh: compare DestinationRule tls.mode with PeerAuthentication"];
    "Envoy" ["tls_error", "certificate_expired"] CertificateExpired
        "a certificate of the chain has expired" => [ROTATE, CLOCK];
    "Envoy" ["tls_error", "alert_unknown_ca"] UnknownAuthority
        "the other side has no root for Envoy's certificate" => [CLIENT_LOG, TRUST];
    "Envoy" ["secret is not supplied by sds"] NoIdentityYet
        "SDS has not given Envoy its certificate or bundle yet" => ["is the agent's socket mounted and its cluster up; does an entry match: countersign entry list"];
    "Envoy" ["rbac: access denied"] DeniedByPolicy
        "mTLS is fine, and an authorization policy refuses the caller" => ["countersign policy explain --from ID --to NS/LABELS:PORT --method M --path P"];

    "Node" ["unable_to_verify_leaf_signature"] MissingIntermediate
        "the server sent its leaf only, and its issuer is not known here" => [CHAIN, TRUST];
    "Node" ["self_signed_cert_in_chain"] UnknownAuthority
        "the chain ends in a root that this process does not trust" => [TRUST, "NODE_EXTRA_CA_CERTS=ca.pem, or the ca option"];
    "Node" ["depth_zero_self_signed_cert"] UnknownAuthority
        "the other side presents a certificate that it made itself" => [TRUST];
    "Node" ["cert_has_expired"] CertificateExpired
        "a certificate of the chain has expired" => [INSPECT, CLOCK, ROTATE];
    "Node" ["err_tls_cert_altname_invalid"] HostnameMismatch
        "the certificate is good, and is for another name" => [NAMES];
    ".NET" ["partialchain"] MissingIntermediate
        "the chain cannot be built: an intermediate is missing, or the root is not trusted" => [CHAIN, TRUST];
    ".NET" ["remotecertificatenamemismatch"] HostnameMismatch
        "the certificate is good, and is for another name" => [NAMES];
    ".NET" ["remotecertificatenotavailable"] NoClientCertificate
        "the other side presented no certificate" => [CLIENT_CERT];
    ".NET" ["untrustedroot"] UnknownAuthority
        "the chain ends in a root that is not trusted here" => [TRUST];
    "nginx" ["no required ssl certificate was sent"] NoClientCertificate
        "nginx demands a client certificate, and none was sent" => [CLIENT_CERT];
    "nginx" ["the ssl certificate error"] RefusedByPeer
        "nginx refused the client's certificate; its error log says why" => [CLIENT_LOG];
    "nginx" ["the plain http request was sent to https port"] PlaintextOnStrict
        "plaintext HTTP was spoken to a TLS port" => [PLAIN];
    "any" ["connection refused"] UpstreamUnreachable
        "nothing listens there, or a firewall answers for it" => ["is the process up, on that address and port: ss -ltnp", "does the Service or proxy point at the right port"];
    "any" ["connection reset by peer"] RefusedByPeer
        "the other side broke the connection off: a port that is not what it is taken for, a refused certificate, or a policy" => [CLIENT_LOG, PLAIN];
    "any" ["transport endpoint is not connected"] RefusedByPeer
        "the other side broke the connection off: a refused certificate, or a policy" => [CLIENT_LOG];
    "any" ["broken pipe"] RefusedByPeer
        "the other side broke the connection off: a refused certificate, or a policy" => [CLIENT_LOG];
    "any" ["i/o timeout"] UpstreamTimeout
        "no answer at all: a firewall that drops, a wrong address, or an overloaded peer" => ["try from the same host: nc -vz HOST PORT"];
    "any" ["connection timed out"] UpstreamTimeout
        "no answer at all: a firewall that drops, a wrong address, or an overloaded peer" => ["try from the same host: nc -vz HOST PORT"];
}

/// What an error text can mean, the best match first: the more of it is explained, the better.
pub fn explain(text: &str) -> Vec<&'static Foreign> {
    let lower = text.to_lowercase();
    let mut out: Vec<&Foreign> = FOREIGN
        .iter()
        .filter(|f| f.words.iter().all(|w| lower.contains(&w.to_lowercase())))
        .collect();
    out.sort_by_key(|f| std::cmp::Reverse(f.words.iter().map(|w| w.len()).sum::<usize>()));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_its_own_best_match() {
        for f in FOREIGN {
            let text = f.words.join(" … ").to_uppercase();
            let best = explain(&text);
            assert_eq!(best.first().map(|b| b.code), Some(f.code), "{text}: {best:?}");
            assert!(!f.look.is_empty() && !f.meaning.ends_with('.'), "{text}");
        }
    }

    #[test]
    fn whole_messages_are_told_apart() {
        for (text, code) in [
            (
                r#"Get "https://api:8443/": tls: failed to verify certificate: x509: certificate signed by unknown authority"#,
                Code::UnknownAuthority,
            ),
            (
                "x509: certificate has expired or is not yet valid: current time 2026-01-02T00:00:00Z is after 2026-01-01T00:00:00Z",
                Code::CertificateExpired,
            ),
            (
                "x509: certificate has expired or is not yet valid: current time 2026-01-02T00:00:00Z is before 2026-02-01T00:00:00Z",
                Code::CertificateNotYetValid,
            ),
            (
                "curl: (60) SSL certificate problem: unable to get local issuer certificate",
                Code::MissingIntermediate,
            ),
            (
                "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: Hostname mismatch, certificate is not valid for 'api'. (_ssl.c:1006)",
                Code::HostnameMismatch,
            ),
            (
                "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate has expired (_ssl.c:1006)",
                Code::CertificateExpired,
            ),
            (
                "ssl.SSLError: [SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert certificate required (_ssl.c:2580)",
                Code::NoClientCertificate,
            ),
            (
                "PKIX path building failed: sun.security.provider.certpath.SunCertPathBuilderException: unable to find valid certification path to requested target",
                Code::UnknownAuthority,
            ),
            (
                "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure, transport failure reason: TLS_error:|268435703:SSL routines:OPENSSL_internal:WRONG_VERSION_NUMBER:TLS_error_end",
                Code::PeerNotTls,
            ),
            ("error:0A00010B:SSL routines::wrong version number", Code::PeerNotTls),
            (
                "curl: (56) OpenSSL SSL_read: error:0A00045C:SSL routines::tlsv13 alert certificate required, errno 0",
                Code::NoClientCertificate,
            ),
            ("dial tcp 127.0.0.1:9: connect: connection refused", Code::UpstreamUnreachable),
        ] {
            assert_eq!(explain(text).first().map(|f| f.code), Some(code), "{text}");
        }
        assert!(explain("everything is fine").is_empty());
    }
}
