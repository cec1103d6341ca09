//! Tokens that requests carry (RFC 7519), verified with an issuer's keys. Unlike JWT-SVIDs they are of any
//! subject, and their issuer decides which claims they have.

use aws_lc_rs::signature as sig;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use countersign_identity::UnixTime;
use serde_json::{Map, Value};

use crate::jwks::{JwksError, is_known_curve, spki_of};
use crate::jwt::{JwtError, LEEWAY_SECS, MAX_TOKEN, algorithm, malformed, object, time_claim};

/// Most keys of one issuer.
const MAX_KEYS: usize = 64;

/// The keys of an issuer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySet {
    keys: Vec<Key>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Key {
    id: Option<String>,
    /// If given, the only algorithm it may be used with.
    algorithm: Option<String>,
    kind: Kind,
    public_key: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ec,
    Rsa,
    Ed25519,
}

impl Kind {
    /// Whether a key of this kind may sign with `name`.
    fn fits(self, name: &str) -> bool {
        match self {
            Kind::Ec => name.starts_with("ES"),
            Kind::Rsa => name.starts_with("RS") || name.starts_with("PS"),
            Kind::Ed25519 => name == "EdDSA",
        }
    }
}

/// What an unverified token claims; for choosing whose keys are needed, and nothing else.
pub fn unverified_claims(token: &str) -> Option<Map<String, Value>> {
    let payload = token.split('.').nth(1).filter(|_| token.len() <= MAX_TOKEN)?;
    object(payload, "payload").ok()
}

impl KeySet {
    /// Reads a JWKS document. Keys of other kinds and uses are left out; one that is broken is an error, and so
    /// is a secret one: it does not belong where it was found.
    pub fn parse(text: &[u8]) -> Result<Self, JwksError> {
        let document: Value =
            serde_json::from_slice(text).map_err(|e| JwksError::Malformed(e.to_string()))?;
        let list = document
            .get("keys")
            .and_then(Value::as_array)
            .ok_or_else(|| JwksError::Malformed("`keys` is missing".into()))?;
        if list.len() > MAX_KEYS {
            return Err(JwksError::Malformed(format!("more than {MAX_KEYS} keys")));
        }
        let mut keys = Vec::new();
        for (index, value) in list.iter().enumerate() {
            let fail = |detail: String| JwksError::Key { index, detail };
            let Some(jwk) = value.as_object() else { return Err(fail("is not an object".into())) };
            let text = |name: &str| jwk.get(name).and_then(Value::as_str);
            if jwk.contains_key("d") {
                return Err(fail("is a private key".into()));
            }
            if text("use").is_some_and(|u| u != "sig") {
                continue;
            }
            // Keys of curves that are not known are for others (RFC 7517 section 5).
            if text("kty") == Some("EC") && text("crv").is_some_and(|crv| !is_known_curve(crv)) {
                continue;
            }
            let (kind, public_key) = match text("kty") {
                Some("EC") => (Kind::Ec, spki_of(jwk).map_err(fail)?),
                Some("RSA") => (Kind::Rsa, spki_of(jwk).map_err(fail)?),
                Some("OKP") if text("crv") == Some("Ed25519") => {
                    let x = text("x").and_then(|x| URL_SAFE_NO_PAD.decode(x).ok());
                    let x = x.filter(|x| x.len() == 32);
                    (Kind::Ed25519, x.ok_or_else(|| fail("`x` is not 32 bytes".into()))?)
                }
                Some(_) => continue,
                None => return Err(fail("`kty` is missing".into())),
            };
            keys.push(Key {
                id: text("kid").map(str::to_owned),
                algorithm: text("alg").map(str::to_owned),
                kind,
                public_key,
            });
        }
        if keys.is_empty() {
            return Err(JwksError::NoKeys);
        }
        Ok(Self { keys })
    }

    /// Verifies signature and times of `token`, and gives its claims. Issuer and audience are the caller's to
    /// judge.
    pub fn verify(&self, token: &str, now: UnixTime) -> Result<Map<String, Value>, JwtError> {
        if token.len() > MAX_TOKEN {
            return Err(malformed(format!("token exceeds {MAX_TOKEN} bytes")));
        }
        let mut parts = token.split('.');
        let (Some(header64), Some(payload64), Some(signature64), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(malformed("not a compact JWS of three parts"));
        };
        let header = object(header64, "header")?;
        if header.contains_key("crit") {
            return Err(malformed("header `crit` names extensions that are not understood"));
        }
        let text = |name: &str| header.get(name).and_then(Value::as_str);
        let name = text("alg").ok_or_else(|| malformed("header `alg` is missing"))?;
        let verification: &'static dyn sig::VerificationAlgorithm = match name {
            "EdDSA" => &sig::ED25519,
            _ => algorithm(name)
                .ok_or_else(|| JwtError::Algorithm(name.chars().take(20).collect()))?,
        };
        let id = text("kid");
        let signature = URL_SAFE_NO_PAD
            .decode(signature64)
            .map_err(|e| malformed(format!("signature is not base64url: {e}")))?;
        let signed = &token[..header64.len() + 1 + payload64.len()];
        let mut candidates = self
            .keys
            .iter()
            .filter(|k| id.is_none() || k.id.is_none() || k.id.as_deref() == id)
            .filter(|k| k.kind.fits(name) && k.algorithm.as_deref().is_none_or(|a| a == name))
            .peekable();
        if candidates.peek().is_none() {
            return Err(JwtError::NoKey { kid: id.unwrap_or("").chars().take(64).collect() });
        }
        let verifies = |k: &Key| {
            sig::UnparsedPublicKey::new(verification, &k.public_key)
                .verify(signed.as_bytes(), &signature)
                .is_ok()
        };
        if !candidates.any(verifies) {
            return Err(JwtError::Signature);
        }
        let claims = object(payload64, "payload")?;
        if let Some(end) = time_claim(&claims, "exp")?
            && end.secs().saturating_add(LEEWAY_SECS) <= now.secs()
        {
            return Err(JwtError::Expired(end));
        }
        if let Some(from) = time_claim(&claims, "nbf")?
            && from.secs() > now.secs().saturating_add(LEEWAY_SECS)
        {
            return Err(JwtError::NotYetValid(from));
        }
        Ok(claims)
    }
}
