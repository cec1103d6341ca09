//! JWT-SVIDs.

use aws_lc_rs::signature as sig;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use countersign_findings::{Code, Finding};
use countersign_identity::{BundleSet, SpiffeId, UnixTime};
use serde_json::{Map, Value, json};

/// Longest token that is looked at, in bytes.
pub const MAX_TOKEN: usize = 16 << 10;

/// Clock leeway for `nbf` and `iat`, in seconds; `exp` gets none.
pub(crate) const LEEWAY_SECS: i64 = 60;
/// The same as a duration.
pub const LEEWAY: std::time::Duration = std::time::Duration::from_secs(60);

/// Why a token is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// Not a compact JWS, or a part of it cannot be read.
    #[error("{0}")]
    Malformed(String),
    /// §2.1.
    #[error("algorithm `{0}` is not allowed for JWT-SVIDs")]
    Algorithm(String),
    /// No such key in the bundle of the trust domain.
    #[error("key `{kid}` is not in the bundle of `{trust_domain}`")]
    UnknownKey {
        /// The token's key id.
        kid: String,
        /// The domain its subject names.
        trust_domain: String,
    },
    /// The issuer has no key that fits the token.
    #[error("the issuer has no key `{kid}` for the token's algorithm")]
    NoKey {
        /// The token's key id, empty if it has none.
        kid: String,
    },
    /// The signature does not verify.
    #[error("signature does not verify")]
    Signature,
    /// §3.3.
    #[error("token expired at {0}")]
    Expired(UnixTime),
    /// `nbf` or `iat` in the future.
    #[error("token is valid only from {0}")]
    NotYetValid(UnixTime),
    /// §3.2.
    #[error("audience is {presented:?}, not `{expected}`")]
    Audience {
        /// What the token says.
        presented: Vec<String>,
        /// Who we are.
        expected: String,
    },
}

impl JwtError {
    /// The catalogue's view.
    pub fn finding(&self) -> Finding {
        let code = match self {
            JwtError::Malformed(_) | JwtError::NotYetValid(_) => Code::JwtMalformed,
            JwtError::Algorithm(_) => Code::JwtAlgorithmRefused,
            JwtError::UnknownKey { .. } | JwtError::NoKey { .. } => Code::JwtKeyUnknown,
            JwtError::Signature => Code::JwtSignatureInvalid,
            JwtError::Expired(_) => Code::JwtExpired,
            JwtError::Audience { .. } => Code::JwtAudienceMismatch,
        };
        Finding::new(code, self.to_string())
    }
}

/// A verified token.
#[derive(Clone, Debug, PartialEq)]
pub struct JwtSvid {
    /// The subject.
    pub id: SpiffeId,
    /// Its audiences.
    pub audience: Vec<String>,
    /// When it ends.
    pub expires_at: UnixTime,
    /// All claims.
    pub claims: Map<String, Value>,
}

pub(crate) fn malformed(what: impl Into<String>) -> JwtError {
    JwtError::Malformed(what.into())
}

pub(crate) fn algorithm(name: &str) -> Option<&'static dyn sig::VerificationAlgorithm> {
    Some(match name {
        "RS256" => &sig::RSA_PKCS1_2048_8192_SHA256,
        "RS384" => &sig::RSA_PKCS1_2048_8192_SHA384,
        "RS512" => &sig::RSA_PKCS1_2048_8192_SHA512,
        "PS256" => &sig::RSA_PSS_2048_8192_SHA256,
        "PS384" => &sig::RSA_PSS_2048_8192_SHA384,
        "PS512" => &sig::RSA_PSS_2048_8192_SHA512,
        "ES256" => &sig::ECDSA_P256_SHA256_FIXED,
        "ES384" => &sig::ECDSA_P384_SHA384_FIXED,
        "ES512" => &sig::ECDSA_P521_SHA512_FIXED,
        _ => return None,
    })
}

pub(crate) fn object(part: &str, what: &str) -> Result<Map<String, Value>, JwtError> {
    let bytes = URL_SAFE_NO_PAD
        .decode(part)
        .map_err(|e| malformed(format!("{what} is not base64url: {e}")))?;
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(malformed(format!("{what} is not a JSON object"))),
        Err(e) => Err(malformed(format!("{what} is not JSON: {e}"))),
    }
}

pub(crate) fn time_claim(
    claims: &Map<String, Value>,
    name: &str,
) -> Result<Option<UnixTime>, JwtError> {
    match claims.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(n)) => n
            .as_i64()
            .or_else(|| n.as_f64().filter(|f| f.abs() < 9e15).map(|f| f as i64))
            .map(|s| Some(UnixTime::from_secs(s)))
            .ok_or_else(|| malformed(format!("claim `{name}` is out of range"))),
        Some(_) => Err(malformed(format!("claim `{name}` is not a number"))),
    }
}

/// Verifies `token` for `audience` at `now` against `bundles`.
pub fn validate(
    token: &str,
    audience: &str,
    bundles: &BundleSet,
    now: UnixTime,
) -> Result<JwtSvid, JwtError> {
    if token.len() > MAX_TOKEN {
        return Err(malformed(format!(
            "token has {} bytes; the limit is {MAX_TOKEN}",
            token.len()
        )));
    }
    let mut parts = token.split('.');
    let (Some(header64), Some(payload64), Some(signature64), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(malformed("not a compact JWS of three parts (JWT-SVID section 1)"));
    };
    let header = object(header64, "header")?;
    if let Some(extra) = header.keys().find(|k| !matches!(k.as_str(), "alg" | "kid" | "typ")) {
        return Err(malformed(format!(
            "header `{}` is not allowed (JWT-SVID section 2)",
            extra.escape_default()
        )));
    }
    let text = |name: &str| header.get(name).and_then(Value::as_str);
    match header.get("typ") {
        None => {}
        Some(Value::String(t)) if t == "JWT" || t == "JOSE" => {}
        Some(_) => {
            return Err(malformed("header `typ` must be JWT or JOSE (JWT-SVID section 2.3)"));
        }
    }
    let alg = text("alg").ok_or_else(|| malformed("header `alg` is missing"))?;
    let verification =
        algorithm(alg).ok_or_else(|| JwtError::Algorithm(alg.chars().take(20).collect()))?;
    let kid = text("kid")
        .filter(|k| !k.is_empty())
        .ok_or_else(|| malformed("header `kid` is missing"))?;
    let claims = object(payload64, "payload")?;
    let sub = claims
        .get("sub")
        .and_then(Value::as_str)
        .ok_or_else(|| malformed("claim `sub` is missing (JWT-SVID section 3.1)"))?;
    let id = SpiffeId::parse(sub).map_err(|e| malformed(format!("claim `sub`: {e}")))?;
    if id.is_trust_domain() {
        return Err(malformed("claim `sub` has no path"));
    }
    let unknown = || JwtError::UnknownKey {
        kid: kid.chars().take(64).collect(),
        trust_domain: id.trust_domain().to_string(),
    };
    let key = bundles
        .bundle(id.trust_domain())
        .and_then(|b| b.jwt_authority(kid))
        .filter(|k| k.expires_at.is_none_or(|end| now < end))
        .ok_or_else(unknown)?;
    let signature = URL_SAFE_NO_PAD
        .decode(signature64)
        .map_err(|e| malformed(format!("signature is not base64url: {e}")))?;
    let signed = &token[..header64.len() + 1 + payload64.len()];
    sig::UnparsedPublicKey::new(verification, &key.public_key)
        .verify(signed.as_bytes(), &signature)
        .map_err(|_| JwtError::Signature)?;

    let expires_at = time_claim(&claims, "exp")?
        .ok_or_else(|| malformed("claim `exp` is missing (JWT-SVID section 3.3)"))?;
    if expires_at <= now {
        return Err(JwtError::Expired(expires_at));
    }
    for name in ["nbf", "iat"] {
        if let Some(from) = time_claim(&claims, name)?
            && from.secs() > now.secs().saturating_add(LEEWAY_SECS)
        {
            return Err(JwtError::NotYetValid(from));
        }
    }
    let presented: Vec<String> = match claims.get("aud") {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(many)) => many
            .iter()
            .map(|v| v.as_str().map(str::to_owned))
            .collect::<Option<_>>()
            .ok_or_else(|| malformed("claim `aud` holds something that is not a string"))?,
        _ => return Err(malformed("claim `aud` is missing (JWT-SVID section 3.2)")),
    };
    if !presented.iter().any(|a| a == audience) {
        return Err(JwtError::Audience { presented, expected: audience.to_owned() });
    }
    Ok(JwtSvid { id, audience: presented, expires_at, claims })
}

/// A token about to be signed.
#[derive(Clone, Debug)]
pub struct SigningRequest {
    signing_input: String,
    /// When the token ends.
    pub expires_at: UnixTime,
}

impl SigningRequest {
    /// Encodes header and claims for `id`; `algorithm` is the JOSE name that fits the key.
    pub fn new(
        id: &SpiffeId,
        audience: &[String],
        issued_at: UnixTime,
        expires_at: UnixTime,
        key_id: &str,
        algorithm: &str,
    ) -> Result<Self, JwtError> {
        if audience.is_empty() || audience.iter().any(String::is_empty) {
            return Err(malformed("at least one audience is needed, none of them empty"));
        }
        let header = json!({"alg": algorithm, "kid": key_id, "typ": "JWT"});
        let claims = json!({
            "sub": id.as_str(),
            "aud": audience,
            "iat": issued_at.secs(),
            "exp": expires_at.secs(),
        });
        let encode = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
        Ok(Self { signing_input: format!("{}.{}", encode(&header), encode(&claims)), expires_at })
    }

    /// The bytes to sign.
    pub fn bytes(&self) -> &[u8] {
        self.signing_input.as_bytes()
    }

    /// The finished token.
    pub fn assemble(&self, signature: &[u8]) -> String {
        format!("{}.{}", self.signing_input, URL_SAFE_NO_PAD.encode(signature))
    }
}
