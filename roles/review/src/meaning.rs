//! What a setting does, by the words of its name and its value: `skip_tls_verify = true` and `verifyServerCert: false` say
//! the same, and so do ten thousand others that no list has. Words may stand in any order and be joined in any way.

/// What the words of names are about.
struct Words<'w> {
    words: Vec<&'w str>,
}

impl Words<'_> {
    fn any(&self, of: &[&str]) -> bool {
        self.words.iter().any(|w| of.contains(w))
    }
}

/// `skipTLSVerify`, `skip_tls_verify` and `SKIP-TLS-VERIFY` in words of small letters.
pub(crate) fn words(name: &str) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let chars: Vec<char> = name.chars().collect();
    let mut word = String::new();
    for (i, c) in chars.iter().enumerate() {
        if !c.is_ascii_alphanumeric() {
            out.extend((!word.is_empty()).then(|| std::mem::take(&mut word)));
            continue;
        }
        let before = i.checked_sub(1).map(|b| chars[b]);
        let next = chars.get(i + 1);
        // `aB`, and of `TLSVerify` the `V`. A digit belongs to what it follows.
        let begins = c.is_ascii_uppercase()
            && before.is_some_and(|b| {
                b.is_ascii_lowercase()
                    || b.is_ascii_digit()
                    || b.is_ascii_uppercase() && next.is_some_and(char::is_ascii_lowercase)
            });
        if begins {
            out.extend((!word.is_empty()).then(|| std::mem::take(&mut word)));
        }
        word.push(c.to_ascii_lowercase());
    }
    out.extend((!word.is_empty()).then_some(word));
    out
}

/// Words that others write as one.
const JOINED: [(&str, &[&str]); 20] = [
    ("selfsigned", &["self", "signed"]),
    ("skipverify", &["skip", "verify"]),
    ("noverify", &["no", "verify"]),
    ("insecureskipverify", &["insecure", "skip", "verify"]),
    ("verifyssl", &["verify", "ssl"]),
    ("verifytls", &["verify", "tls"]),
    ("verifypeer", &["verify", "peer"]),
    ("verifyhost", &["verify", "host"]),
    ("verifyhostname", &["verify", "hostname"]),
    ("verifycert", &["verify", "cert"]),
    ("verifycerts", &["verify", "cert"]),
    ("sslverify", &["ssl", "verify"]),
    ("sslverifypeer", &["ssl", "verify", "peer"]),
    ("sslverifyhost", &["ssl", "verify", "host"]),
    ("tlsverify", &["tls", "verify"]),
    ("checkhostname", &["check", "hostname"]),
    ("trustall", &["trust", "all"]),
    ("acceptall", &["accept", "all"]),
    ("strictssl", &["strict", "ssl"]),
    ("rejectunauthorized", &["reject", "unauthorized"]),
];

const VERIFYING: [&str; 13] = [
    "verify",
    "verif",
    "verification",
    "verifying",
    "verifies",
    "validate",
    "validation",
    "validating",
    "validates",
    "check",
    "checks",
    "checking",
    "strict",
];
const VERIFY: [&str; 5] = ["verify", "verif", "verification", "verifying", "verifies"];
const LEAVING_OUT: [&str; 22] = [
    "skip",
    "skips",
    "skipping",
    "disable",
    "disables",
    "disabled",
    "disabling",
    "ignore",
    "ignores",
    "ignoring",
    "bypass",
    "no",
    "non",
    "not",
    "without",
    "omit",
    "suppress",
    "insecure",
    "unsafe",
    "danger",
    "dangerous",
    "dangerously",
];
const OF_TLS: [&str; 20] = [
    "cert",
    "certs",
    "certificate",
    "certificates",
    "crt",
    "ssl",
    "tls",
    "https",
    "mtls",
    "x509",
    "peer",
    "chain",
    "pki",
    "ca",
    "trust",
    "tlsv1",
    "dtls",
    "wss",
    "ldaps",
    "starttls",
];
const OF_NAMES: [&str; 12] = [
    "host",
    "hosts",
    "hostname",
    "hostnames",
    "name",
    "names",
    "cn",
    "san",
    "sni",
    "domain",
    "identity",
    "endpoint",
];
const TAKING: [&str; 9] =
    ["accept", "accepts", "accepting", "allow", "allows", "trust", "trusts", "permit", "tolerate"];
const ANYTHING: [&str; 15] = [
    "all",
    "any",
    "every",
    "everything",
    "anything",
    "invalid",
    "untrusted",
    "unverified",
    "unauthorized",
    "unauthorised",
    "bad",
    "broken",
    "unknown",
    "signed",
    "mismatch",
];
/// Of these the same verbs say something else.
const OTHER_THINGS: [&str; 67] = [
    "local",
    "localhost",
    "flag",
    "flags",
    "only",
    "none",
    "result",
    "continue",
    "hardening",
    "jwt",
    "jws",
    "jwk",
    "jwks",
    "token",
    "tokens",
    "signature",
    "signatures",
    "nonce",
    "email",
    "phone",
    "schema",
    "input",
    "form",
    "checksum",
    "hash",
    "gpg",
    "pgp",
    "dkim",
    "audience",
    "captcha",
    "password",
    "account",
    "state",
    "csrf",
    "cors",
    "origin",
    "image",
    "model",
    "version",
    "update",
    "permission",
    "link",
    "crl",
    "ocsp",
    "revocation",
    "revoked",
    "expiry",
    "expiration",
    "issuer",
    "status",
    "health",
    "payload",
    "body",
    "request",
    "response",
    "query",
    "data",
    "warn",
    "warning",
    "warnings",
    "log",
    "loaded",
    "exists",
    "size",
    "depth",
    "cache",
    "passed",
];

/// What `name = value` says of TLS: `verify off`, `names off`, `clients off` (nobody looks at certificates of clients),
/// or nothing, an empty text. By the meaning of the words, which may be in any order.
pub(crate) fn meaning(name: &str, value: &str) -> &'static str {
    let mut found = words(name);
    found = found
        .into_iter()
        .flat_map(|w| match JOINED.iter().find(|(joined, _)| *joined == w) {
            Some((_, parts)) => parts.iter().map(|p| (*p).to_owned()).collect(),
            None => vec![w],
        })
        .collect();
    let name = Words { words: found.iter().map(String::as_str).collect() };
    let value = value.trim().trim_matches(['"', '\'', '`']).to_ascii_lowercase();
    let (on, off) = match value.rsplit(['.', ':']).next().unwrap_or_default() {
        "true" | "1" | "yes" | "on" | "enable" | "enabled" => (true, false),
        "false" | "0" | "no" | "off" | "none" | "nil" | "null" | "never" | "disable"
        | "disabled" | "cert_none" | "verify_none" => (false, true),
        _ => return "",
    };
    if name.words.len() > 9 || name.any(&OTHER_THINGS) {
        return "";
    }
    let about_names = name.any(&OF_NAMES);
    let about_tls = name.any(&OF_TLS);
    let leaves_out = name.any(&LEAVING_OUT);
    let clients = name.any(&["client", "clients"]);
    if name.any(&["reject"]) && name.any(&["unauthorized", "unauthorised"]) {
        return if off { "verify off" } else { "" };
    }
    // `acceptInvalidCerts`, `trust_all_certificates`, `ssl_allow_self_signed`.
    let takes_anything = name.any(&TAKING)
        && name.any(&ANYTHING)
        && (about_tls && !matches!(name.words[..], ["trust", _] | [_, "trust"]) || about_names);
    let trusts_all = matches!(
        name.words[..],
        ["trust" | "accept", "all" | "any" | "everything"] | ["allow" | "accept", "self", "signed"]
    );
    if (takes_anything || trusts_all) && !leaves_out {
        return match (on, name.any(&["hostname", "hostnames"])) {
            (false, _) => "",
            (true, true) => "names off",
            (true, false) if clients => "clients off",
            (true, false) => "verify off",
        };
    }
    let verifies = name.any(&VERIFYING) && !name.any(&TAKING);
    if verifies {
        if !(about_tls
            || about_names
                && name.any(&[
                    "verify",
                    "verification",
                    "validate",
                    "validation",
                    "hostname",
                    "hostnames",
                ])
            || leaves_out && name.any(&VERIFY) && name.words.len() <= 3)
        {
            return "";
        }
        if name.any(&["strict"]) && !name.any(&["ssl", "tls", "https", "cert", "certificate"]) {
            return "";
        }
        if leaves_out != on || leaves_out && off {
            return "";
        }
        return match (about_names, clients) {
            (true, _) => "names off",
            (false, true) => "clients off",
            (false, false) => "verify off",
        };
    }
    // `insecure_tls`, `tls_insecure`, `ignore_ssl_errors`, `skip_cert`.
    let ignores = name.any(&["ignore", "ignores", "bypass", "skip"])
        && name.any(&["ssl", "tls", "cert", "certs", "certificate", "certificates", "https"])
        && (name.any(&["error", "errors", "problems", "issues", "failures"])
            || name.words.len() <= 3);
    let insecure = name.any(&["insecure", "unsafe"])
        && name.any(&["tls", "ssl", "https"])
        && name.words.len() <= 4
        && !name.any(&[
            "cipher",
            "ciphers",
            "port",
            "version",
            "renegotiation",
            "protocol",
            "protocols",
        ]);
    if on && (ignores || insecure) && !clients && !about_names { "verify off" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        for name in [
            "skipTLSVerify",
            "skip_tls_verify",
            "SKIP-TLS-VERIFY",
            "SkipTlsVerify",
            "skip.tls.verify",
        ] {
            assert_eq!(words(name), ["skip", "tls", "verify"], "{name}");
        }
        assert_eq!(words("X509CertsOK"), ["x509", "certs", "ok"]);
        assert_eq!(words("__"), Vec::<String>::new());
    }

    #[test]
    fn what_is_not_verified_is_known_by_its_words() {
        for (name, value) in [
            ("skipTLSVerify", "true"),
            ("verify_server_cert", "False"),
            ("acceptAllRemoteCertificates", "true"),
            ("AcceptInvalidCertificates", "true"),
            ("danger_tls_no_verify", "true"),
            ("ssl_allow_self_signed", "true"),
            ("ALLOW_SELF_SIGNED_CERTS", "\"1\""),
            ("strictSSL", "false"),
            ("tlsInsecure", "true"),
            ("ignoreSslErrors", "true"),
            ("rejectUnauthorized", "false"),
            ("disable_certificate_validation", "yes"),
            ("TrustAllCerts", "true"),
            ("checkServerCertificate", "'off'"),
            ("verifyPeer", "CERT_NONE"),
            ("skip_verify", "true"),
        ] {
            assert_eq!(meaning(name, value), "verify off", "{name} = {value}");
        }
        for name in
            ["verifyHostname", "verify_peer_name", "ssl_check_server_identity", "verify_host"]
        {
            assert_eq!(meaning(name, "false"), "names off", "{name}");
        }
        assert_eq!(meaning("skip_cert_common_name_check", "true"), "names off");
        assert_eq!(meaning("tlsAllowInvalidHostnames", "true"), "names off");
        assert_eq!(meaning("disableHostnameVerification", "true"), "names off");
        assert_eq!(meaning("verifyClientCertificate", "false"), "clients off");
    }

    #[test]
    fn other_settings_mean_nothing() {
        for (name, value) in [
            ("skipTLSVerify", "false"),
            ("verify_ssl", "True"),
            ("verify_ssl", "verify_ssl"),
            ("verify_email", "false"),
            ("skip_validation", "true"),
            ("insecure", "true"),
            ("allow_all", "true"),
            ("jwt_verify", "false"),
            ("check_update", "false"),
            ("trust_proxy", "true"),
            ("validate", "false"),
            ("no_check", "true"),
            ("tls", "false"),
            ("insecureCipherSuites", "true"),
            ("disableHostCheck", "true"),
            ("cert_verify_flags", "0"),
            ("", "true"),
        ] {
            assert_eq!(meaning(name, value), "", "{name} = {value}");
        }
    }
}
