//! Bundles as JWKS documents (Trust Domain and Bundle §4; X509-SVID §6; JWT-SVID §6).

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use countersign_identity::{Bundle, JwtAuthority, TrustDomain, X509Authority};
use countersign_x509::CertInfo;
use der::asn1::{BitString, ObjectIdentifier, Uint};
use der::{Any, Decode, Encode, Sequence};
use serde_json::{Map, Value, json};

/// Why a document is no bundle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwksError {
    /// Not JSON of the right shape.
    #[error("not a JWKS document: {0}")]
    Malformed(String),
    /// A JWKS document in which no key can be used for signatures.
    #[error("not a JWKS document: no key can be used for signatures")]
    NoKeys,
    /// One of its keys.
    #[error("key {index}: {detail}")]
    Key {
        /// Position in `keys`.
        index: usize,
        /// What is wrong.
        detail: String,
    },
    /// A key that cannot be written as JWK.
    #[error("key `{0}` is of a kind that JWKS cannot carry")]
    Unsupported(String),
}

#[derive(Sequence)]
struct Algorithm {
    oid: ObjectIdentifier,
    parameters: Option<Any>,
}

#[derive(Sequence)]
struct Spki {
    algorithm: Algorithm,
    key: BitString,
}

#[derive(Sequence)]
struct RsaKey {
    modulus: Uint,
    exponent: Uint,
}

const EC: &str = "1.2.840.10045.2.1";
const RSA: &str = "1.2.840.113549.1.1.1";
const CURVES: [(&str, &str, usize); 3] = [
    ("P-256", "1.2.840.10045.3.1.7", 32),
    ("P-384", "1.3.132.0.34", 48),
    ("P-521", "1.3.132.0.35", 66),
];

fn jwk_of(spki_der: &[u8]) -> Option<Map<String, Value>> {
    let b64 = |b: &[u8]| URL_SAFE_NO_PAD.encode(b);
    let spki = Spki::from_der(spki_der).ok()?;
    let value = match spki.algorithm.oid.to_string().as_str() {
        EC => {
            let curve =
                spki.algorithm.parameters?.decode_as::<ObjectIdentifier>().ok()?.to_string();
            let (name, _, len) = CURVES.iter().find(|(_, oid, _)| *oid == curve)?;
            let point = spki.key.raw_bytes();
            let (x, y) = point.strip_prefix(&[4])?.split_at_checked(*len)?;
            (y.len() == *len)
                .then(|| json!({"kty": "EC", "crv": name, "x": b64(x), "y": b64(y)}))?
        }
        RSA => {
            let key = RsaKey::from_der(spki.key.raw_bytes()).ok()?;
            json!({"kty": "RSA", "n": b64(key.modulus.as_bytes()), "e": b64(key.exponent.as_bytes())})
        }
        _ => return None,
    };
    value.as_object().cloned()
}

pub(crate) fn is_known_curve(crv: &str) -> bool {
    CURVES.iter().any(|(name, ..)| *name == crv)
}

pub(crate) fn spki_of(jwk: &Map<String, Value>) -> Result<Vec<u8>, String> {
    let text = |name: &str| {
        jwk.get(name).and_then(Value::as_str).ok_or_else(|| format!("`{name}` is missing"))
    };
    let bytes = |name: &str| {
        URL_SAFE_NO_PAD.decode(text(name)?).map_err(|e| format!("`{name}` is not base64url: {e}"))
    };
    let der = |e: der::Error| e.to_string();
    let (algorithm, key) = match text("kty")? {
        "EC" => {
            let crv = text("crv")?;
            let (_, oid, len) = CURVES
                .iter()
                .find(|(name, ..)| *name == crv)
                .ok_or_else(|| format!("curve `{}` is not supported", crv.escape_default()))?;
            let (x, y) = (bytes("x")?, bytes("y")?);
            if x.len() != *len || y.len() != *len {
                return Err(format!("`x` and `y` must have {len} bytes"));
            }
            let parameters = Any::encode_from(&ObjectIdentifier::new_unwrap(oid)).map_err(der)?;
            (
                Algorithm { oid: ObjectIdentifier::new_unwrap(EC), parameters: Some(parameters) },
                [&[4][..], &x, &y].concat(),
            )
        }
        "RSA" => {
            let key = RsaKey {
                modulus: Uint::new(&bytes("n")?).map_err(der)?,
                exponent: Uint::new(&bytes("e")?).map_err(der)?,
            };
            (
                Algorithm { oid: ObjectIdentifier::new_unwrap(RSA), parameters: Some(Any::null()) },
                key.to_der().map_err(der)?,
            )
        }
        other => return Err(format!("key type `{}` is not supported", other.escape_default())),
    };
    Spki { algorithm, key: BitString::from_bytes(&key).map_err(der)? }.to_der().map_err(der)
}

fn jwt_key(key: &JwtAuthority, with_use: bool) -> Result<Value, JwksError> {
    let mut jwk =
        jwk_of(&key.public_key).ok_or_else(|| JwksError::Unsupported(key.key_id.clone()))?;
    jwk.insert("kid".into(), key.key_id.clone().into());
    if with_use {
        jwk.insert("use".into(), "jwt-svid".into());
    }
    Ok(Value::Object(jwk))
}

/// The JWT keys alone, as the Workload API's JWT bundles carry them (§6.2.2).
pub fn jwt_keys_to_jwks(bundle: &Bundle) -> Result<Vec<u8>, JwksError> {
    let keys: Vec<Value> =
        bundle.jwt_authorities.iter().map(|k| jwt_key(k, true)).collect::<Result<_, _>>()?;
    Ok(json!({"keys": keys}).to_string().into_bytes())
}

/// The whole bundle as a SPIFFE bundle document.
pub fn bundle_to_jwks(bundle: &Bundle) -> Result<Value, JwksError> {
    let mut keys = Vec::new();
    for (index, authority) in bundle.x509_authorities.iter().enumerate() {
        let info = CertInfo::parse(&authority.der)
            .map_err(|e| JwksError::Key { index, detail: e.to_string() })?;
        let mut jwk =
            jwk_of(&info.spki_der).ok_or_else(|| JwksError::Unsupported(info.key_type.clone()))?;
        jwk.insert("use".into(), "x509-svid".into());
        jwk.insert("x5c".into(), json!([STANDARD.encode(&authority.der)]));
        keys.push(Value::Object(jwk));
    }
    for key in &bundle.jwt_authorities {
        keys.push(jwt_key(key, true)?);
    }
    let mut doc = json!({"keys": keys, "spiffe_sequence": bundle.sequence});
    if let (Some(hint), Some(map)) = (bundle.refresh_hint, doc.as_object_mut()) {
        map.insert("spiffe_refresh_hint".into(), hint.as_secs().into());
    }
    Ok(doc)
}

/// Reads a SPIFFE bundle document. Keys with an unknown or missing `use`, or of an unknown type, are
/// ignored as the standard demands; a known use with a broken key is an error.
pub fn bundle_from_jwks(trust_domain: &TrustDomain, text: &[u8]) -> Result<Bundle, JwksError> {
    let doc: Value =
        serde_json::from_slice(text).map_err(|e| JwksError::Malformed(e.to_string()))?;
    let keys = doc
        .get("keys")
        .and_then(Value::as_array)
        .ok_or_else(|| JwksError::Malformed("`keys` is missing".into()))?;
    let mut bundle = Bundle::new(trust_domain.clone());
    bundle.sequence = match doc.get("spiffe_sequence") {
        None => 0,
        Some(v) => v.as_u64().ok_or_else(|| {
            JwksError::Malformed("`spiffe_sequence` is not a non-negative integer".into())
        })?,
    };
    bundle.refresh_hint = match doc.get("spiffe_refresh_hint") {
        None => None,
        Some(v) => Some(Duration::from_secs(v.as_u64().ok_or_else(|| {
            JwksError::Malformed("`spiffe_refresh_hint` is not a non-negative integer".into())
        })?)),
    };
    for (index, key) in keys.iter().enumerate() {
        let fail = |detail: String| JwksError::Key { index, detail };
        let Some(jwk) = key.as_object() else { return Err(fail("is not an object".into())) };
        match jwk.get("use").and_then(Value::as_str) {
            Some("x509-svid") => {
                let certs = match jwk.get("x5c") {
                    None => continue,
                    Some(Value::Array(list)) => list,
                    Some(_) => return Err(fail("`x5c` is not a list".into())),
                };
                let Some(first) = certs.first() else { continue };
                let der = first
                    .as_str()
                    .and_then(|s| STANDARD.decode(s).ok())
                    .ok_or_else(|| fail("`x5c` is not base64".into()))?;
                CertInfo::parse(&der).map_err(|e| fail(e.to_string()))?;
                bundle.x509_authorities.push(X509Authority { der, tainted: false });
            }
            Some("jwt-svid") => bundle.jwt_authorities.extend(jwt_authority(jwk).map_err(fail)?),
            _ => {}
        }
    }
    Ok(bundle)
}

/// A JWT key; `None` if it is of an unknown type.
fn jwt_authority(jwk: &Map<String, Value>) -> Result<Option<JwtAuthority>, String> {
    if !matches!(jwk.get("kty").and_then(Value::as_str), Some("EC" | "RSA")) {
        return Ok(None);
    }
    let key_id = jwk
        .get("kid")
        .and_then(Value::as_str)
        .filter(|k| !k.is_empty())
        .ok_or("`kid` is missing (JWT-SVID section 6.1)")?;
    let public_key = spki_of(jwk)?;
    Ok(Some(JwtAuthority {
        key_id: key_id.to_owned(),
        public_key,
        expires_at: None,
        tainted: false,
    }))
}

/// Reads the JWT keys that a Workload API tells of one trust domain (Workload API section 6.2.2). Every key there is
/// for JWT-SVIDs, so some implementations leave `use` out.
pub fn jwt_bundle_from_jwks(trust_domain: &TrustDomain, text: &[u8]) -> Result<Bundle, JwksError> {
    let doc: Value =
        serde_json::from_slice(text).map_err(|e| JwksError::Malformed(e.to_string()))?;
    let keys = doc
        .get("keys")
        .and_then(Value::as_array)
        .ok_or_else(|| JwksError::Malformed("`keys` is missing".into()))?;
    let mut bundle = Bundle::new(trust_domain.clone());
    for (index, key) in keys.iter().enumerate() {
        let fail = |detail: String| JwksError::Key { index, detail };
        let jwk = key.as_object().ok_or_else(|| fail("is not an object".into()))?;
        if matches!(jwk.get("use").and_then(Value::as_str), None | Some("jwt-svid")) {
            bundle.jwt_authorities.extend(jwt_authority(jwk).map_err(fail)?);
        }
    }
    Ok(bundle)
}
