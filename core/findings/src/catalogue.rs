//! The catalogue. A code is never renumbered and never reused; `docs/codes.md` is generated from it.

use std::fmt;

/// How bad an occurrence is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// A weakness without an immediate consequence.
    Low,
    /// Something is refused or degraded.
    Medium,
    /// Identity or authorization is at stake, or a service is down.
    High,
    /// Anybody gets in, or anything is believed.
    Critical,
}

impl Severity {
    /// Lower-case name, as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Low => "low",
            Severity::Medium => "medium",
            Severity::High => "high",
            Severity::Critical => "critical",
        }
    }

    /// By its name.
    pub fn parse(name: &str) -> Option<Self> {
        [Severity::Info, Severity::Low, Severity::Medium, Severity::High, Severity::Critical]
            .into_iter()
            .find(|s| s.as_str() == name)
    }

    /// One step less.
    pub const fn lowered(self) -> Self {
        match self {
            Severity::Critical => Severity::High,
            Severity::High => Severity::Medium,
            Severity::Medium => Severity::Low,
            Severity::Low | Severity::Info => Severity::Info,
        }
    }
}

macro_rules! catalogue {
    ($( $number:literal $name:ident $slug:literal $severity:ident $title:literal, $hint:literal; )*) => {
        /// One kind of failure. `CS1xxx` certificate and chain, `CS2xxx` handshake, mode and relaying, `CS3xxx`
        /// authorization, `CS4xxx` issuance and attestation, `CS5xxx` configuration, `CS6xxx` operations.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum Code {
            $( #[doc = $title] $name = $number, )*
        }

        impl Code {
            /// Every code, ascending.
            pub const ALL: &'static [Code] = &[ $( Code::$name, )* ];

            /// `CS1001`.
            pub const fn as_str(self) -> &'static str {
                match self { $( Code::$name => concat!("CS", stringify!($number)), )* }
            }

            /// The reason as a metric label and JSON value: `certificate_expired`.
            pub const fn slug(self) -> &'static str {
                match self { $( Code::$name => $slug, )* }
            }

            /// One line for people.
            pub const fn title(self) -> &'static str {
                match self { $( Code::$name => $title, )* }
            }

            /// What to do next.
            pub const fn hint(self) -> &'static str {
                match self { $( Code::$name => $hint, )* }
            }

            /// How bad it is.
            pub const fn severity(self) -> Severity {
                match self { $( Code::$name => Severity::$severity, )* }
            }
        }
    };
}

catalogue! {
    1001 CertificateExpired "certificate_expired" High
        "certificate has expired",
        "check that the peer's agent is running and renewing (`countersign status`), and that both clocks agree";
    1002 CertificateNotYetValid "certificate_not_yet_valid" High
        "certificate is not valid yet",
        "compare the clocks of both hosts; SVIDs are back-dated by only 10 s";
    1003 UnknownAuthority "unknown_authority" High
        "chain ends at an authority that is not in the trust bundle",
        "compare `countersign id inspect` of the peer with `countersign bundle show`; the peer was issued by another CA";
    1004 MissingIntermediate "missing_intermediate" High
        "an intermediate certificate is missing from the presented chain",
        "make the peer send leaf and intermediates (not only the leaf); the missing issuer is named above";
    1005 WrongTrustDomain "wrong_trust_domain" High
        "identity belongs to a trust domain that is not trusted here",
        "federate with that trust domain, or point the client at the right service";
    1006 WrongSpiffeId "wrong_spiffe_id" High
        "peer proved an identity, but not the expected one",
        "correct `--peer-id`, or find out which service really listens at that address";
    1007 SeveralUriSans "several_uri_sans" High
        "certificate has more than one URI SAN",
        "reissue the certificate with exactly one SPIFFE ID (X509-SVID section 2)";
    1008 NoSpiffeId "no_spiffe_id" High
        "certificate has no SPIFFE ID",
        "issue an X509-SVID for the peer; a certificate with only DNS names or a CN is no workload identity";
    1009 CaUsedAsLeaf "ca_used_as_leaf" High
        "a CA certificate was presented as a workload's own certificate",
        "give the workload a leaf certificate; a signing certificate never authenticates (X509-SVID section 3.2)";
    1010 KeyCertificateMismatch "key_certificate_mismatch" High
        "private key and certificate do not belong together",
        "reinstall certificate and key as one pair; they were probably renewed one after the other";
    1011 WrongExtendedKeyUsage "wrong_extended_key_usage" High
        "extended key usage does not permit this use",
        "issue the certificate with both serverAuth and clientAuth (X509-SVID section 4.4)";
    1012 WrongKeyUsage "wrong_key_usage" High
        "key usage does not permit this use",
        "a leaf needs digitalSignature and must not have keyCertSign or cRLSign (X509-SVID section 4.3)";
    1013 CertificateRevoked "certificate_revoked" High
        "certificate has been revoked",
        "issue a new certificate for the workload if the revocation was not meant for it";
    1014 MalformedCertificate "malformed_certificate" High
        "certificate cannot be parsed",
        "inspect the file with `countersign id inspect`; it may be truncated or not a certificate at all";
    1015 MalformedSpiffeId "malformed_spiffe_id" High
        "URI SAN is not a valid SPIFFE ID",
        "issue the certificate with a URI SAN of the form spiffe://TRUST-DOMAIN/PATH";
    1016 BadSignature "bad_signature" High
        "a signature in the chain does not verify",
        "the certificate was altered, or its issuer's name is used by another key; reissue it";
    1017 UnsupportedAlgorithm "unsupported_algorithm" High
        "signature or key algorithm is not accepted",
        "use ECDSA P-256/P-384, Ed25519 or RSA of at least 2048 bits with SHA-256 or better";
    1018 ChainConstraintViolated "chain_constraint_violated" High
        "chain violates a constraint of one of its CAs",
        "check path length and name constraints of the issuing CAs";
    1019 RevocationUnknown "revocation_unknown" High
        "revocation status cannot be established",
        "provide a current CRL for every issuer in the chain";
    1020 HostnameMismatch "hostname_mismatch" High
        "certificate is for another name",
        "dial a name that the certificate has as a SAN, or issue it for the name that is dialled";
    1101 JwtMalformed "jwt_malformed" Medium
        "JWT-SVID is malformed",
        "send a compact JWS whose header holds only alg, kid and typ (JWT-SVID section 2)";
    1102 JwtAlgorithmRefused "jwt_algorithm_refused" High
        "JWT-SVID uses an algorithm that is not allowed",
        "sign with RS, ES or PS 256/384/512 (JWT-SVID section 2.1)";
    1103 JwtKeyUnknown "jwt_key_unknown" High
        "JWT-SVID was signed with a key that is not in the trust bundle",
        "refresh the bundle; the token may be from another trust domain or from a retired key";
    1104 JwtSignatureInvalid "jwt_signature_invalid" High
        "signature of the JWT-SVID does not verify",
        "the token was altered, or another key uses the same key id";
    1105 JwtExpired "jwt_expired" Medium
        "JWT-SVID has expired",
        "fetch a fresh token for each call; JWT-SVIDs live for minutes";
    1106 JwtAudienceMismatch "jwt_audience_mismatch" Medium
        "JWT-SVID is meant for another audience",
        "fetch the token with the audience that this service expects";
    2001 NoClientCertificate "no_client_certificate" Medium
        "client presented no certificate",
        "give the client an identity, for example `countersign run --id /ns/NS/sa/NAME --outbound … -- COMMAND`";
    2002 HandshakeTimeout "handshake_timeout" Medium
        "TLS handshake did not finish in time",
        "look for packet loss, an overloaded peer, or a client that connects without speaking TLS";
    2003 TlsVersionMismatch "tls_version_mismatch" Medium
        "peers share no TLS version",
        "let the peer speak TLS 1.3, or opt in to 1.2 with `--tls12`";
    2004 TlsParameterMismatch "tls_parameter_mismatch" Medium
        "peers share no cipher suite, group or signature scheme",
        "let the peer offer an AES-GCM or ChaCha20 suite and X25519, P-256 or X25519MLKEM768";
    2005 HandshakeFailed "handshake_failed" Medium
        "TLS handshake failed",
        "the detail above names the cause; `countersign id inspect ADDR` shows what the peer presents";
    2006 RefusedByPeer "refused_by_peer" Medium
        "peer ended the handshake with a TLS alert",
        "look at the peer's log for the same moment: it says what it expected and what it was shown";
    2007 PeerNotTls "peer_not_tls" Medium
        "peer does not speak TLS",
        "the upstream port is plaintext; point the proxy at the mTLS port";
    2101 PlaintextOnStrict "plaintext_on_strict" Medium
        "plaintext connection refused: the port is STRICT",
        "let the caller connect through its own proxy (`countersign proxy outbound` or `countersign run --outbound`)";
    2102 PermissiveWithoutEnd "permissive_without_end" Medium
        "PERMISSIVE mode without an end date",
        "give `--until TIME`, or say `--until never` if you accept plaintext for ever";
    2103 PermissiveEnded "permissive_ended" Medium
        "PERMISSIVE period has ended: plaintext refused",
        "move the remaining plaintext callers to mTLS, or extend `--until`";
    2201 UpstreamUnreachable "upstream_unreachable" Medium
        "cannot connect to the upstream",
        "check that the upstream listens at that address";
    2202 UpstreamTimeout "upstream_timeout" Medium
        "upstream did not accept the connection in time",
        "check the upstream's load and any firewall in between";
    2203 MalformedHttp "malformed_http" Medium
        "HTTP message is malformed or ambiguous",
        "the message could be read in two ways, which is how requests are smuggled; correct the sender";
    2204 HttpTooLarge "http_too_large" Medium
        "HTTP header section is too large",
        "send less than 64 KiB and 100 header fields";
    2205 HttpVersionUnsupported "http_version_unsupported" Low
        "HTTP/2 on a port that is relayed as HTTP/1.1",
        "use `--protocol tcp` for this port, or let the client speak HTTP/1.1";
    2206 TooManyConnections "too_many_connections" Medium
        "connection limit reached",
        "raise `--max-connections`, or find the client that keeps connections open";
    2301 ConnectionOutlivedCertificate "connection_outlived_certificate" Low
        "connection ended because the peer's certificate expired",
        "nothing to do if the client reconnects; otherwise let it rotate and reconnect before the certificate ends";
    2302 PermitWithdrawn "permit_withdrawn" Medium
        "connection ended because it is no longer permitted",
        "see which policy changed: `countersign policy list`";
    2303 NoIdentityYet "no_identity_yet" High
        "proxy has no identity yet",
        "check that the agent runs and that an entry matches this process (`countersign entry list`)";
    3001 DeniedByPolicy "denied_by_policy" Medium
        "a DENY policy matches",
        "change that policy, or call with an identity it does not match";
    3002 NotAllowedByPolicy "not_allowed_by_policy" Medium
        "no ALLOW policy matches",
        "add the caller to an ALLOW policy; `countersign policy explain` goes through every rule";
    3003 IdentityNotAllowed "identity_not_allowed" Medium
        "identity is not on the list of allowed peers",
        "add it with `--allow`, or call with an allowed identity";
    3004 PolicyUnavailable "policy_unavailable" High
        "no policy has been loaded yet, so nothing is permitted",
        "check the connection to the agent; the proxy refuses until it knows the policy";
    3005 DeniedByEngine "denied_by_engine" Medium
        "the external engine refuses",
        "see the engine's own log for the same moment; a CUSTOM policy sends it these requests";
    3006 EngineUnavailable "engine_unavailable" High
        "the external engine gave no answer, so nothing is permitted",
        "check that the engine runs and answers within its timeout (1 s unless set)";
    3007 EngineMisconfigured "engine_misconfigured" High
        "a CUSTOM policy names an external engine that cannot be asked",
        "describe the provider in the file given with `--providers`, and name only one for a workload";
    3008 EngineNotAsked "engine_not_asked" Info
        "an external engine decides, and it was not asked",
        "previews ask nobody: give `\"external\": true` or `false` with the request to suppose an answer";
    3009 IssuerKeysUnavailable "issuer_keys_unavailable" High
        "the token's issuer could not be asked for its keys, so the token counts for nothing",
        "check that the URL named above answers from this host; `--issuer-ca`, `--issuer-address` and `--issuer-plaintext` widen what may be asked";
    4001 NoIdentityIssued "no_identity_issued" Medium
        "no entry matches this workload",
        "create one: `countersign entry create --spiffe-id … --selector …` with selectors this workload has";
    4002 JoinTokenInvalid "join_token_invalid" Medium
        "join token is unknown, already used or expired",
        "make a new one with `countersign token`; each admits one agent";
    4003 AgentBanned "agent_banned" High
        "agent is banned",
        "ask the operator of the server; a banned agent is evicted before it may attest again";
    4004 AgentNotAttested "agent_not_attested" Medium
        "agent is not attested",
        "join it again: `countersign agent --join \"$(countersign token)\"`";
    4005 CsrInvalid "csr_invalid" Medium
        "certificate signing request is invalid",
        "send a PKCS#10 request, DER, signed with the key it carries";
    4006 EntryInvalid "entry_invalid" Medium
        "registration entry is invalid",
        "correct the field named above";
    4007 EntryNotFound "entry_not_found" Low
        "registration entry does not exist",
        "list entries with `countersign entry list`";
    4008 EntryExists "entry_exists" Low
        "an entry with the same SPIFFE ID, parent and selectors exists",
        "use the existing entry, or delete it first";
    4009 CallerNotAuthorized "caller_not_authorized" Medium
        "caller may not use this operation",
        "call it over the admin socket, or with an identity whose entry is marked `admin`";
    4010 CallerGone "caller_gone" Medium
        "calling process ended, or is not the one that connected",
        "nothing to do if the process was stopped";
    4011 ServerUnreachable "server_unreachable" High
        "server cannot be reached",
        "start it with `countersign server`, or correct its address; cached identities stay in use meanwhile";
    4012 AgentUnreachable "agent_unreachable" High
        "agent cannot be reached",
        "start it with `countersign up` or `countersign agent --join …`, or correct the socket's path";
    4013 JoinStringMalformed "join_string_malformed" Medium
        "join string is malformed",
        "paste the whole line printed by `countersign token`";
    4014 ServiceOverloaded "service_overloaded" Medium
        "too many calls at once",
        "retry with a pause; the limit protects the others";
    5001 ConfigSyntax "config_syntax" Medium
        "file cannot be parsed",
        "correct the place named above";
    5002 UnknownField "unknown_field" Medium
        "field is not known",
        "correct the spelling; unknown fields are refused because a mistyped rule protects nothing";
    5003 InvalidValue "invalid_value" Medium
        "value is not valid",
        "correct the value named above";
    5004 KeyFileTooOpen "key_file_too_open" High
        "private key can be read by others",
        "run `chmod 600` on it";
    5005 FileUnreadable "file_unreadable" Medium
        "file cannot be read",
        "check the path and its permissions";
    5006 AddressInUse "address_in_use" Medium
        "address is already in use",
        "stop the other process, or choose another address";
    5007 OtherTrustDomain "other_trust_domain" High
        "data directory belongs to another trust domain",
        "use another `--data-dir`; the existing data was left untouched";
    5008 NotInitialised "not_initialised" Medium
        "data directory has not been initialised",
        "run `countersign init --trust-domain NAME` first";
    5009 AlreadyInitialised "already_initialised" Medium
        "data directory is already initialised",
        "start it with `countersign server`, or choose another `--data-dir`";
    5010 UnsupportedDocument "unsupported_document" Medium
        "document or field is known but not supported",
        "remove it: it is refused because ignoring it could allow more than you meant";
    5011 StorageFailed "storage_failed" High
        "data cannot be written",
        "free space on the disk or correct its permissions; nothing was issued or changed";
    5012 SchemaTooNew "schema_too_new" High
        "database was written by a newer version",
        "use that version, or restore a backup; the file was left untouched";
    5013 PemMalformed "pem_malformed" Medium
        "PEM is malformed",
        "expected `-----BEGIN …-----` blocks with base64 between them";
    5014 DataDirInUse "data_dir_in_use" Medium
        "data directory is in use by another process",
        "stop that process, or choose another `--data-dir`";
    5015 CannotListen "cannot_listen" Medium
        "cannot listen on the address",
        "check that the address exists on this host and that you may use the port";
    5016 NothingToExamine "nothing_to_examine" Medium
        "nothing was found to examine",
        "name a file, or a directory that holds *.yaml or *.yml files";
    5101 PolicyAllowsAll "policy_allows_all" Medium
        "policy allows everybody",
        "name the principals that may call; `countersign policy suggest` writes them from what was observed";
    5102 PolicyNeverMatches "policy_never_matches" High
        "rule can never match",
        "correct the field that is named; until then an ALLOW grants nothing by it and a DENY refuses nothing";
    5103 PolicyShadowed "policy_shadowed" Low
        "rule changes nothing, because another one covers it",
        "remove it, or narrow the other one";
    5104 PolicyWiderOnTcp "policy_wider_on_tcp" Low
        "rule names what only HTTP has, and refuses more on TCP",
        "name the ports that it is meant for";
    5105 PolicyCrossesTrustDomains "policy_crosses_trust_domains" Medium
        "pattern matches identities of every trust domain that is trusted",
        "begin the pattern with a trust domain, or name `trustDomains`";
    5106 PolicyDiffersFromIstio "policy_differs_from_istio" Info
        "Countersign decides differently from Istio here",
        "compare with `countersign policy decide --compat istio`";
    5107 PolicyNotEnforced "policy_not_enforced" Low
        "policy is not enforced",
        "remove the dry run or the target when it has served its purpose";
    6001 ClockSkew "clock_skew" High
        "clocks disagree",
        "synchronise the clock (chrony, systemd-timesyncd)";
    6002 RotationStuck "rotation_stuck" High
        "certificate was not renewed in time",
        "check that the server is reachable from the agent; `countersign status` names the last error";
    6003 AuthorityExpiring "authority_expiring" High
        "an authority expires soon",
        "roll it over: `countersign ca root prepare`, then `activate`";
    6004 RootOffline "root_offline" Info
        "root key is offline",
        "nothing to do until the intermediate needs renewal; then bring the root key back for one start";
    6005 InternalError "internal_error" High
        "internal error",
        "this is a bug; please report it with the output above";
    6006 MemoryGrowing "memory_growing" Medium
        "a process takes more and more memory",
        "note what it does, restart it at a quiet time, and report it with `countersign status`";
}

impl Code {
    /// The HTTP status that a refused request is answered with.
    pub const fn http_status(self) -> u16 {
        match self {
            Code::MalformedHttp => 400,
            Code::HttpTooLarge => 431,
            Code::HttpVersionUnsupported => 505,
            Code::JwtMalformed
            | Code::JwtAlgorithmRefused
            | Code::JwtKeyUnknown
            | Code::JwtSignatureInvalid
            | Code::JwtExpired
            | Code::JwtAudienceMismatch => 401,
            Code::UpstreamUnreachable => 502,
            Code::PolicyUnavailable | Code::NoIdentityYet | Code::IssuerKeysUnavailable => 503,
            Code::UpstreamTimeout => 504,
            _ => 403,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl serde::Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn numbers_ascend_and_slugs_are_unique_labels() {
        let mut slugs = HashSet::new();
        let mut last = 0;
        for &code in Code::ALL {
            assert!(code as u16 > last, "{code} is out of order");
            last = code as u16;
            assert!(slugs.insert(code.slug()), "{code} repeats a slug");
            assert!(code.slug().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{code}");
            assert_eq!(code.as_str().len(), 6);
        }
    }

    #[test]
    fn texts_follow_the_style() {
        for &code in Code::ALL {
            for text in [code.title(), code.hint()] {
                assert!(!text.ends_with('.'), "{code}: `{text}`");
            }
            assert!(!code.title().is_empty() && !code.hint().is_empty());
        }
    }
}
