//! An issuer of tokens for requests.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use countersign_identity::UnixTime;
use countersign_keys::{KeyAlgorithm, PrivateKey, Signer};
use serde_json::{Value, json};

/// Signs tokens with ES256.
pub struct TokenIssuer {
    key: PrivateKey,
    /// What goes into `iss`.
    pub name: &'static str,
}

impl TokenIssuer {
    /// With a key of its own.
    pub fn new(name: &'static str) -> Self {
        Self { key: PrivateKey::generate(KeyAlgorithm::EcdsaP256).expect("key"), name }
    }

    /// Its public key as a JWKS document.
    pub fn jwks(&self) -> String {
        // A P-256 SPKI ends in the uncompressed point.
        let spki = self.key.public_key_spki();
        let point = &spki[spki.len() - 64..];
        let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        json!({"keys": [{
            "kty": "EC", "crv": "P-256", "use": "sig", "kid": "k1",
            "x": part(&point[..32]), "y": part(&point[32..]),
        }]})
        .to_string()
    }

    /// Signs whatever it is given.
    pub fn sign(&self, header: &Value, claims: &Value) -> String {
        let part = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
        let input = format!("{}.{}", part(header), part(claims));
        let signature = self.key.sign_jws(input.as_bytes()).expect("kind").expect("signature");
        format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// A good token for ten minutes from `now`, with `extra` claims instead of the usual ones.
    pub fn token(&self, now: UnixTime, extra: &Value) -> String {
        let mut claims = json!({
            "iss": self.name, "sub": "alice", "aud": "shop", "exp": now.secs() + 600
        });
        for (name, value) in extra.as_object().into_iter().flatten() {
            claims[name] = value.clone();
        }
        self.sign(&json!({"alg": "ES256", "kid": "k1"}), &claims)
    }
}
